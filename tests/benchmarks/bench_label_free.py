"""Concept latents without labels on a run with labelled artifacts: what was tried, the failures too.

The variants that are no method of `dermaudit bench suppress`. Nothing is fitted with labels of the artifact,
except `supervised` and the confirmed sheets, which say with how many. Fitted on the rows of each fold without
the target. Prints the share of the gap closed, the lower bounds of the changes of cross-group and of
artifact-free AUROC, and the share of rows that keep their bits.
Run: python tests/benchmarks/bench_label_free.py RUN [variant …]
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from dermaudit.concepts.evidence.cross_fit import Fold, cross_fit, folds, oracle_scores
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.evidence.figures import suppression_effect
from dermaudit.concepts.inputs import tower_of, vocabulary_of
from dermaudit.concepts.suppression.cross_fitted import trap_data
from dermaudit.concepts.teaching.sheet import candidates
from dermaudit.concepts.teaching.sources import drawn_rows, text_direction
from dermaudit.errors import EvidenceError
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.concept_latents.latent import ConceptLatent, fit_encoder, out_of_fold_scores
from dermaudit.sae.concept_latents.ranked import drawn_score, fit_by_ranking
from dermaudit.sae.run_data import RunData

ARTIFACTS = ("ruler", "dark_corner", "gel_bubble", "ink", "hair", "gel_border")


@dataclass
class Rows:
    """What a variant may use of a fold; `a`, the labels, is for `supervised` and confirmed sheets alone."""

    fold: Fold

    def __post_init__(self) -> None:
        data, rows = self.fold.data, self.fold.rows_of(0)
        assert data.text_direction is not None and data.drawn is not None
        self.x, self.groups, self.a = data.x[rows], data.groups[rows], data.a[rows]
        self.drawn = data.drawn[rows]
        self.text = self.x @ data.text_direction

    def labelled(self, present: np.ndarray, absent: np.ndarray) -> ConceptLatent:
        return ConceptLatent.fit(
            self.x[present],
            self.x[absent],
            groups_with=self.groups[present],
            groups_without=self.groups[absent],
        )

    def drawn_score(self) -> np.ndarray:
        return drawn_score(self.x, self.drawn, self.groups)

    def ranked(self, score: np.ndarray) -> ConceptLatent:
        return fit_by_ranking(self.x, score, self.groups)


def standard(score: np.ndarray) -> np.ndarray:
    return (score - score.mean()) / score.std()


def supervised(rows: Rows) -> ConceptLatent:
    return rows.labelled(rows.a == 1, rows.a == 0)


def extremes(n: float) -> Callable[[Rows], ConceptLatent]:
    """The n highest by text as images with the artifact, the n lowest as images without."""

    def fit(rows: Rows) -> ConceptLatent:
        order = np.argsort(-rows.text)
        k = int(n * len(order)) if n < 1 else int(n)
        return rows.labelled(order[:k], order[-k:])

    return fit


def two_classes(rounds: int) -> Callable[[Rows], ConceptLatent]:
    """Every row labelled by the split of its score with the largest variance between the parts (Otsu); then the
    latent's own out-of-fold score is split, `rounds` times (self-training).
    """

    def fit(rows: Rows) -> ConceptLatent:
        u = (rows.x - rows.x.mean(0)) / (rows.x.std(0) + 1e-8)
        score = rows.text
        for _ in range(rounds):
            score = out_of_fold_scores(u, (score > otsu(score)).astype(int), rows.groups)
        return rows.labelled(score > otsu(score), score <= otsu(score))

    return fit


def otsu(score: np.ndarray) -> float:
    s, n = np.sort(score), len(score)
    k, total = np.arange(1, n), np.cumsum(s)
    between = k * (n - k) * (total[:-1] / k - (total[-1] - total[:-1]) / (n - k)) ** 2
    low, high = int(0.05 * n), int(0.95 * n)
    best = low + int(np.argmax(between[low:high]))
    return float(s[best] + s[best + 1]) / 2


def drawn_pairs(rows: Rows) -> ConceptLatent:
    """Images with the drawn artifact against the same images without."""
    have = np.isfinite(rows.drawn).all(1)
    groups = rows.groups[have]
    return ConceptLatent.fit(
        rows.drawn[have], rows.x[have], groups_with=groups, groups_without=groups
    )


def text_and_drawn_rows(rows: Rows) -> ConceptLatent:
    """An encoder of the text's extremes and of drawn pairs together, as the rank of the rows."""
    u = (rows.x - rows.x.mean(0)) / (rows.x.std(0) + 1e-8)
    order, have = np.argsort(-rows.text), np.flatnonzero(np.isfinite(rows.drawn).all(1))[:100]
    drawn = (rows.drawn[have] - rows.x.mean(0)) / (rows.x.std(0) + 1e-8)
    both = np.concatenate([u[order[:100]], drawn, u[order[-100:]], u[have]])
    weight, bias = fit_encoder(both, np.repeat([1, 0], [100 + len(have)] * 2))
    return rows.ranked(u @ weight + bias)


