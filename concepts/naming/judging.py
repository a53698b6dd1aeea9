"""Whether labels of other images confirm a name.

A name is wrong in the strict sense if its latent ranks another labelled concept better, by more than CLEAR or beyond
the 95 % interval of the difference, or its own concept no better than chance. It is not wrong in the tolerant sense if
the better one is a concept that its own is easily mistaken for (declared in the vocabulary). Ranking: the normalised
lift (AUPRC − prevalence) / (1 − prevalence); intervals from a bootstrap over groups.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dermaudit.stats.intervals import (
    GroupBootstrap,
    auprc_draws,
    auprc_table,
    percentile_interval,
)

MIN_POSITIVES = 5
CLEAR = 0.05  # of the lift: with few images the interval of a larger difference may contain 0
_DRAWS = 300


@dataclass(frozen=True)
class Judgement:
    """Whether labels refute a name; `better`: the labelled concept that its latent ranks best."""

    wrong: bool
    wrong_tolerant: bool
    better: str
    auprc: float
    best_auprc: float  # of the concept of the name, over all latents of the site


class Judge:
    """Compares names at one site with labels.

    `codes` (n, h) and `labels` {concept: (n,) of 1, 0 or nan} are of images that were not used for naming, `groups`
    (n,) those of the images. Labels with fewer than MIN_POSITIVES positives judge nothing.
    """

    def __init__(
        self,
        codes: np.ndarray,
        labels: Mapping[str, np.ndarray],
        groups: Sequence[object] | np.ndarray,
        *,
        mistaken_for: Mapping[str, Container[str]] | None = None,
        seed: int = 0,
    ) -> None:
        self.codes, self.labels, self.groups, self.seed = codes, labels, np.asarray(groups), seed
        self.mistaken_for = mistaken_for or {}
        self.weights: dict[bytes, np.ndarray] = {}
        self.concepts = list(labels)
        values = np.stack(list(labels.values()), 1) if labels else np.zeros((len(codes), 0))
        known, positives = np.isfinite(values).sum(0), np.nansum(values, 0)
        self.prevalence = np.where(
            (positives >= MIN_POSITIVES) & (positives < known),
            positives / np.maximum(known, 1),
            np.nan,
        )
        self.auprc = auprc_table(codes, values)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.lift = (self.auprc - self.prevalence[:, None]) / (1 - self.prevalence[:, None])

    def can_judge(self, concept: str) -> bool:
        """Whether there are enough labels of a concept."""
        return concept in self.labels and bool(
            np.isfinite(self.prevalence[self.concepts.index(concept)])
        )

    @property
    def judged(self) -> list[str]:
        """The concepts with enough labels."""
        return [concept for concept in self.concepts if self.can_judge(concept)]

    def best(self, latent: int, among: Container[str] | None = None) -> str | None:
        """Return the labelled concept (of `among`) that a latent ranks best; None where there is none."""
        lift = self.lift[:, latent].copy()
        if among is not None:
            lift[[concept not in among for concept in self.concepts]] = np.nan
        return self.concepts[int(np.nanargmax(lift))] if np.isfinite(lift).any() else None

    def of(self, latent: int, concept: str) -> Judgement | None:
        """Judge the name `concept` of a latent; None where labels cannot."""
        if not self.can_judge(concept):
            return None
        own = self.concepts.index(concept)
        best = int(np.nanargmax(self.lift[:, latent]))
        lift = self.lift[:, latent]
        wrong = (
            lift[own] <= 0
            or lift[best] > lift[own] + CLEAR
            or (best != own and self._better(latent, self.concepts[best], concept))
        )
        near = self.concepts[best] in self.mistaken_for.get(concept, ())
        return Judgement(
            bool(wrong),
            bool(wrong and not (near and lift[own] > 0)),
            self.concepts[best],
            float(self.auprc[own, latent]),
            float(np.nanmax(self.auprc[own])),
        )

    def _better(self, latent: int, one: str, other: str) -> bool:
        """Whether a latent ranks concept `one` better than `other` beyond the interval, on images where both are
        known.
        """
        rows = np.flatnonzero(np.isfinite(self.labels[one]) & np.isfinite(self.labels[other]))
        draws = self._draws(rows)
        lifts = []
        for concept in (one, other):
            found = auprc_draws(self.labels[concept][rows], [self.codes[rows, latent]], draws)
            with np.errstate(invalid="ignore", divide="ignore"):
                lifts.append((found[:, 0] - found[:, 1]) / (1 - found[:, 1]))
        return percentile_interval(lifts[0] - lifts[1])[0] > 0

    def _draws(self, rows: np.ndarray) -> np.ndarray:
        """Return the weights (draws, n) of these rows; labels of a kind are mostly known for the same ones."""
        key = rows.tobytes()
        if key not in self.weights:
            self.weights[key] = GroupBootstrap(self.groups[rows], _DRAWS, self.seed).matrix()
        return self.weights[key]
