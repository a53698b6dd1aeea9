"""Trap splits: train and test in which an artifact and the label are correlated the opposite way.

P(artifact | positive) = strength and P(artifact | rest) = 1 − strength in head training, swapped in
test (Bissoto et al., arXiv 2004.11457). Drawn from labelled rows; nothing is duplicated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import MIN_CELL

MIN_CHOICE = 5  # images of each group among the rows of choice


@dataclass(frozen=True)
class Trap:
    """Row numbers. `fit`: head training; `choose`: rows for every choice, all labelled val images and
    the train images that the head does not see (choices weigh the four groups alike, so they need
    many of each, not the trap's proportions); `test`: swapped where that leaves enough in every
    group, else every labelled test image (the accuracy of a group does not depend on how many of
    each there are); `test_is` says which. `y`, `a` are (n,) over all rows.
    """

    fit: np.ndarray
    choose: np.ndarray
    test: np.ndarray
    test_is: str
    y: np.ndarray
    a: np.ndarray

    def cells(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The four groups of `rows` by label and artifact."""
        return {
            f"y={i} a={j}": rows[(self.y[rows] == i) & (self.a[rows] == j)]
            for i in (0, 1)
            for j in (0, 1)
        }

    def weights(self, rows: np.ndarray) -> np.ndarray:
        """Weights (m,) of `rows` by which the two groups of a label count the same."""
        weight = np.zeros(len(rows))
        for cell in self.cells(rows).values():
            weight[np.isin(rows, cell)] = 1 / max(1, len(cell))
        return weight


def make_trap(
    y: np.ndarray,
    a: np.ndarray,
    splits: np.ndarray,
    *,
    groups: np.ndarray | None = None,
    strength: float = 0.9,
    seed: int = 0,
) -> Trap:
    """Draw the trap. With `groups`, no train row of a group that the head sees is a row of choice.
    EvidenceError with the counts when a test cell has under 30 images or the head would be fitted
    on fewer than 30 of one kind.
    """
    generator = np.random.default_rng(seed)
    known = np.isfinite(y) & np.isfinite(a)
    fit = _draw(y, a, np.flatnonzero(known & (splits == "train")), strength, generator)
    spare = np.setdiff1d(np.flatnonzero(known & (splits == "train")), fit)
    if groups is not None:
        spare = spare[~np.isin(groups[spare].astype(str), groups[fit].astype(str))]
    choose = np.concatenate([np.flatnonzero(known & (splits == "val")), spare])
    every = np.flatnonzero(known & (splits == "test"))
    test, test_is = _draw(y, a, every, 1 - strength, generator), "swapped"
    if min(((y[test] == i) & (a[test] == j)).sum() for i in (0, 1) for j in (0, 1)) < MIN_CELL:
        test, test_is = every, "every labelled test image"
    trap = Trap(np.sort(fit), np.sort(choose), np.sort(test), test_is, y, a)
    counts = {name: len(rows) for name, rows in trap.cells(trap.test).items()}
    small = {name: n for name, n in counts.items() if n < MIN_CELL}
    if small:
        raise EvidenceError(
            "n too small for worst groups: "
            + ", ".join(f"{k}: {n}" for k, n in small.items())
            + f" test images (at least {MIN_CELL} in every cell)",
            "give more images, or a weaker --strength",
            counts,
        )
    for value in (0, 1):
        if (y[trap.fit] == value).sum() < MIN_CELL:
            raise EvidenceError(
                f"too few images of class {value} to fit a head: {int((y[trap.fit] == value).sum())}",
                "give more images",
                counts,
            )
    for name, rows in trap.cells(trap.choose).items():
        if len(rows) < MIN_CHOICE:
            raise EvidenceError(
                f"too few images to choose latents: {len(rows)} of {name} in val and spare train rows",
                "give more images",
                counts,
            )
    return trap


def _draw(
    y: np.ndarray, a: np.ndarray, rows: np.ndarray, strength: float, generator: np.random.Generator
) -> np.ndarray:
    """The largest subset of `rows` with P(a | y=1) = strength and P(a | y=0) = 1 − strength."""
    picked = []
    for value, share in ((1, strength), (0, 1 - strength)):
        with_a = rows[(y[rows] == value) & (a[rows] == 1)]
        without = rows[(y[rows] == value) & (a[rows] == 0)]
        total = min(
            len(with_a) / share if share > 0 else np.inf,
            len(without) / (1 - share) if share < 1 else np.inf,
        )
        picked.append(generator.permutation(with_a)[: round(total * share)])
        picked.append(generator.permutation(without)[: round(total * (1 - share))])
    return np.concatenate(picked)