def without_the_target_s_text(rows: Rows) -> ConceptLatent:
    """The text's score after the regression on the score of the target's words."""
    target = standard(rows.x @ TARGET_TEXT[0])
    text = standard(rows.text)
    return rows.ranked(text - target * (text @ target) / len(text))


def sae_latent(rows: Rows) -> ConceptLatent:
    """The latent of the SAE that follows the text's score best: rows where it fires, against the others."""
    sae = rows.fold.data.sae
    assert sae is not None
    z = sae.encode(torch.from_numpy(np.ascontiguousarray(rows.x))).numpy()
    follows = [
        np.corrcoef(z[:, j], rows.text)[0, 1] if (z[:, j] > 0).sum() > 20 else 0
        for j in range(z.shape[1])
    ]
    fires = z[:, int(np.argmax(follows))] > 0
    return rows.labelled(fires, ~fires)


def agreement(weight: float) -> Callable[[Rows], ConceptLatent]:
    def fit(rows: Rows) -> ConceptLatent:
        return rows.ranked(standard(rows.text) + weight * standard(rows.drawn_score()))

    return fit


def sheet(n: int) -> Callable[[Rows], ConceptLatent]:
    """n candidates as `concepts teach --from-text` writes them, confirmed by the labels of the run."""

    def fit(rows: Rows) -> ConceptLatent:
        chosen, _ = candidates(rows.text, n)
        return rows.labelled(chosen[rows.a[chosen] == 1], chosen[rows.a[chosen] == 0])

    return fit


def extreme_sheet(rows: Rows) -> ConceptLatent:
    """The 25 highest and the 25 lowest, confirmed."""
    order = np.argsort(-rows.text)
    chosen = np.concatenate([order[:25], order[-25:]])
    return rows.labelled(chosen[rows.a[chosen] == 1], chosen[rows.a[chosen] == 0])


VARIANTS: dict[str, Callable[[Rows], ConceptLatent]] = {
    "supervised": supervised,
    "text, 25 extremes": extremes(25),
    "text, 50 extremes": extremes(50),
    "text, 100 extremes": extremes(100),
    "text, 30 % extremes": extremes(0.3),
    "text, split in two": two_classes(0),
    "text, split, self-trained": two_classes(2),
    "text without the target's": without_the_target_s_text,
    "text_seeded": lambda rows: rows.ranked(rows.text),
    "SAE latent by text": sae_latent,
    "drawn pairs": drawn_pairs,
    "drawn": lambda rows: rows.ranked(rows.drawn_score()),
    "text and drawn rows": text_and_drawn_rows,
    "agreement, weight .25": agreement(0.25),
    "agreement, weight .5": agreement(0.5),
    "agreement, weight 1": agreement(1.0),
    "25 + 25 extremes confirmed": extreme_sheet,
    "sheet of 50 confirmed": sheet(50),
    "sheet of 100 confirmed": sheet(100),
}
TARGET_TEXT: list[np.ndarray] = []


@dataclass
class Variant:
    name: str
    make: Callable[[Rows], ConceptLatent]

    def fit(self, fold: Fold) -> EditedHead:
        latent = self.make(Rows(fold))
        return EditedHead.of_suppressor(fold.head, LatentSuppressor(latent.as_sae(), [0]))


def cells(run: str, names: list[str]) -> Iterator[tuple[str, str, str, float]]:
    """Yield (artifact, variant, cell, gap closed)."""
    from dermaudit.towers.zeroshot import prompt_vector

    data = RunData.open(run)
    tower, words = tower_of(data.run, 1), vocabulary_of(data.run)
    target = words.concept("mel")
    texts = [t.format(word) for word in target.terms for t in words.templates]
    TARGET_TEXT.append(prompt_vector(tower, texts).numpy())
    for concept in ARTIFACTS:
        trap = replace(
            trap_data(data, concept),
            text_direction=text_direction(tower, words, concept),
            drawn=drawn_rows(data, concept, "mel", tower, 0),
        ).known()
        found = folds(trap)
        oracle = oracle_scores(found)
        for name in names:
            try:
                fitted = cross_fit(Variant(name, VARIANTS[name]), found)
            except EvidenceError as error:
                yield concept, name, error.message.partition(":")[0], float("nan")
                continue
            effect = suppression_effect(trap, fitted, oracle)
            text = (
                f"{effect.gap_closed:.2f} ({effect.ci[0]:+.2f}, {effect.clean_auroc_ci[0]:+.3f}, "
                f"{effect.identity_share:.0%})"
            )
            yield concept, name, text, effect.gap_closed


def main() -> None:
    names = sys.argv[2:] or list(VARIANTS)
    table: dict[str, dict[str, tuple[str, float]]] = {name: {} for name in names}
    for concept, name, text, gap in cells(sys.argv[1], names):
        table[name][concept] = (text, gap)
    print(f"| variant | mean | {' | '.join(ARTIFACTS)} |\n|---|---|{'---|' * len(ARTIFACTS)}")
    for name, row in table.items():
        gaps = [gap for _, gap in row.values()]
        mean = f"{np.nanmean(gaps):.2f}" if np.isfinite(gaps).all() else "–"
        print(f"| {name} | {mean} | {' | '.join(row[c][0] for c in ARTIFACTS)} |")


if __name__ == "__main__":
    main()
