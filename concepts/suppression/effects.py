"""What a suppression does: chosen on other rows than it is measured on, beside random latents.

For a trap head (fitted where the artifact predicts the label), before and after: accuracy of the
worst of the four groups, AUROC on images without artifacts, and 20 sets of random latents that fire
equally often. The operating point is the threshold with the best mean accuracy of the four groups on
the rows of choice, before and after alike; the figures at the unchanged threshold are given too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dermaudit.heads import LinearHead, fit_probe, probe_score
from dermaudit.stats.intervals import GroupBootstrap, auroc, percentile_interval

from .editor import Editor
from .figures import CleanFigures, EffectFigures
from .trap import Trap

RANDOM_SETS = 20
MIN_CLEAN = 10  # artifact-free test images of each class, for an AUROC


def operating_point(y: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The threshold with the best balanced accuracy of weighted rows, in the middle of its gap."""
    order = np.argsort(score, kind="stable")
    weight = np.ones(len(y)) if weight is None else weight
    negative, positive = (np.where(y == value, weight, 0.0)[order] for value in (0, 1))
    below_neg = np.concatenate([[0], negative.cumsum()]) / max(negative.sum(), 1e-12)
    above_pos = 1 - np.concatenate([[0], positive.cumsum()]) / max(positive.sum(), 1e-12)
    ordered = score[order]
    between = np.concatenate([[True], ordered[1:] > ordered[:-1], [True]])  # not inside a tie
    at = int(np.argmax(np.where(between, below_neg + above_pos, -np.inf)))
    if at == 0:
        return float(ordered[0] - 1e-6)
    if at == len(ordered):
        return float(ordered[-1] + 1e-6)
    return float((ordered[at - 1] + ordered[at]) / 2)


@dataclass(frozen=True)
class Measurement:
    """One head on the test rows, with or without suppression.

    `score` (m,) are logits, `threshold` the logit from which the target is called, `groups` the
    accuracy of each of the four groups.
    """

    score: np.ndarray
    threshold: float
    groups: dict[str, float]

    @property
    def worst(self) -> float:
        """The lowest accuracy of the groups."""
        return min(self.groups.values())


def measure(
    head, editor: Editor | None, latents, x, trap: Trap, threshold: float | None = None
) -> Measurement:
    """Accuracy of each group of the test rows; the threshold comes from the rows of choice. Without
    latents no editor is needed.
    """

    def score_of(rows: np.ndarray) -> np.ndarray:
        if not latents:
            return probe_score(head, x[rows])
        assert editor is not None
        return probe_score(head, editor.rows(latents, x[rows]))

    if threshold is None:
        chosen = score_of(trap.choose)
        threshold = operating_point(trap.y[trap.choose], chosen, trap.weights(trap.choose))
    score = score_of(trap.test)
    full = np.full(len(trap.y), np.nan)
    full[trap.test] = (score > threshold) == (trap.y[trap.test] == 1)
    groups = {name: float(full[rows].mean()) for name, rows in trap.cells(trap.test).items()}
    return Measurement(score, threshold, groups)


def matched_random_sets(active: np.ndarray, latents: list[int], *, seed: int) -> list[list[int]]:
    """RANDOM_SETS sets of |S| other latents, each drawn among the 12 nearest in how often they fire."""
    generator = np.random.default_rng(seed)
    others = np.setdiff1d(np.flatnonzero(active > 0), latents)
    sets = []
    for _ in range(RANDOM_SETS):
        picked: list[int] = []
        for latent in latents:
            free = np.setdiff1d(others, picked)
            near = free[np.argsort(np.abs(active[free] - active[latent]), kind="stable")[:12]]
            if len(near):
                picked.append(int(generator.choice(near)))
        sets.append(picked)
    return sets


