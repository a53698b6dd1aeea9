"""Figures of several models on the same images: intervals, and paired tests between the models.

All models are resampled by the same draws (whole groups), so that a difference is a difference on
the same patients. p is the two-sided percentile of the paired bootstrap (Efron & Tibshirani 1993,
chapter 15, with one added to both counts); Holm (1979) corrects for all comparisons made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dermaudit.errors import unknown

from .intervals import GroupBootstrap, percentile_interval


@dataclass(frozen=True)
class Comparison:
    """The paired difference of two models: figure of `model` minus figure of `other`.

    `p_holm` is corrected for all comparisons that were made together. nan if the difference is defined in
    too few draws.
    """

    metric: str
    model: str
    other: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


@dataclass(frozen=True)
class Figures:
    """Figures of several models: `points` (models, metrics), `draws` (models, n_draws, metrics).

    Row b of the draws of every model is from the same resample. nan = undefined.
    """

    models: tuple[str, ...]
    metrics: tuple[str, ...]
    points: np.ndarray
    draws: np.ndarray

    @property
    def n_draws(self) -> int:
        """The number of resamples."""
        return self.draws.shape[1]

    def interval(self, model: int, metric: int) -> tuple[float, float]:
        """95 % percentile interval of one figure."""
        return percentile_interval(self.draws[model, :, metric])

    def compare(
        self, metrics: Sequence[str] | None = None, reference: str | None = None
    ) -> list[Comparison]:
        """Every pair of models, or every other model against `reference`, for some metrics.

        Errors: UserInputError for a reference that is not among the models.
        """
        if reference is not None and reference not in self.models:
            raise unknown("reference model", reference, self.models)
        first = None if reference is None else self.models.index(reference)
        n = len(self.models)
        pairs = (
            [(a, b) for a in range(n) for b in range(a + 1, n)]
            if first is None
            else [(a, first) for a in range(n) if a != first]
        )
        columns = [self.metrics.index(m) for m in metrics or self.metrics]
        found = []
        for k in columns:
            for a, b in pairs:
                low, high, p = paired_test(self.draws[a, :, k], self.draws[b, :, k])
                found.append((k, a, b, self.points[a, k] - self.points[b, k], low, high, p))
        corrected = holm([row[-1] for row in found])
        return [
            Comparison(
                self.metrics[k],
                self.models[a],
                self.models[b],
                float(difference),
                low,
                high,
                p,
                float(adjusted),
            )
            for (k, a, b, difference, low, high, p), adjusted in zip(found, corrected, strict=True)
        ]

    def records(self, **columns: Any) -> list[dict[str, Any]]:
        """Return one dict per figure: {**columns, model, metric, value, low, high}; None = undefined."""
        rows = []
        for m, model in enumerate(self.models):
            for k, metric in enumerate(self.metrics):
                low, high = self.interval(m, k)
                row = {"value": self.points[m, k], "low": low, "high": high}
                numbers = {name: plain(value) for name, value in row.items()}
                rows.append({**columns, "model": model, "metric": metric, **numbers})
        return rows


Statistic = Callable[[np.ndarray], np.ndarray]


def bootstrap_figures(
    statistics: dict[str, Statistic], metrics: Sequence[str], n: int, bootstrap: GroupBootstrap
) -> Figures:
    """Return the figures of models by name.

    A statistic takes row weights (draws, n) and returns (draws, len(metrics)); its value at equal weights
    is the point.
    """
    points = [statistic(np.ones((1, n)))[0] for statistic in statistics.values()]
    parts: list[list[np.ndarray]] = [[] for _ in statistics]
    # Draws in the outer loop: a block of weights is made once for all models.
    for weights in bootstrap.blocks():
        for part, statistic in zip(parts, statistics.values(), strict=True):
            part.append(statistic(weights))
    draws = np.stack([np.concatenate(part) for part in parts])
    return Figures(tuple(statistics), tuple(metrics), np.stack(points), draws)


def paired_test(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return (low, high, p) of a − b from paired draws (n_draws,): 95 % interval, two-sided p."""
    difference = a - b
    defined = difference[np.isfinite(difference)]
    low, high = percentile_interval(difference)
    if not np.isfinite(low):
        return low, high, float("nan")
    tail = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return low, high, min(1.0, 2 * (tail + 1) / (len(defined) + 1))


def holm(p: Sequence[float]) -> np.ndarray:
    """Correct p values by Holm's step-down method (Scand. J. Stat. 6:65, 1979).

    nan stays nan and does not count as a comparison.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = [i for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[i]))
        adjusted[i] = highest
    return adjusted


def holm_over(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the same comparisons, corrected as one family."""
    corrected = holm([c.p for c in comparisons])
    return [replace(c, p_holm=float(p)) for c, p in zip(comparisons, corrected, strict=True)]


def least_p(n_draws: int, n_comparisons: int) -> float:
    """Return the smallest corrected p that so many draws can show for so many comparisons."""
    return min(1.0, 2 * n_comparisons / (n_draws + 1))


def plain(value: float) -> float | None:
    """Return a number for JSON: None if it is not finite."""
    return float(value) if np.isfinite(value) else None
