"""What a suppression does: chosen on other rows than it is measured on, beside random latents.

For a trap head (fitted where the artifact predicts the label), before and after: accuracy of the
worst of the four groups, AUROC on images without artifacts, and 20 sets of random latents that fire
equally often. The operating point is the threshold with the best mean accuracy of the four groups on
the rows of choice, before and after alike; the figures at the unchanged threshold stand beside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import LinearHead, fit_probe, probe_score
from dermaudit.sae.inference.model import LinearSAE
from dermaudit.stats.intervals import GroupBootstrap, auprc_table, auroc, percentile_interval

from .editor import Editor
from .trap import Trap

MAX_LATENTS = 12
CANDIDATES = 24
MIN_GAIN = 0.002  # of the score of choice, for a further latent
RANDOM_SETS = 20
CLEAN_TOLERANCE = 0.01


@dataclass
class ChosenLatents:
    """The latents S of a recipe, each with the figures that it was chosen by."""

    latents: list[int]
    evidence: list[dict[str, float]]
    n_candidates: int


def rank_latents(
    codes: np.ndarray, a: np.ndarray, direction: np.ndarray, sae: LinearSAE
) -> list[tuple[int, dict[str, float]]]:
    """Candidates for a concept, best first: latents whose codes (n, d_sae) rank its images (a: 0/1)
    clearly above prevalence, by the effect |(E[z|a=1] − E[z|a=0]) · (w·W_dec)| on the head (SHIFT,
    arXiv 2403.19647, as in SAEBench). direction (d,) is d logit / d x."""
    prevalence = float(a.mean())
    ap = auprc_table(codes, a[:, None].astype(float))[0]
    gap = codes[a == 1].mean(0) - codes[a == 0].mean(0)
    effect = gap * (sae.W_dec.numpy() @ direction)
    margin = prevalence + 2 * np.sqrt(prevalence * (1 - prevalence) / len(a))
    found = [
        (int(j), {"auprc": float(ap[j]), "prevalence": prevalence, "effect": float(effect[j])})
        for j in np.flatnonzero(np.nan_to_num(ap) > margin)
        if gap[j] > 0
    ]
    return sorted(found, key=lambda entry: (-abs(entry[1]["effect"]), entry[0]))


def choose_latents(
    editor: Editor, head: LinearHead, x: np.ndarray, trap: Trap, codes: np.ndarray
) -> ChosenLatents:
    """S on the rows of choice: latents are added while they lift the score, the best one first, from
    nothing and from the best prefix of the ranking (siblings may help only together); the better of
    the two ways. EvidenceError when nothing helps."""
    rows = trap.choose
    ranked = rank_latents(codes[rows], trap.a[rows], head.direction()[1] * 2, editor.sae)
    if not ranked:
        raise EvidenceError(
            "no latent ranks the concept's images above chance on the rows of choice",
            "the SAE may be too small, or the model may not see the concept",
            {"candidates": 0},
        )
    listed = [latent for latent, _ in ranked[:CANDIDATES]]

    def value(latents: list[int]) -> float:
        return _choice_score(head, editor, latents, x[rows], trap, rows)

    prefixes = [listed[:i] for i in range(min(len(listed), MAX_LATENTS) + 1)]
    candidates = [_grow(start, listed, value) for start in ([], max(prefixes, key=value))]
    best_set, best = max(candidates, key=lambda candidate: candidate[1])
    if best < value([]) + MIN_GAIN:
        top = ", ".join(f"{j} (AUPRC {w['auprc']:.2f})" for j, w in ranked[:3])
        raise EvidenceError(
            f"suppressing the best latents does not lift the worst group on the rows of choice: {top}",
            "the head may not lean on this concept",
            {"candidates": len(ranked)},
        )
    figures = dict(ranked)
    evidence = [{k: round(v, 6) for k, v in figures[j].items()} for j in best_set]
    return ChosenLatents(best_set, evidence, len(ranked))


def _grow(
    start: list[int], listed: list[int], value: Callable[[list[int]], float]
) -> tuple[list[int], float]:
    """Add the latent that lifts `value` most, while one does by MIN_GAIN."""
    chosen, reached = list(start), value(start)
    while len(chosen) < MAX_LATENTS:
        scored = [(value([*chosen, j]), -i, j) for i, j in enumerate(listed) if j not in chosen]
        if not scored or max(scored)[0] < reached + MIN_GAIN:
            break
        reached, _, latent = max(scored)
        chosen.append(latent)
    return chosen, reached


def _choice_score(
    head: LinearHead,
    editor: Editor,
    latents: list[int],
    x: np.ndarray,
    trap: Trap,
    rows: np.ndarray,
) -> float:
    """Mean over label of the worse of its two groups (less noisy than the minimum of four small
    cells), at the operating point of these rows; AUROC of images without the artifact may not fall."""
    y, a, weight = trap.y[rows], trap.a[rows], trap.weights(rows)
    score = probe_score(head, editor.rows(latents, x))
    clean = a == 0
    if latents and 0 < y[clean].sum() < clean.sum():
        before = auroc(y[clean], probe_score(head, x[clean]))
        if auroc(y[clean], score[clean]) < before - CLEAN_TOLERANCE:
            return -np.inf
    correct = (score > operating_point(y, score, weight)) == (y == 1)
    cells = [[correct[(y == i) & (a == j)].mean() for j in (0, 1)] for i in (0, 1)]
    return float(np.mean([min(pair) for pair in cells]))


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


@dataclass
class Measurement:
    """One pipeline on the test rows: per group accuracy and scores."""

    score: np.ndarray
    threshold: float
    groups: dict[str, float]

    @property
    def worst(self) -> float:
        return min(self.groups.values())


def measure(
    head, editor: Editor | None, latents, x, trap: Trap, threshold: float | None = None
) -> Measurement:
    """Accuracy of each group of the test rows; the threshold comes from the rows of choice. Without
    latents no editor is needed."""

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
    chosen: ChosenLatents,
    *,
    active: np.ndarray,
    clean: np.ndarray,
    groups: np.ndarray,
    seed: int,
    n_draws: int = 1000,
) -> dict[str, Any]:
    """The figures of `suppression` (docs/formats.md) on the test rows. `clean` (m,) are test rows
    without artifacts; `active` (d_sae,) how often each latent fires."""
    before = measure(head, None, [], x, trap)
    after = measure(head, editor, chosen.latents, x, trap)
    fixed = measure(head, editor, chosen.latents, x, trap, threshold=before.threshold)
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
        for chosen_set in matched_random_sets(active, chosen.latents, seed=seed)
    ]
    out: dict[str, Any] = {
        "latents": chosen.latents,
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
    }
    out.update(_collateral(editor, head, x, trap, chosen.latents, clean))
    return out


def _collateral(
    editor: Editor, head, x, trap: Trap, latents: list[int], clean: np.ndarray
) -> dict[str, Any]:
    y = trap.y[clean]
    n = {"clean_n": len(clean), "clean_n_pos": int(np.nansum(y))}
    if min(n["clean_n_pos"], len(clean) - n["clean_n_pos"]) < 10:
        reason = f"n too small: {n['clean_n_pos']} of {len(clean)} artifact-free test images are positive"
        return {**n, "clean_auroc_delta": None, "clean_auroc_delta_reason": reason}
    before = probe_score(head, x[clean])
    after = probe_score(head, editor.rows(latents, x[clean]))
    return {**n, "clean_auroc_delta": auroc(y, after) - auroc(y, before)}


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
    win back. `train` are the row numbers to draw from."""
    known = train[np.isfinite(trap.y[train]) & np.isfinite(trap.a[train])]
    rows = np.random.default_rng(seed).permutation(known)[: len(trap.fit)]
    head = fit_probe(x[rows], trap.y[rows], groups[rows], seed=seed)
    score = probe_score(head, x[trap.choose])
    seen = np.isin(
        trap.choose, rows, invert=True
    )  # no threshold from rows that the head was fitted on
    chosen = trap.choose[seen]
    threshold = operating_point(trap.y[chosen], score[seen], trap.weights(chosen))
    return measure(head, None, [], x, trap, threshold).worst