def evaluate(
    editor: Editor,
    head: LinearHead,
    x: np.ndarray,
    trap: Trap,
    latents: list[int],
    *,
    active: np.ndarray,
    clean: np.ndarray,
    groups: np.ndarray,
    seed: int,
    n_draws: int = 1000,
) -> EffectFigures:
    """Return what suppressing `latents` does on the test rows. `clean` (m,) are test rows without
    artifacts; `active` (d_sae,) is how often each latent fires.
    """
    before = measure(head, None, [], x, trap)
    after = measure(head, editor, latents, x, trap)
    fixed = measure(head, editor, latents, x, trap, threshold=before.threshold)
    y = trap.y[trap.test]
    lift = after.worst - before.worst
    bootstrap = GroupBootstrap(groups[trap.test], n_draws, seed)
    right = [(m.score > m.threshold) == (y == 1) for m in (before, after)]
    cells = [np.isin(trap.test, rows) for rows in trap.cells(trap.test).values()]
    draws = []
    for weight in bootstrap.weights():
        with np.errstate(invalid="ignore", divide="ignore"):
            # np.min, not min: a draw that leaves a cell empty is nan whatever the order of cells.
            worst = [
                np.min([(weight[c] * ok[c]).sum() / weight[c].sum() for c in cells]) for ok in right
            ]
        draws.append([worst[0], worst[1], worst[1] - worst[0]])
    spans = [percentile_interval(column) for column in np.array(draws).T]
    lifts = [
        measure(head, editor, chosen_set, x, trap).worst - before.worst
        for chosen_set in matched_random_sets(active, latents, seed=seed)
    ]
    return {
        "latents": latents,
        "worst_group_before": before.worst,
        "worst_group_after": after.worst,
        "worst_group_lift": lift,
        "ci": list(spans[2]),
        "worst_group_before_ci": list(spans[0]),
        "worst_group_after_ci": list(spans[1]),
        "worst_group_after_fixed_threshold": fixed.worst,
        "groups_before": before.groups,
        "groups_after": after.groups,
        "threshold_before": before.threshold,
        "threshold_after": after.threshold,
        "auroc_before": auroc(y, before.score),
        "auroc_after": auroc(y, after.score),
        "random_sets": len(lifts),
        "random_sets_beaten": int(sum(lift > other for other in lifts)),
        "random_lifts": lifts,
        "n": {name: len(rows) for name, rows in trap.cells(trap.test).items()},
        "test_is": trap.test_is,
        "n_fit": len(trap.fit),
        "n_choose": len(trap.choose),
        "n_test": len(trap.test),
        **_collateral(editor, head, x, trap, latents, clean),
    }


def _collateral(
    editor: Editor, head, x, trap: Trap, latents: list[int], clean: np.ndarray
) -> CleanFigures:
    """Return the change of AUROC on the artifact-free rows `clean`."""
    y = trap.y[clean]
    n, n_pos = len(clean), int(np.nansum(y))
    if min(n_pos, n - n_pos) < MIN_CLEAN:
        return {
            "clean_n": n,
            "clean_n_pos": n_pos,
            "clean_auroc_delta": None,
            "clean_auroc_delta_reason": f"n too small: {n_pos} of {n} artifact-free test images are "
            "positive",
        }
    before = probe_score(head, x[clean])
    after = probe_score(head, editor.rows(latents, x[clean]))
    return {
        "clean_n": n,
        "clean_n_pos": n_pos,
        "clean_auroc_delta": auroc(y, after) - auroc(y, before),
    }


def refit_worst(
    editor: Editor, latents: list[int], x: np.ndarray, trap: Trap, groups: np.ndarray, seed: int
) -> float:
    """Worst group when the head is fitted again on suppressed rows (`--refit-head`, facts §0.4)."""
    edited = editor.rows(latents, x)
    head = fit_probe(edited[trap.fit], trap.y[trap.fit], groups[trap.fit], seed=seed)
    return measure(head, None, [], edited, trap).worst


def worst_without_trap(
    x: np.ndarray, trap: Trap, train: np.ndarray, groups: np.ndarray, seed: int
) -> float:
    """Worst group of a head fitted on as many labelled train rows without the trap: what there is to
    win back. `train` are the row numbers to draw from.
    """
    known = train[np.isfinite(trap.y[train]) & np.isfinite(trap.a[train])]
    rows = np.random.default_rng(seed).permutation(known)[: len(trap.fit)]
    head = fit_probe(x[rows], trap.y[rows], groups[rows], seed=seed)
    score = probe_score(head, x[trap.choose])
    # The threshold does not come from rows that the head was fitted on.
    unseen = np.isin(trap.choose, rows, invert=True)
    chosen = trap.choose[unseen]
    threshold = operating_point(trap.y[chosen], score[unseen], trap.weights(chosen))
    return measure(head, None, [], x, trap, threshold).worst
