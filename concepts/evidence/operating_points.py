"""Three operating points of a suppression, always stated together.

(a) Threshold-free: the *cross-group AUROC*, positives without the artifact against negatives with it.
(b) The unchanged threshold.
(c) The prevalence-matched threshold: moved so that as many of the fitting rows are called positive as
    before. It needs no labels, and is the same as a correction of the intercept.

Scores come from several folds, each with its own head. Pairs of an AUROC are therefore taken within a
fold only: (Σ_f pairs in order) / (Σ_f pairs).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.stats.intervals import MIN_CELL, auroc_draws

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def prevalence_matched_threshold(
    before: Float[np.ndarray, " n"], threshold: float, after: Float[np.ndarray, " n"]
) -> float:
    """Return the threshold at which as many of `after` (n,) are positive as of `before` at `threshold`: the
    same one where that is so already.
    """
    positive = int((before > threshold).sum())
    if int((after > threshold).sum()) == positive:
        return threshold
    ordered = np.sort(after)[::-1]
    if positive == 0:
        return float(ordered[0])
    if positive == len(ordered):
        return float(np.nextafter(ordered[-1], -np.inf))
    return float((ordered[positive - 1] + ordered[positive]) / 2)


def fold_auroc(
    score: Float[np.ndarray, " n"],
    positive: Bool[np.ndarray, " n"],
    negative: Bool[np.ndarray, " n"],
    fold: Int[np.ndarray, " n"],
    weights: Float[np.ndarray, "draws n"] | None = None,
) -> Float[np.ndarray, " draws"]:
    """Return the AUROC of `positive` rows against `negative` rows over pairs within a fold, for each row
    of `weights` (draws, n); without weights, one value. nan where no fold has a pair.
    """
    weights = np.ones((1, len(score))) if weights is None else weights
    in_order, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    for f in np.unique(fold):
        rows = np.flatnonzero((fold == f) & (positive | negative))
        w, truth = weights[:, rows], positive[rows]
        n = w[:, truth].sum(1) * w[:, ~truth].sum(1)
        if not n.any():
            continue
        value = auroc_draws(truth.astype(float), score[rows], w)
        in_order += np.where(n > 0, np.nan_to_num(value) * n, 0.0)
        pairs += n
    with np.errstate(invalid="ignore", divide="ignore"):
        return in_order / pairs


@dataclass(frozen=True)
class GroupRates:
    """Sensitivity and specificity without (0) and with (1) the artifact, and the number of images of each
    of the four groups. nan where a group has fewer than MIN_CELL images.
    """

    sensitivity: tuple[float, float]
    specificity: tuple[float, float]
    n: dict[str, int]

    @property
    def worst(self) -> float:
        """The lowest of the four: the accuracy of the worst group. nan if one is not measured."""
        return float(np.min([*self.sensitivity, *self.specificity]))


def group_rates(
    decision: Bool[np.ndarray, " n"], y: Float[np.ndarray, " n"], a: Float[np.ndarray, " n"]
) -> GroupRates:
    """Return the rates of a decision for labels y and artifact a (0 or 1) of the same rows."""

    def rate(label: int, artifact: int) -> float:
        rows = (y == label) & (a == artifact)
        return float((decision[rows] == label).mean()) if rows.sum() >= MIN_CELL else float("nan")

    return GroupRates(
        sensitivity=(rate(1, 0), rate(1, 1)),
        specificity=(rate(0, 0), rate(0, 1)),
        n={f"y={i} a={j}": int(((y == i) & (a == j)).sum()) for i in (0, 1) for j in (0, 1)},
    )


@dataclass(frozen=True)
class Flips:
    """How many decisions flip, by their cause; see `flip_cause`."""

    edit: int
    threshold: int
    both: int


def flip_cause(
    before: Bool[np.ndarray, " n"],
    after_fixed: Bool[np.ndarray, " n"],
    after_matched: Bool[np.ndarray, " n"],
    changed: Bool[np.ndarray, " n"],
) -> np.ndarray:
    """Return why each decision flips between the head as it was and the edited head at the
    prevalence-matched threshold, (n,) of str; "" where it does not.

    "edit": the edit flips it, at the unchanged threshold too. "threshold": the moved threshold alone, the
    row was not `changed`. "both": only the two together.
    """
    flipped = before != after_matched
    cause = np.where(
        flipped & (before != after_fixed), "edit", np.where(changed, "both", "threshold")
    )
    return np.where(flipped, cause, "")


def count_flips(cause: np.ndarray) -> Flips:
    """Count the causes that `flip_cause` returns."""
    return Flips(*(int((cause == name).sum()) for name in ("edit", "threshold", "both")))
