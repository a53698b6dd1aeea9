"""A figure before and after suppression, with the interval of its change over groups."""

from __future__ import annotations

from typing import Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import TrapData
from dermaudit.stats.intervals import GroupBootstrap, percentile_interval


def draw_weights(data: TrapData, rows: np.ndarray, draws: int) -> np.ndarray:
    """Return the weights (1 + draws, n) of rows of `data`: the set itself, then every draw of groups."""
    weights = GroupBootstrap(data.groups[rows], draws, data.seed).matrix()
    return np.vstack([np.ones(len(rows)), weights])


def change_of(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Return {"before", "after", "ci" of the change, 95 %} of a figure for each row of `draw_weights`."""
    return {
        "before": float(before[0]),
        "after": float(after[0]),
        "ci": list(percentile_interval((after - before)[1:])),
    }
