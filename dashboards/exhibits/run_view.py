"""A run read into plain tables and arrays: what the explorer and the report stand on.

Every file is taken through `RunView.checked`, which asks the run whether the stage that wrote it is
whole and fresh; a damaged, stale or missing part raises one of the error family's sentences, and
the parts that do not need it go on. torch is loaded only when an SAE's weights are asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import read_json, sha256_json
from dermaudit.heads import LinearHead
from dermaudit.run.directory import Run, open_run

if TYPE_CHECKING:
    from dermaudit.sae import ThresholdSAE, TopKSAE

POOLED = "visual.pooled"


@dataclass(frozen=True)
class Truth:
    """What the manifest says of one concept: `values` (n,) 1, 0 or nan = unknown."""

    name: str
    type: str
    values: np.ndarray


@dataclass(frozen=True)
class SiteCodes:
    """The stored image codes of one site, memory-mapped (docs/formats.md, `codes/<site>/`)."""

    shape: tuple[int, int]
    arrays: dict[str, np.ndarray]

    def column(self, latent: int) -> np.ndarray:
        """Activations of one latent over all images, dense (n,) float32."""
        out = np.zeros(self.shape[0], dtype=np.float32)
        start, stop = self.arrays["csc_indptr"][latent : latent + 2]
        out[self.arrays["csc_indices"][start:stop]] = self.arrays["csc_values"][start:stop]
        return out

    def row(self, image: int) -> tuple[np.ndarray, np.ndarray]:
        """(latents, values) that fire in one image."""
        start, stop = self.arrays["indptr"][image : image + 2]
        return np.asarray(self.arrays["indices"][start:stop]), np.asarray(
            self.arrays["values"][start:stop]
        )


class RunView:
    """Reads a run; each part is loaded when first asked for, checked, and kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stages: dict[str, Any] = run.meta.get("stages") or {}
        self._checked: set[str] = set()
        self._codes: dict[str, SiteCodes] = {}
        self._saes: dict[str, ThresholdSAE | TopKSAE] = {}
        self._stability: dict[str, dict[str, Any] | None] = {}
        self.memo: dict[str, Any] = {}  # what is dear to compute and asked for more than once

    @classmethod
    def open(cls, path: Path | str) -> RunView:
        """Open a run whose images are known. UserInputError when there is nothing to show yet."""
        run = open_run(path)
        if not isinstance(run.meta.get("stages"), dict):
            raise ForeignArtifactError(
                f"{run.path / 'run.json'} lists no stages", "make the run again: dermaudit audit"
            )
        view = cls(run)
        view.require("images")
        return view

    @cached_property
    def key(self) -> str:
        """A hash of what the stages wrote: caches are keyed by it, so that a refit empties them."""
        return sha256_json(
            {name: record["outputs"] for name, record in self.stages.items() if name != "report"}
        )

    # ---- checked access

    def require(self, stage: str) -> dict[str, Any]:
        """The record of a finished, intact and fresh stage; else the run's own sentence."""
        if stage not in self._checked:
            self.run.require(stage)
            self._checked.add(stage)
        return self.stages[stage]

    def owner(self, name: str) -> str | None:
        """The stage that wrote a file of the run (path relative to it), or None."""
        return next(
            (stage for stage, record in self.stages.items() if name in record["outputs"]), None
        )

    def checked(self, name: str, stage: str) -> Path:
        """The path of a file of the run, once the stage that wrote it is found whole and fresh.
        `stage` is the one that should have: named when the file is not there."""
        self.require(self.owner(name) or stage)
        path = self.run.file(name)
        if self.owner(name) is None or not path.is_file():
            raise EvidenceError(f"the {stage} stage of {self.run.path.name} wrote no {name}")
        return path

    def _table(self, name: str, stage: str) -> pa.Table:
        path = self.checked(name, stage)
        try:
            # Not pq.read_table: that loads pyarrow.dataset and pandas, seconds for nothing.
            return pq.ParquetFile(path).read()
        except (pa.ArrowException, OSError) as error:
            raise ForeignArtifactError(
                f"{path} is not a readable Parquet file ({error})"
            ) from error

    def _json(self, name: str, stage: str) -> dict[str, Any]:
        found = read_json(self.checked(name, stage))
        if not isinstance(found, dict):
            raise ForeignArtifactError(f"{self.run.file(name)} does not hold a JSON object")
        return found

    # ---- images and truth

    @cached_property
    def images(self) -> pa.Table:
        return self._table("images.parquet", "images")

    @property
    def n(self) -> int:
        return self.images.num_rows

    def words(self, column: str) -> np.ndarray:
        """A column of the manifest as words, '' where blank or absent: (n,) object."""
        if column not in self.images.column_names:
            return np.full(self.n, "", dtype=object)
        return np.array(
            ["" if value is None else str(value) for value in self.images[column].to_pylist()],
            dtype=object,
        )

    @cached_property
    def labels(self) -> np.ndarray:
        return self.words("label")

    @cached_property
    def splits(self) -> np.ndarray:
        return self.words("split")

    @cached_property
    def groups(self) -> np.ndarray:
        """The group of every image; an image without one is its own."""
        groups = self.words("group")
        return np.where(groups == "", self.words("image"), groups)

    @cached_property
    def truth(self) -> dict[str, Truth]:
        """Known concepts: `artifact:*`, `concept:*`, then each diagnosis against the rest.
        A probability counts as 1 from .5 on; blank stays unknown (as sae/run_data.py)."""
        found: dict[str, Truth] = {}
        for column in self.images.column_names:
            kind, _, name = column.partition(":")
            if kind in ("artifact", "concept") and name:
                raw = self.images[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
                values = np.where(np.isfinite(raw), (raw >= 0.5).astype(float), np.nan)
                found[name] = Truth(name, "artifact" if kind == "artifact" else "clinical", values)
        for label in sorted(set(self.labels) - {""}):
            if label not in found:
                values = np.where(self.labels == "", np.nan, (self.labels == label).astype(float))
                found[label] = Truth(label, "diagnosis", values)
        return {name: truth for name, truth in found.items() if np.isfinite(truth.values).any()}

    def image_file(self, row: int) -> Path | None:
        """Return the path of an image, None if the run's data is not where run.json says."""
        path = self.run.data_root() / self.images["image"][row].as_py()
        return path if path.is_file() else None

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """`data.json` beside the manifest (licence, layout, source), {} if it cannot be found."""
        path = self.run.data_root() / "data.json"
        found = read_json(path, "data set") if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    # ---- results

    @cached_property
    def sites(self) -> list[str]:
        return sorted(stage.partition(":")[2] for stage in self.stages if stage.startswith("fit:"))

    @cached_property
    def concepts(self) -> list[dict[str, Any]]:
        """The rows of concepts.parquet: one a live latent."""
        return self._table("concepts.parquet", "name").to_pylist()

    @cached_property
    def label_rows(self) -> list[dict[str, Any]]:
        """The rows of labels.parquet: the best latent of each known concept."""
        return self._table("labels.parquet", "annotate").to_pylist()

    @cached_property
    def naming(self) -> dict[str, Any]:
        return self._json("naming.json", "name")

    @cached_property
    def bottlenecks(self) -> list[dict[str, Any]]:
        """The rows of bottlenecks.parquet. EvidenceError with the stage's reason when it has none."""
        if self.owner("bottlenecks.reason.json"):
            raise EvidenceError(self._json("bottlenecks.reason.json", "compare")["reason"])
        return self._table("bottlenecks.parquet", "compare").to_pylist()

    def sae_metrics(self, site: str) -> dict[str, Any]:
        return self._json(f"sae/{site}/metrics.json", f"fit:{site}")

    def stability(self, site: str) -> dict[str, Any] | None:
        """How the site's SAE compares with other seeds: `against`, and `per_latent` {`stable`, `agreement`}.
        None where it was not measured, or no latent fires, or the SAE was fitted again since."""
        if site not in self._stability:
            try:
                found = self._json(f"sae/{site}/stability.json", f"seeds:{site}")
            except (EvidenceError, UserInputError):  # a stale one is a UserInputError too
                found = {}
            self._stability[site] = found if "per_latent" in found else None
        return self._stability[site]

    def stable(self, site: str, latent: int) -> bool | None:
        """Whether every other seed has a latent like it; None where that is not known."""
        report = self.stability(site)
        return None if report is None else report["per_latent"]["stable"][latent]

    @cached_property
    def suppressions(self) -> list[str]:
        """Concepts whose suppression was tried: those with a measured effect first, then those
        chosen by name, then the refused."""
        tried = [stage.partition(":")[2] for stage in self.stages if stage.startswith("recipe:")]
        return sorted(
            tried,
            key=lambda c: (
                self.owner(f"suppression/{c}.parquet") is None,
                self.owner(f"recipes/{c}.recipe.json") is None,
                c,
            ),
        )

    def suppression(self, concept: str) -> dict[str, Any]:
        """The figures of `suppression/<concept>.json`. EvidenceError with the reason when refused."""
        stage = f"recipe:{concept}"
        if self.owner(f"suppression/{concept}.reason.json"):
            refused = self._json(f"suppression/{concept}.reason.json", stage)
            raise EvidenceError(refused["reason"], numbers=refused.get("numbers"))
        return self._json(f"suppression/{concept}.json", stage)

    def suppressed_rows(self, concept: str) -> list[dict[str, Any]]:
        """One row a test image, before and after. EvidenceError when the effect was not measured."""
        return self._table(f"suppression/{concept}.parquet", f"recipe:{concept}").to_pylist()

    def recipe(self, concept: str) -> Any:
        """The recipe, its body hash checked, made for this run's model and SAE."""
        from dermaudit.concepts.suppression.recipe import SuppressionRecipe

        path = self.checked(f"recipes/{concept}.recipe.json", f"recipe:{concept}")
        recipe = SuppressionRecipe.load(path)
        recipe.check(self.run, path)
        return recipe

    # ---- arrays

    def codes(self, site: str) -> SiteCodes:
        if site not in self._codes:
            folder = f"codes/{site}"
            meta = self._json(f"{folder}/codes.json", f"fit:{site}")
            names = ("indptr", "indices", "values", "csc_indptr", "csc_indices", "csc_values")
            arrays = {n: np.load(self.run.file(folder, f"{n}.npy"), mmap_mode="r") for n in names}
            self._codes[site] = SiteCodes(tuple(meta["shape"]), arrays)
        return self._codes[site]

    def sae(self, site: str) -> ThresholdSAE | TopKSAE:
        """Return the SAE of a site, once its files are found unchanged."""
        if site not in self._saes:
            from dermaudit.sae import load_sae

            path = self.checked(f"sae/{site}/sae_weights.safetensors", f"fit:{site}")
            self._saes[site] = load_sae(path.parent)
        return self._saes[site]

    @cached_property
    def pooled(self) -> np.ndarray:
        """Pooled unit embeddings (n, d) float32."""
        from dermaudit.sae.store.activation_store import ActivationStore

        self.require("embed")
        return ActivationStore.open(self.run.file("embeddings", POOLED)).read()[0]

    def patch_acts(self, site: str, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Stored patch activations of one image: (tokens, d) float32, and the grid (h, w)."""
        from safetensors import safe_open

        self.require("embed")
        meta = read_json(self.run.file("embeddings", site, "store.json"), "store")
        if not meta.get("grid"):
            raise EvidenceError(f"{site} has no grid of patches: no map can be drawn")
        for name in sorted(meta["shards"]):
            with safe_open(self.run.file("embeddings", site, name), framework="np") as shard:
                at = np.flatnonzero(shard.get_tensor("row") == row)
                if len(at):
                    acts = shard.get_slice("acts")[int(at[0]) : int(at[0]) + 1][0]
                    return acts.astype(np.float32), tuple(meta["grid"])
        raise EvidenceError(f"image {row} has no stored activations at {site}")

    @cached_property
    def heads(self) -> list[str]:
        return sorted(
            Path(name).stem
            for record in self.stages.values()
            for name in record["outputs"]
            if name.startswith("heads/") and name.endswith(".safetensors")
        )

    def head(self, name: str = "label") -> LinearHead:
        """A head of the run. EvidenceError with the reason when none could be fitted."""
        if self.owner(f"heads/{name}.reason.json"):
            raise EvidenceError(self._json(f"heads/{name}.reason.json", "heads")["reason"])
        return LinearHead.load(self.checked(f"heads/{name}.safetensors", "heads"))


def latent_title(row: dict[str, Any]) -> str:
    """Return what a page calls a latent: its name, marked where labels show that it is wrong on test
    images, or "unnamed"."""
    if not row.get("name"):
        return "unnamed"
    return f"{row['name']} ⚠ wrong on test" if row.get("wrong") else str(row["name"])


def rivals_of(row: dict[str, Any]) -> list[tuple[str, float]]:
    """The words that scored best for a latent; words in brackets are distractors."""
    try:
        return [(str(word), float(score)) for word, score in json.loads(row["rivals"] or "[]")]
    except (ValueError, TypeError) as error:
        raise UserInputError(
            f"the rivals of latent {row['latent']} cannot be read ({error})"
        ) from error
