"""The images of one split, as the probes, the truth report and monosemanticity read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class EvaluationImages:
    """Codes csr (n, d_sae) ≥ 0 (of patch tokens their maximum), groups (n,), and what is known of them.

    `truth` is {label: (n,) of 1, 0, nan = unknown}; `x` (n, d) are the pooled embeddings, or None.
    """

    codes: Any
    groups: Sequence[object] | np.ndarray
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    x: np.ndarray | None = None

    def finite(self, embeddings: np.ndarray | None = None) -> np.ndarray:
        """Return a mask (n,) of the images whose codes and embeddings are finite."""
        codes = self.codes.tocsr()
        finite = np.ones(codes.shape[0], dtype=bool)
        broken = ~np.isfinite(codes.data)
        finite[np.repeat(np.arange(len(finite)), np.diff(codes.indptr))[broken]] = False
        for rows in (self.x, embeddings):
            if rows is not None:
                finite &= np.isfinite(rows).all(1)
        return finite

    def take(self, index: np.ndarray) -> EvaluationImages:
        """Return some of the images, by a mask or by number."""
        return EvaluationImages(
            self.codes.tocsr()[index],
            np.asarray(self.groups)[index],
            {name: values[index] for name, values in self.truth.items()},
            None if self.x is None else self.x[index],
        )
