"""The published way of computing intervals, to compare ours with it; not for reporting figures.

DermFM-Zero (arXiv 2602.10624) draws 1,000 resamples of images with numpy's legacy generator, seed 42
for every model, prints the mean of the resamples as the point and their percentiles as the interval,
replaces a lower bound of 0, and gives one paired t-test on correctness for all seven measures.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermaudit.errors import UserInputError

from ..inputs.saved_predictions import Predictions
from .metrics import METRICS, metric_draws

N_DRAWS = 1000
SEED = 42
REFERENCE = "DermFM-Zero"
PUBLISHED_FILE = "published_intervals.csv"


@dataclass(frozen=True)
class LegacyCell:
    """One cell of the published table.

    `mean` of the resamples, `low` and `high` their 2.5 and 97.5 percentiles, `p` of the t-test, and whether
    the lower bound was 0 and therefore replaced (`floored`).
    """

    mean: float
    low: float
    high: float
    p: float | None
    floored: bool = False

    def text(self) -> str:
        """Return the cell as it is printed."""
        return f"{self.mean:.4f} ({self.low:.4f}-{self.high:.4f})"

    def p_text(self) -> str:
        """Return the p value as it is printed, "" without one."""
        if self.p is None:
            return ""
        return f"{self.p:.3f}" if self.p >= 0.001 else f"{self.p:.2e}"


def legacy_weights(n: int, n_draws: int = N_DRAWS, seed: int = SEED) -> np.ndarray:
    """Return how often each of n images occurs in each resample: (n_draws, n)."""
    generator = np.random.RandomState(seed)
    drawn = (generator.choice(n, n, replace=True) for _ in range(n_draws))
    return np.stack([np.bincount(rows, minlength=n) for rows in drawn]).astype(np.float64)


def legacy_cells(predictions: Predictions, reference: Predictions | None) -> dict[str, LegacyCell]:
    """Return {measure: cell} of one model. `reference`: the model of the t-test, None for itself."""
    weights = legacy_weights(predictions.n)
    draws = metric_draws(predictions.truth, predictions.predicted, predictions.probs, weights)
    p = None
    if reference is not None:
        from scipy.stats import ttest_rel

        right = [(m.predicted == m.truth).astype(float) for m in (reference, predictions)]
        p = float(ttest_rel(*right).pvalue)
    cells = {}
    for k, metric in enumerate(METRICS):
        mean = float(np.nanmean(draws[:, k]))
        low, high = (float(v) for v in np.nanpercentile(draws[:, k], [2.5, 97.5]))
        floored = low <= 0
        cells[metric] = LegacyCell(
            mean, max(0.1 * mean, 1e-6) if floored else low, high, p, floored
        )
    return cells


@dataclass(frozen=True)
class Agreement:
    """How our cells agree with the published table.

    Cells and p values that were compared, those equal in all printed digits, and the largest difference of
    a number in a cell.
    """

    cells: int
    equal: int
    p_cells: int
    p_equal: int
    largest: float
    differing: tuple[str, ...]


def read_published(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Return {(dataset, model): {measure or measure_p_value: as printed}}. Errors: UserInputError."""
    with path.open(encoding="utf-8-sig", newline="") as handle:
        rows = list(csv.DictReader(handle))
    needed = ["Dataset", "Model", *(m.upper() for m in METRICS)]
    missing = [name for name in needed if rows and name not in rows[0]]
    if missing or not rows:
        raise UserInputError(
            f"{path} has no {'column ' + missing[0] if missing else 'row'}",
            "it is the table of DermFM-Zero's bootstrap: Dataset,Model,ACCURACY,ACCURACY_p_value,…",
        )
    return {
        (row["Dataset"], row["Model"]): {k.lower(): v or "" for k, v in row.items() if k}
        for row in rows
    }


def agreement(
    found: dict[tuple[str, str], dict[str, LegacyCell]],
    published: dict[tuple[str, str], dict[str, str]],
) -> Agreement:
    """Compare the cells of the models that both tables have."""
    cells = equal = p_cells = p_equal = 0
    largest, differing = 0.0, []
    for key, measures in found.items():
        for metric, cell in measures.items():
            printed = published.get(key, {}).get(metric)
            if printed is None:
                continue
            cells += 1
            if printed == cell.text():
                equal += 1
            else:
                differing.append(f"{'/'.join(key)} {metric}: {cell.text()}, published {printed}")
            numbers = [
                float(v)
                for v in printed.replace("(", " ").replace(")", "").replace("-", " ").split()
            ]
            ours = (cell.mean, cell.low, cell.high)
            if len(numbers) == 3:
                largest = max(largest, *(abs(a - b) for a, b in zip(ours, numbers, strict=True)))
            printed_p = published[key].get(f"{metric}_p_value", "")
            if printed_p and cell.p is not None and math.isfinite(cell.p):
                p_cells += 1
                p_equal += printed_p == cell.p_text()
    return Agreement(cells, equal, p_cells, p_equal, largest, tuple(differing))
