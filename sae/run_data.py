"""The content of a run: images, labels, splits, embeddings, codes, SAEs, and the results of its stages.

SAE evaluation, concepts, explorer and report read a run through this class. A file is verified
together with everything it was made from before it is read (`Run.require`), and what a stage could
not measure is an EvidenceError with the reason that the stage recorded. Nothing here loads torch
except `RunData.sae`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.errors import EvidenceError, ForeignArtifactError, StaleArtifactError
from dermaudit.files import read_json, sha256_json
from dermaudit.heads import LinearHead
from dermaudit.run.directory import Run, open_run
from dermaudit.towers.loading.reference import ReferenceFiles

from .inference.codes import Codes
from .store.activation_store import ActivationStore

if TYPE_CHECKING:
    from .inference.model import ThresholdSAE, TopKSAE

POOLED = "visual.pooled"
ConceptType = Literal["artifact", "clinical", "diagnosis"]


@dataclass(frozen=True)
class Truth:
    """Labels of one concept over all rows: `values` (n,) are 1, 0, or nan where unknown."""

    name: str
    type: ConceptType
    values: np.ndarray

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Return the indices of the rows (of a boolean mask) whose label is known."""
        return np.flatnonzero(rows & np.isfinite(self.values))


class RunData:
    """Reads a run. Every part is verified and loaded when it is first asked for, and kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._codes: dict[str, Codes] = {}
        self._saes: dict[str, ThresholdSAE | TopKSAE] = {}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a run whose images have been read. UserInputError if they have not."""
        data = cls(open_run(path))
        data.run.require("images")
        return data

    @property
    def stages(self) -> dict[str, Any]:
        """The records of run.json by name."""
        return self.run.meta["stages"]

    @cached_property
    def key(self) -> str:
        """A hash of everything that the stages wrote, the report left out: a key for caches."""
        return sha256_json(
            {name: record["outputs"] for name, record in self.stages.items() if name != "report"}
        )

    # ---- verified files

    def stage_that_wrote(self, path: Path) -> str | None:
        """Return the stage whose record names a file of the run, or None."""
        name = path.relative_to(self.run.path).as_posix()
        return next((s for s, record in self.stages.items() if name in record["outputs"]), None)

    def verified(self, path: Path, stage: str) -> Path:
        """Return `path` after the stage that wrote it was verified; `stage` is the one that should have.

        EvidenceError if that stage is finished and did not write the file.
        """
        self.run.require(self.stage_that_wrote(path) or stage)
        if self.stage_that_wrote(path) is None or not path.is_file():
            name = path.relative_to(self.run.path).as_posix()
            raise EvidenceError(f"the {stage} stage of {self.run.path.name} wrote no {name}")
        return path

    def _table(self, path: Path, stage: str) -> pa.Table:
        self.verified(path, stage)
        try:
            # pq.read_table would import pyarrow.dataset and pandas, which takes seconds.
            return pq.ParquetFile(path).read()
        except (pa.ArrowException, OSError) as error:
            raise ForeignArtifactError(
                f"{path} is not a readable Parquet file ({error})"
            ) from error

    def _json(self, path: Path, stage: str) -> dict[str, Any]:
        found = read_json(self.verified(path, stage))
        if not isinstance(found, dict):
            raise ForeignArtifactError(f"{path} does not hold a JSON object")
        return found

    def _refuse_if_reason(self, path: Path, stage: str) -> None:
        """Raise EvidenceError with the reason in `path`, if the stage wrote one instead of a result."""
        if self.stage_that_wrote(path):
            refused = self._json(path, stage)
            raise EvidenceError(refused["reason"], numbers=refused.get("numbers"))

    # ---- images and labels

    @cached_property
    def images(self) -> pa.Table:
        """images.parquet: a row for each image."""
        return self._table(self.run.files.images, "images")

    @property
    def n(self) -> int:
        """The number of images."""
        return self.images.num_rows

    def column(self, name: str) -> np.ndarray:
        """Return a column of the manifest as text, '' where blank or absent: (n,) object."""
        if name not in self.images.column_names:
            return np.full(self.n, "", dtype=object)
        values = self.images[name].to_pylist()
        return np.array(["" if value is None else str(value) for value in values], dtype=object)

    @cached_property
    def splits(self) -> np.ndarray:
        """The split of every image: (n,) "train", "val" or "test"."""
        return self.column("split")

    @cached_property
    def labels(self) -> np.ndarray:
        """The label of every image, '' where unknown: (n,)."""
        return self.column("label")

    @cached_property
    def groups(self) -> np.ndarray:
        """The group (lesion, patient) of every image; an image without one is a group of its own: (n,)."""
        groups = self.column("group")
        return np.where(groups == "", self.column("image"), groups)

    def rows(self, *splits: str) -> np.ndarray:
        """Return the boolean mask (n,) of the images of these splits."""
        return np.isin(self.splits, splits)

    @cached_property
    def truth(self) -> dict[str, Truth]:
        """Known concepts: the columns `artifact:*` and `concept:*`, then each label against the rest.

        A probability counts as 1 from .5 on; a blank cell is unknown.
        """
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
        return found

    def image_path(self, row: int) -> Path:
        """Return the path of an image. UserInputError if it is not where run.json says."""
        return self.run.image_file(self.images["image"][int(row)].as_py())

    @cached_property
    def data_facts(self) -> dict[str, Any]:
        """`data.json` beside the manifest (licence, layout, source); {} if it cannot be found."""
        path = self.run.data_root() / "data.json"
        found = read_json(path, "data set") if path.is_file() else {}
        return found if isinstance(found, dict) else {}

    # ---- embeddings, SAEs and codes

    @cached_property
    def sites(self) -> list[str]:
        """The sites with a fitted SAE, in alphabetical order."""
        return sorted(stage.partition(":")[2] for stage in self.stages if stage.startswith("fit:"))

    @cached_property
    def has_pooled(self) -> bool:
        """Whether the run has pooled embeddings."""
        return (self.run.files.embeddings(POOLED) / "store.json").is_file()

    def store(self, site: str) -> ActivationStore:
        """Return the activation store of a site."""
        self.run.require("embed")
        return ActivationStore.open(self.run.files.embeddings(site))

    @cached_property
    def pooled(self) -> np.ndarray:
        """Pooled unit embeddings (n, d) float32."""
        return self.store(POOLED).read()[0]

    def patch_activations(self, site: str, row: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the stored patch activations of one image, (tokens, d) float32, and the grid (h, w)."""
        store = self.store(site)
        if not store.meta.get("grid"):
            raise EvidenceError(f"{site} has no grid of patches: no map can be drawn")
        rows = store.rows()
        place = np.flatnonzero(rows.image_rows == row)
        if not len(place):
            raise EvidenceError(f"image {row} has no stored activations at {site}")
        height, width = store.meta["grid"]
        return rows.take(place[0] * rows.tokens + np.arange(rows.tokens)), (height, width)

    def codes(self, site: str) -> Codes:
        """Return the codes of all images at a site, memory-mapped."""
        if site not in self._codes:
            self.run.require(f"fit:{site}")
            self._codes[site] = Codes(self.run.files.codes(site))
        return self._codes[site]

    def sae(self, site: str) -> ThresholdSAE | TopKSAE:
        """Return the SAE of a site (this imports torch)."""
        if site not in self._saes:
            from .inference.model import load_sae

            self.run.require(f"fit:{site}")
            self._saes[site] = load_sae(self.run.files.sae(site))
        return self._saes[site]

    def sae_metrics(self, site: str) -> dict[str, Any]:
        """Return the figures that the fit of a site wrote."""
        return self._json(self.run.files.sae_metrics(site), f"fit:{site}")

    def reference(self, site: str) -> ReferenceFiles | None:
        """Return the files of the reference of the model, if the SAE of a site is its dictionary; else None.

        StaleArtifactError if the reference of this installation is another one.
        """
        if self.stage_that_wrote(self.run.files.sae_metrics(site)) is None:
            return None
        facts = self.sae_metrics(site).get("reference")
        if facts is None:
            return None
        files = ReferenceFiles.of_model(facts["model"])
        if files is None or files.sha256 != facts["sha256"]:
            raise StaleArtifactError(
                f"the SAE at {site} is of a reference that this version of dermaudit does not ship",
                f"run: {self.run.remake_command(f'fit:{site}')}",
            )
        return files

    def agreement(self, site: str) -> np.ndarray | None:
        """Return how well the fits of a consensus dictionary agree on each of its first latents (c,), as the mean
        cosine; None for an SAE of one fit.
        """
        path = self.run.files.consensus(site)
        if self.stage_that_wrote(path) is None:
            return None
        return np.array(self._json(path, f"fit:{site}")["agreement"])

    def n_concepts(self, site: str) -> int:
        """Return how many of the first latents of a site can stand for a concept: all, but those of the residual
        dictionary after a consensus.
        """
        agreement = self.agreement(site)
        return (
            len(agreement)
            if agreement is not None and len(agreement)
            else self.codes(site).shape[1]
        )

    def is_current(self, stage: str) -> bool:
        """Whether the run has a record, and it is of what the run contains now."""
        if stage not in self.stages:
            return False
        try:
            self.run.require(stage)
        except StaleArtifactError:
            return False
        return True

    def stability(self, site: str) -> dict[str, Any] | None:
        """Return how the SAE of a site compares with other seeds, or {"reason": …}; None where this was
        never measured.
        """
        stage = f"seeds:{site}"
        if stage not in self.stages:
            return None
        try:
            return self._json(self.run.files.stability(site), stage)
        except StaleArtifactError:
            return {"reason": "the other seeds are of an earlier fit: give fit --seeds again"}

    def halves(self, site: str) -> list[ThresholdSAE]:
        """Return the consensus dictionaries of the two halves of the groups; [] where `fit` made none, or
        of an earlier SAE (this imports torch).
        """
        from .inference.model import ThresholdSAE

        folders = [self.run.files.half(site, number) for number in (1, 2)]
        wrote = [self.stage_that_wrote(folder / "cfg.json") for folder in folders]
        if None in wrote or not self.is_current(f"seeds:{site}"):
            return []
        return [ThresholdSAE.load(folder) for folder in folders]

    # ---- concepts

    @cached_property
    def label_rows(self) -> list[dict[str, Any]]:
        """The rows of labels.parquet: the best latent of each known concept."""
        return self._table(self.run.files.labels, "annotate").to_pylist()

    @cached_property
    def concepts(self) -> list[dict[str, Any]]:
        """The rows of concepts.parquet: one for each live latent."""
        return self._table(self.run.files.concepts, "name").to_pylist()

    @cached_property
    def naming(self) -> dict[str, Any]:
        """The figures of the naming, naming.json."""
        return self._json(self.run.files.naming, "name")

    @cached_property
    def bottlenecks(self) -> list[dict[str, Any]]:
        """The rows of bottlenecks.parquet. EvidenceError with the reason where there are none."""
        self._refuse_if_reason(self.run.files.bottlenecks_reason, "compare")
        return self._table(self.run.files.bottlenecks, "compare").to_pylist()

    @property
    def heads(self) -> list[str]:
        """The names of the heads of the run, in alphabetical order. Errors: those of `Run.require`."""
        if "heads" not in self.stages:
            return []
        outputs = self.run.require("heads")["outputs"]
        return sorted(Path(name).stem for name in outputs if name.endswith(".safetensors"))

    def head(self, name: str = "label") -> LinearHead:
        """Return a head of the run. EvidenceError with the reason where none could be fitted."""
        self._refuse_if_reason(self.run.files.head_reason(name), "heads")
        return LinearHead.load(self.verified(self.run.files.head(name), "heads"))

    # ---- suppression

    @cached_property
    def verdict(self) -> list[dict[str, Any]]:
        """The verdict on each artifact, with its figures. Errors: those of `Run.require`."""
        rows = self._table(self.run.files.verdict, "verdict").to_pylist()
        return [{**row, "figures": json.loads(row["figures"])} for row in rows]

    @cached_property
    def suppressions(self) -> list[str]:
        """The concepts whose suppression was tried: those with a measured effect first, of them those
        with a recipe; then those that could not be measured.
        """
        files = self.run.files
        tried = [stage.partition(":")[2] for stage in self.stages if stage.startswith("recipe:")]
        return sorted(
            tried,
            key=lambda concept: (
                self.stage_that_wrote(files.suppressed_images(concept)) is None,
                not self.has_recipe(concept),
                concept,
            ),
        )

    def has_recipe(self, concept: str) -> bool:
        """Whether the run has a suppression recipe for a concept."""
        return self.stage_that_wrote(self.run.files.recipe(concept)) is not None

    def suppression(self, concept: str) -> dict[str, Any]:
        """Return the figures of a suppression. EvidenceError with the reason where there is none."""
        stage = f"recipe:{concept}"
        self._refuse_if_reason(self.run.files.suppression_reason(concept), stage)
        return self._json(self.run.files.effects(concept), stage)

    def suppressed_rows(self, concept: str) -> list[dict[str, Any]]:
        """Return a row for each image that the figures are of. EvidenceError if nothing was measured."""
        path = self.run.files.suppressed_images(concept)
        if self.stage_that_wrote(path) is None and "measured_on" in self.suppression(concept):
            raise EvidenceError("the images that it was measured on are those of the reference")
        return self._table(path, f"recipe:{concept}").to_pylist()
