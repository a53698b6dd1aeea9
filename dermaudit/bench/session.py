"""What the benchmarks of models share: the scored images, the models one after the other, the files.

Everything is checked before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.console import say
from dermaudit.data import Manifest
from dermaudit.data.splits import SPLITS
from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.stats.intervals import MIN_CELL

from .options import BenchOptions, Resampling, check_draws
from .output.paths import planned_files
from .output.render import Sheet, save, show

if TYPE_CHECKING:
    from dermaudit.towers.embedding import Embedded


class BenchSession:
    """One benchmark in progress.

    `models` {short name: model}; `scored` are the manifest rows whose image could be read, once `embed` has
    run, and `skipped` counts the other images by model. Errors: UserInputError for models, draws, a
    reference or an output that cannot be used.
    """

    def __init__(
        self, options: BenchOptions, name: str, *, saves_predictions: bool = False
    ) -> None:
        self.options = options
        self.models = check_models(options.models)
        check_draws(options.draws)
        reference = reference_name(options.reference, self.models)
        self.resampling = Resampling(options.draws, options.seed, reference)
        self.dataset = dataset_name(options.data)
        self.table = planned_files(
            options.out,
            name,
            options.form,
            self.dataset,
            list(self.models) if saves_predictions else [],
            options.force,
        )
        self.scored = np.zeros(0, dtype=int)
        self.skipped: dict[str, int] = {}

    def manifest(self) -> Manifest:
        """Open the data set, or the rows of it for which `where` holds."""
        manifest = Manifest.load(self.options.data)
        return manifest if self.options.where is None else manifest.where(self.options.where)

    def towers(self) -> Iterator[tuple[str, Any]]:
        """Yield (short name, tower), one at a time so that only one is in memory.

        Errors: UserInputError for an unknown device.
        """
        import torch

        from dermaudit.distributed import checked_device
        from dermaudit.towers import load_model

        device = checked_device(self.options.device)
        torch.set_num_threads(self.options.threads)
        for name, model in self.models.items():
            say(f"{name}:")
            yield name, load_model(model, device=device)

    def embed(self, manifest: Manifest, rows: np.ndarray) -> Iterator[tuple[str, Any, Embedded]]:
        """Yield (short name, tower, embeddings of `rows`) for each model."""
        from dermaudit.towers.embedding import embed_rows

        for name, tower in self.towers():
            embedded = embed_rows(tower, manifest, rows.tolist())
            self.skipped[name] = len(embedded.skipped)
            self.scored = embedded.rows
            yield name, tower, embedded

    def description(self, split: str) -> dict[str, Any]:
        """Return what `--json` says of the models and the scored images."""
        return {
            "data": str(self.options.data),
            "models": self.models,
            "split": split,
            "where": self.options.where,
            "n_skipped": self.skipped,
        }

    def finish(self, sheets: Sequence[Sheet]) -> dict[str, Any]:
        """Print the sheets, write them, and return what `--json` prints of them."""
        form, table = self.options.form, self.table
        if table is not None:
            save(sheets, form, table)
        show(sheets, "text" if table is not None or form == "parquet" else form)
        if table is not None:
            say(f"written: {table}")
        return {
            "figures": [record for sheet in sheets for record in sheet.records],
            "notes": [note for sheet in sheets for note in sheet.notes],
            **({"table": str(table)} if table is not None else {}),
        }


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Return {short name that can be a file name: model} in the given order.

    Errors: UserInputError for no model, or one that is given twice.
    """
    if not models:
        raise UserInputError("no model to measure", "give --model, several times for a comparison")
    found: dict[str, str] = {}
    for model in models:
        if list(models).count(model) > 1:
            raise UserInputError(f"--model {model} is given twice", "give each model once")
        bare = model.removeprefix("local-dir:").removeprefix("hf-hub:").rstrip("/")
        parts = [p for p in re.split(r"[/\\]", bare) if p not in ("", ".", "..")] or [bare]
        # The tag of an open_clip name means nothing without its architecture.
        whole = bare == model and not Path(model).is_dir() and not model.startswith((".", "/", "~"))
        depths = range(len(parts) if whole else 1, len(parts) + 1)
        names = [_as_file_name("_".join(parts[-depth:]), "model") for depth in depths]
        free = next((name for name in names if name not in found), None)
        found[free or f"{names[-1]}-{len(found) + 1}"] = model
    return found


def check_models(models: Sequence[str]) -> dict[str, str]:
    """Return `short_names`. Raise UserInputError for a name that is no model (no torch, no network)."""
    from dermaudit.towers.loading.names import resolve

    for model in models:
        resolve(model)
    return short_names(models)


def reference_name(reference: str | None, names: dict[str, str]) -> str | None:
    """Return the short name of the reference model. Raise UserInputError if it is unknown."""
    if reference is None or reference in names:
        return reference
    for name, model in names.items():
        if model == reference:
            return name
    raise unknown("reference model", reference, names)


def dataset_name(data: Path) -> str:
    """Return the name of a data set in tables and files: the name of its folder."""
    place = data.absolute()
    place = place if place.is_dir() else place.parent
    return _as_file_name(place.name, "data")


def _as_file_name(name: str, fallback: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or fallback


def split_rows(manifest: Manifest, split: str) -> np.ndarray:
    """Return the rows of a split.

    Errors: UserInputError for an unknown split, EvidenceError for fewer than 30 rows.
    """
    if split not in (*SPLITS, "all"):
        raise unknown("split", split, [*SPLITS, "all"])
    rows = np.array([i for i, s in enumerate(manifest.splits) if split in (s, "all")], dtype=int)
    check_enough(len(rows), f"{manifest.path}, split {split}")
    return rows


def check_enough(n: int, where: str) -> None:
    """Raise EvidenceError for fewer images than a figure needs."""
    if n < MIN_CELL:
        raise EvidenceError(
            f"{where}: {n} images to score, at least {MIN_CELL} are needed",
            "score another --split, or more images",
            {"n": n},
        )
