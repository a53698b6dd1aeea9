"""How far drawing an artifact onto images moves the prediction of the head of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import MIN_CELL, GroupBootstrap, percentile_interval

from ..drawing import drawn_embeddings
from ..evidence.cross_fit import TrapData
from ..suppression.insertion import INSERTIONS

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

    from ..suppression.head import Head

RANDOM_DIRECTIONS = 100
DRAWS = 1000


@dataclass(frozen=True)
class DrawnChange:
    """`change`: mean change of p(target) when the artifact is drawn onto `n` images that lack it, with its
    95 % interval over groups. `random_beaten` of RANDOM_DIRECTIONS random directions change it less, each added
    to the embeddings with the length of the change that drawing makes.
    """

    change: float
    change_ci: tuple[float, float]
    random_beaten: int
    n: int


def measure_drawn(
    run: RunData, concept: str, data: TrapData, head: Head, target: str, tower: HookedTower
) -> DrawnChange:
    """Draw the artifact onto images outside the train split that lack it.

    Raises EvidenceError for an artifact that cannot be drawn, and for too few images.
    """
    from dermaudit.phantom import ARTIFACTS

    if concept not in ARTIFACTS:
        raise EvidenceError(f"{concept} cannot be drawn")
    free = np.flatnonzero(data.scored & (data.a == 0))[:INSERTIONS]
    if len(free) < MIN_CELL:
        raise EvidenceError(
            f"n too small to draw {concept}: {len(free)} images without it outside the train split",
            f"at least {MIN_CELL} are needed",
            {"without": len(free)},
        )
    assert data.row is not None  # of a run
    return change_by_drawing(
        data.x[free],
        drawn_embeddings(run, concept, data.row[free], tower, data.seed),
        data.groups[free],
        head,
        target,
        data.seed,
    )


def change_by_drawing(
    x: np.ndarray, drawn: np.ndarray, groups: np.ndarray, head: Head, target: str, seed: int
) -> DrawnChange:
    """Compare the embeddings (n, d) of images before and after drawing."""
    column = head.classes.index(target)
    before = head.probs(x)[:, column]
    change = head.probs(drawn)[:, column] - before
    length = np.linalg.norm(drawn - x, axis=1, keepdims=True)
    generator = np.random.default_rng([seed, 7])
    beaten = 0
    for _ in range(RANDOM_DIRECTIONS):
        direction = generator.normal(size=x.shape[1])
        moved = x + length * direction / np.linalg.norm(direction)
        moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        random_change = head.probs(moved.astype(np.float32))[:, column] - before
        beaten += bool(abs(random_change.mean()) < abs(change.mean()))
    weights = GroupBootstrap(groups, DRAWS, seed).matrix()
    return DrawnChange(
        change=float(change.mean()),
        change_ci=percentile_interval((weights @ change) / weights.sum(1)),
        random_beaten=beaten,
        n=len(x),
    )
