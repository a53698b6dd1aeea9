"""How far a head that was fitted on a run leans on a concept.

Three figures, each from images that neither model nor head was fitted on:

- *By suppression*: the mean change of p(target) when a concept latent is suppressed in images with the
  concept. The latent was fitted on train images without the target. Beside it, random latents that fire as
  often and change the embedding as much. This figure decides.
- *Between the groups*: AUROC of the target with the concept against the rest without it, minus AUROC of the
  target without it against the rest with it. 0 where the concept does not move the score; images with the
  concept may differ in other ways, so that this alone proves nothing.
- *By drawing* (drawn.py): drawing also covers what is below it, and a drawn artifact may look unlike a real one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import (
    MIN_CELL,
    GroupBootstrap,
    auroc,
    auroc_draws,
    auroc_interval,
    percentile_interval,
)

from ..evidence.cross_fit import TrainingRows, TrapData
from ..evidence.edited_head import random_suppressor
from ..suppression.editor import Edit, editor_of
from ..suppression.methods.concept_latent import ConceptLatentMethod

if TYPE_CHECKING:
    from dermaudit.sae import LatentSuppressor

    from ..suppression.head import Head

RANDOM_LATENTS = 100
#: A head does not lean on what changes its probability by less than one percentage point on average.
MIN_CHANGE = 0.01
DRAWS = 1000
Interval = tuple[float, float]
_NOWHERE = (float("nan"), float("nan"))


@dataclass(frozen=True)
class GroupAurocs:
    """AUROC of the target within the images with the concept and within those without it; across:
    `target_with`, the target with it against the rest without it; `target_without`, the target without it
    against the rest with it (the cross-group AUROC); `difference`: the first minus the second of these. All
    are nan where one of the four groups has fewer than MIN_CELL images.
    """

    within_with: float = float("nan")
    within_without: float = float("nan")
    target_with: float = float("nan")
    target_without: float = float("nan")
    difference: float = float("nan")
    difference_ci: Interval = _NOWHERE


@dataclass(frozen=True)
class Reliance:
    """`seen`: AUROC of the concept latent for the concept, on images without the target. `change`: mean change
    of p(target) by suppression, over `n` images with the concept; `random_beaten` of RANDOM_LATENTS random
    latents change it less; `decisions`: the share of them whose decision for or against the target changes, and
    `decisions_random` the same by a random latent on average. Intervals are 95 %, over groups.
    """

    seen: float
    seen_ci: Interval
    aurocs: GroupAurocs
    change: float
    change_ci: Interval
    random_beaten: int
    decisions: float
    decisions_ci: Interval
    decisions_random: float
    n: int

    @property
    def relied_on(self) -> bool:
        """Whether suppression changes the prediction: by MIN_CHANGE, beyond chance, and beyond random latents."""
        low, high = self.change_ci
        beyond_chance = low > 0 or high < 0
        beyond_random = self.random_beaten >= 0.95 * RANDOM_LATENTS
        return abs(self.change) >= MIN_CHANGE and beyond_chance and beyond_random


def measure_reliance(data: TrapData, head: Head, target: str) -> Reliance:
    """Measure how far a head leans on the artifact of `data`, whose label and artifact are all known.

    The head, and the model, were fitted on rows that are not `scored`. Raises EvidenceError with the numbers
    where there are too few images, or the concept is not told apart.
    """
    fit = TrainingRows(data, 0, np.flatnonzero(~data.scored))
    scored = np.flatnonzero(data.scored)
    present = scored[data.a[scored] == 1]
    counts = {"with": len(present), "without": len(scored) - len(present)}
    if min(counts.values()) < MIN_CELL:
        raise EvidenceError(
            f"n too small: {counts['with']} images with it and {counts['without']} without, outside the "
            "train split",
            f"at least {MIN_CELL} of each are needed",
            counts,
        )
    chosen = ConceptLatentMethod().choose(fit, Edit())
    editor, _ = editor_of(chosen.sae, Edit(), fit)
    column = head.classes.index(target)
    x = data.x[present]
    before = head.probs(x)

    def shift(edited: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the change of p(target), and whether the decision for or against it changes, by image."""
        after = head.probs(edited)
        flipped = (before.argmax(1) == column) != (after.argmax(1) == column)
        return after[:, column] - before[:, column], flipped

    change, flipped = shift(editor.rows(chosen.latents, x))
    suppressor = editor.module(chosen.latents)
    controls = []
    for number in range(RANDOM_LATENTS):
        control = random_suppressor(fit, suppressor, np.random.default_rng([data.seed, 6, number]))
        controls.append([values.mean() for values in shift(_edited(control, x))])
    random_change, random_flips = np.array(controls).T
    weights = GroupBootstrap(data.groups[present], DRAWS, data.seed).matrix()
    total = weights.sum(1)
    seen, seen_ci = _seen(data, chosen.sae.W_enc[:, 0].numpy(), scored)
    return Reliance(
        seen=seen,
        seen_ci=seen_ci,
        aurocs=_group_aurocs(data, head.logits(data.x[scored])[:, column], scored),
        change=float(change.mean()),
        change_ci=percentile_interval((weights @ change) / total),
        random_beaten=int((np.abs(random_change) < abs(change.mean())).sum()),
        decisions=float(flipped.mean()),
        decisions_ci=percentile_interval((weights @ flipped) / total),
        decisions_random=float(random_flips.mean()),
        n=len(present),
    )


def _seen(data: TrapData, encoder: np.ndarray, scored: np.ndarray) -> tuple[float, Interval]:
    """Return the AUROC, with its interval, of the score of the latent before its threshold."""
    rows = scored[data.y[scored] == 0]
    score = data.x[rows] @ encoder
    interval = auroc_interval(data.a[rows], score, data.groups[rows], seed=data.seed)
    return auroc(data.a[rows], score), interval


def _group_aurocs(data: TrapData, logit: np.ndarray, scored: np.ndarray) -> GroupAurocs:
    y, a = data.y[scored], data.a[scored]
    cells = {(i, j): (y == i) & (a == j) for i in (0, 1) for j in (0, 1)}
    if min(cell.sum() for cell in cells.values()) < MIN_CELL:
        return GroupAurocs()
    weights = GroupBootstrap(data.groups[scored], DRAWS, data.seed).matrix()
    weights = np.vstack([np.ones(len(scored)), weights])  # the first draw is the set itself

    def of(positive: int, negative: int) -> np.ndarray:
        rows = cells[1, positive] | cells[0, negative]
        return auroc_draws(y[rows], logit[rows], weights[:, rows])

    with_, without = of(1, 0), of(0, 1)
    return GroupAurocs(
        within_with=float(of(1, 1)[0]),
        within_without=float(of(0, 0)[0]),
        target_with=float(with_[0]),
        target_without=float(without[0]),
        difference=float(with_[0] - without[0]),
        difference_ci=percentile_interval((with_ - without)[1:]),
    )


def _edited(suppressor: LatentSuppressor, x: np.ndarray) -> np.ndarray:
    return suppressor.apply_to(torch.from_numpy(x)).x.numpy()
