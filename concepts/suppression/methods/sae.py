"""Latents of the run's SAE, chosen by their effect on a head that was fitted where the artifact predicts
the label.

The choice needs rows that its head has not seen: the head is fitted on two thirds of the groups, and the
latents are chosen on the rest. Candidates are ranked by attribution (SHIFT, arXiv 2403.19647), then added
while they raise the accuracy of the worst groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.folds import group_folds
from dermaudit.stats.intervals import auprc_table, auroc

from ...evidence.cross_fit import TrainingRows, biased_rows
from ..editor import Edit, Editor, editor_of
from .registry import ChosenLatents, NoLatent

if TYPE_CHECKING:
    from dermaudit.heads import LinearHead
    from dermaudit.sae.inference.model import LinearSAE

MAX_LATENTS = 12
CANDIDATES = 24
MIN_GAIN = 0.002  # of the score of choice, for a further latent
CLEAN_TOLERANCE = 0.01
FOLDS = 3  # the head is fitted on all but one of them


@dataclass(frozen=True)
class ChoiceRows:
    """Rows x (n, d) that the head has not seen, with label y and artifact a (n,), and the edited head."""

    x: np.ndarray
    y: np.ndarray
    a: np.ndarray
    head: LinearHead
    editor: Editor

    def weights(self) -> np.ndarray:
        """Return the weight (n,) of each row: the four groups of label and artifact count alike."""
        weight = np.zeros(len(self.y))
        for i in (0, 1):
            for j in (0, 1):
                cell = (self.y == i) & (self.a == j)
                weight[cell] = 1 / max(cell.sum(), 1)
        return weight

    def score(self, latents: list[int]) -> np.ndarray:
        """Return the logits (n,) with these latents suppressed."""
        return probe_score(self.head, self.editor.rows(latents, self.x))


class SaeLatents:
    """The latents of the run's SAE whose suppression helps a trap head most."""

    name = "sae"
    needs_labels = True

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Choose on a third of the groups. EvidenceError where the run has no SAE, or too few images."""
        data = rows.data
        if data.sae is None:
            raise EvidenceError("the run has no SAE at its pooled site", "run: dermaudit fit")
        usable = rows.train[np.isfinite(data.y[rows.train]) & np.isfinite(data.a[rows.train])]
        kinds = 2 * data.y[usable] + data.a[usable]
        fit, rest = group_folds(kinds, data.groups[usable], FOLDS, data.seed)[0]
        generator = np.random.default_rng([data.seed, rows.number, 4])
        biased = biased_rows(data, usable[fit], generator)
        head = fit_probe(data.x[biased], data.y[biased], data.groups[biased], seed=data.seed)
        chosen = usable[rest]
        editor, _ = editor_of(data.sae, edit, rows)
        return choose_by_effect(
            ChoiceRows(data.x[chosen], data.y[chosen], data.a[chosen], head, editor)
        )


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


def choose_by_effect(rows: ChoiceRows) -> ChosenLatents:
    """Add latents while they lift the score, the best one first, from nothing and from the best prefix of
    the ranking (siblings may help only together); return the better of the two ways. NoLatent when
    nothing helps.
    """
    sae = rows.editor.sae
    codes = rows.editor.codes(rows.x).toarray()
    ranked = rank_latents(codes, rows.a, rows.head.direction()[1] * 2, sae)
    if not ranked:
        raise NoLatent(
            "no latent ranks the concept's images above chance on the rows of choice",
            "the SAE may be too small, or the model may not see the concept",
            {"candidates": 0},
        )
    listed = [latent for latent, _ in ranked[:CANDIDATES]]

    def value(latents: list[int]) -> float:
        return _choice_score(rows, latents)

    prefixes = [listed[:i] for i in range(min(len(listed), MAX_LATENTS) + 1)]
    candidates = [_grow(start, listed, value) for start in ([], max(prefixes, key=value))]
    best_set, best = max(candidates, key=lambda candidate: candidate[1])
    if best < value([]) + MIN_GAIN:
        top = ", ".join(f"{j} (AUPRC {w['auprc']:.2f})" for j, w in ranked[:3])
        raise NoLatent(
            f"suppressing the best latents does not lift the worst group on the rows of choice: {top}",
            "the head may not lean on this concept",
            {"candidates": len(ranked)},
        )
    figures = dict(ranked)
    evidence = [{k: round(v, 6) for k, v in figures[j].items()} for j in best_set]
    return ChosenLatents(sae, best_set, evidence, "sae")


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


def _choice_score(rows: ChoiceRows, latents: list[int]) -> float:
    """Mean over label of the worse of its two groups (less noisy than the minimum of four small
    cells), at the threshold that is best for these rows; AUROC of images without the artifact may not fall.
    """
    y, a = rows.y, rows.a
    score = rows.score(latents)
    clean = a == 0
    if latents and 0 < y[clean].sum() < clean.sum():
        before = auroc(y[clean], rows.score([])[clean])
        if auroc(y[clean], score[clean]) < before - CLEAN_TOLERANCE:
            return -np.inf
    correct = (score > best_threshold(y, score, rows.weights())) == (y == 1)
    cells = [[correct[(y == i) & (a == j)].mean() for j in (0, 1)] for i in (0, 1)]
    return float(np.mean([min(pair) for pair in cells]))


def best_threshold(y: np.ndarray, score: np.ndarray, weight: np.ndarray) -> float:
    """Return the threshold with the best balanced accuracy of weighted rows, in the middle of its gap."""
    order = np.argsort(score, kind="stable")
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


METHOD = SaeLatents()
