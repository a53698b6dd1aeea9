"""Latents chosen by their effect on a head that was fitted where the artifact predicts the label.

Candidates are ranked by attribution (SHIFT, arXiv 2403.19647), then added while they raise the
accuracy of the worst groups on the rows of choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import probe_score
from dermaudit.stats.intervals import auprc_table, auroc

from ..effects import operating_point
from .registry import ChoiceData, ChosenLatents

if TYPE_CHECKING:
    from dermaudit.heads import LinearHead
    from dermaudit.sae.inference.model import LinearSAE

    from ..editor import Editor
    from ..trap import Trap

MAX_LATENTS = 12
CANDIDATES = 24
MIN_GAIN = 0.002  # of the score of choice, for a further latent
CLEAN_TOLERANCE = 0.01


def rank_latents(
    codes: np.ndarray, a: np.ndarray, direction: np.ndarray, sae: LinearSAE
) -> list[tuple[int, dict[str, float]]]:
    """Candidates for a concept, best first: latents whose codes (n, d_sae) rank its images (a: 0/1)
    clearly above prevalence, by the effect |(E[z|a=1] − E[z|a=0]) · (w·W_dec)| on the head (SHIFT,
    arXiv 2403.19647, as in SAEBench). direction (d,) is d logit / d x.
    """
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


def choose_by_effect(
    editor: Editor, head: LinearHead, x: np.ndarray, trap: Trap, codes: np.ndarray
) -> ChosenLatents:
    """S on the rows of choice: latents are added while they lift the score, the best one first, from
    nothing and from the best prefix of the ranking (siblings may help only together); the better of
    the two ways. EvidenceError when nothing helps.
    """
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
    cells), at the operating point of these rows; AUROC of images without the artifact may not fall.
    """
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


class EffectMethod:
    """The default method: by the effect on the trap head."""

    name = "effect"
    needs_labels = True

    def choose(self, given: ChoiceData) -> ChosenLatents:
        """Choose on the rows of choice of the trap."""
        assert given.head is not None and given.trap is not None  # needs_labels
        return choose_by_effect(given.editor, given.head, given.x, given.trap, given.codes)


METHOD = EffectMethod()
