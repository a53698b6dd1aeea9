"""What the model benches share: which rows are scored, the models one after the other, the files.

Everything here is checked before torch is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.data.splits import SPLITS
from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.stats.intervals import MIN_CELL

from .output.render import Sheet, save, show


def short_names(models: Sequence[str]) -> dict[str, str]:
    """{short name, good for a file: model} in the given order. Errors: UserInputError for no model,
    or one that is given twice."""
    if not models:
        raise UserInputError("no model to measure", "give --model, several times for a comparison")
    found: dict[str, str] = {}
    for model in models:
        if list(models).count(model) > 1:
            raise UserInputError(f"--model {model} is given twice", "give each model once")
        bare = model.removeprefix("local-dir:").removeprefix("hf-hub:").rstrip("/")
        parts = [p for p in re.split(r"[/\\]", bare) if p not in ("", ".", "..")] or [bare]
        # The tag of an open_clip name says nothing without its architecture.
        whole = bare == model and not Path(model).is_dir() and not model.startswith((".", "/", "~"))
        depths = range(len(parts) if whole else 1, len(parts) + 1)
        names = [_as_file_name("_".join(parts[-depth:]), "model") for depth in depths]
        free = next((name for name in names if name not in found), None)
        found[free or f"{names[-1]}-{len(found) + 1}"] = model
    return found


def check_models(models: Sequence[str]) -> dict[str, str]:
    """`short_names`, once each name is known to mean something (no torch, no network)."""
    from dermaudit.towers.loading.names import resolve

    for model in models:
        resolve(model)
    return short_names(models)


def reference_name(reference: str | None, names: dict[str, str]) -> str | None:
    """The short name of the reference, given as that or as the model. Errors: UserInputError."""
    if reference is None or reference in names:
        return reference
    for name, model in names.items():
        if model == reference:
            return name
    raise unknown("reference model", reference, names)


def dataset_name(data: Path) -> str:
    """What a data set is called in tables and files: its folder."""
    place = data.absolute()
    place = place if place.is_dir() else place.parent
    return _as_file_name(place.name, "data")


def _as_file_name(name: str, fallback: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".") or fallback


def split_rows(manifest: Any, split: str) -> np.ndarray:
    """The rows of a split. Errors: UserInputError for an unknown split, EvidenceError for fewer than
    30 rows."""
    if split not in (*SPLITS, "all"):
        raise unknown("split", split, [*SPLITS, "all"])
    rows = np.array([i for i, s in enumerate(manifest.splits) if split in (s, "all")], dtype=int)
    check_enough(len(rows), f"{manifest.path}, split {split}")
    return rows


def check_enough(n: int, where: str) -> None:
    if n < MIN_CELL:
        raise EvidenceError(
            f"{where}: {n} images to score, at least {MIN_CELL} are needed",
            "score another --split, or more images",
            {"n": n},
        )


def towers(names: dict[str, str], device: str, threads: int) -> Iterator[tuple[str, Any]]:
    """(short name, tower) one after the other, so that only one is in memory. Errors: UserInputError
    for a device that is none."""
    import torch

    from dermaudit.distributed import checked_device
    from dermaudit.towers import load_model

    device = checked_device(device)
    torch.set_num_threads(threads)
    for name, model in names.items():
        say(f"{name}:")
        yield name, load_model(model, device=device)


def finish(sheets: Sequence[Sheet], form: str, table: Path | None) -> dict[str, Any]:
    """Print the sheets, write them, and give what --json prints of them."""
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
