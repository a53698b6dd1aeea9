"""What the evidence is computed from: a run's images, truth, splits, pooled embeddings and codes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.run.directory import Run

from . import ActivationStore, Codes, ThresholdSAE, TopKSAE, load_sae

POOLED = "visual.pooled"


@dataclass(frozen=True)
class Truth:
    """Labels of one concept over all rows: `values` (n,) 1, 0 or nan = unknown."""

    name: str
    type: str
    values: np.ndarray

    def known(self, rows: np.ndarray) -> np.ndarray:
        """The rows (of a boolean mask) whose truth is known, as indices."""
        return np.flatnonzero(rows & np.isfinite(self.values))


class RunData:
    """Reads a run; arrays are loaded when first asked for and kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.table: pa.Table = pq.read_table(run.file("images.parquet"))
        self.n = self.table.num_rows

    def strings(self, name: str) -> np.ndarray:
        """A column as words, '' where blank; all '' when the column is absent."""
        if name not in self.table.column_names:
            return np.full(self.n, "", dtype=object)
        values = self.table[name].to_pylist()
        return np.array(["" if value is None else str(value) for value in values], dtype=object)

    @cached_property
    def splits(self) -> np.ndarray:
        return self.strings("split")

    @cached_property
    def groups(self) -> np.ndarray:
        return self.strings("group")

    @cached_property
    def labels(self) -> np.ndarray:
        return self.strings("label")

    def rows(self, *splits: str) -> np.ndarray:
        """Boolean mask of the rows of these splits."""
        return np.isin(self.splits, splits)

    @cached_property
    def truth(self) -> dict[str, Truth]:
        """Known concepts: `artifact:*`, `concept:*` columns, then each diagnosis against the rest.

        A probability counts as 1 from .5 on; blank stays unknown."""
        found: dict[str, Truth] = {}
        for column in self.table.column_names:
            kind, _, name = column.partition(":")
            if kind in ("artifact", "concept") and name:
                raw = self.table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
                values = np.where(np.isfinite(raw), (raw >= 0.5).astype(float), np.nan)
                found[name] = Truth(name, "artifact" if kind == "artifact" else "clinical", values)
        for label in sorted(set(self.labels) - {""}):
            if label not in found:
                values = np.where(self.labels == "", np.nan, (self.labels == label).astype(float))
                found[label] = Truth(label, "diagnosis", values)
        return found

    @cached_property
    def sites(self) -> list[str]:
        return sorted(path.parent.name for path in self.run.path.glob("sae/*/cfg.json"))

    @cached_property
    def pooled(self) -> np.ndarray:
        """Pooled unit embeddings (n, d) float32."""
        return ActivationStore.open(self.run.file("embeddings", POOLED)).read()[0]

    @cached_property
    def codes(self) -> dict[str, Codes]:
        return {site: Codes(self.run.file("codes", site)) for site in self.sites}

    def sae(self, site: str) -> ThresholdSAE | TopKSAE:
        return load_sae(self.run.file("sae", site))

    def image_path(self, row: int) -> Path:
        return self.run.image_file(self.table["image"][int(row)].as_py())
