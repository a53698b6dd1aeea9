"""One concept latent, fitted with labels on images without the target (`dermaudit.sae.concept_latents`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dermaudit.sae.concept_latents.latent import ConceptLatent, append_latents

from ...evidence.cross_fit import TrainingRows
from ..editor import Edit
from .registry import ChosenLatents


@dataclass(frozen=True)
class ConceptLatentMethod:
    """Fit a concept latent on the training rows without the target, so that its direction holds nothing of
    it. `n_labels`: with so many images with and as many without the artifact, of the random `draw`; None, with
    all.
    """

    name: str = "concept_latent"
    needs_labels: bool = True
    n_labels: int | None = None
    draw: int = 0

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the fitted latent, behind those of the concepts in `first` of the rows, each fitted on what the
        ones before it leave. EvidenceError where the images are too few or not told apart.
        """
        latents: list[ConceptLatent] = []
        for _, values in rows.data.first:
            latents.append(self._fit(rows, values, latents))
        latents.append(self._fit(rows, rows.data.a, latents))
        first = [name for name, _ in rows.data.first]
        return joint(latents, [_evidence(latent) for latent in latents], first)

    def _fit(
        self, rows: TrainingRows, values: np.ndarray, after: list[ConceptLatent]
    ) -> ConceptLatent:
        data = rows.data
        usable = rows.train[data.y[rows.train] != 1]
        kinds = [usable[values[usable] == kind] for kind in (1, 0)]
        if self.n_labels is not None:
            generator = np.random.default_rng([data.seed, rows.number, 3, self.draw])
            kinds = [generator.permutation(kind)[: self.n_labels] for kind in kinds]
        present, absent = kinds
        return ConceptLatent.fit(
            data.x[present],
            data.x[absent],
            groups_with=data.groups[present],
            groups_without=data.groups[absent],
            after=after,
            seed=data.seed,
        )


def _evidence(latent: ConceptLatent) -> dict[str, float]:
    figures = latent.figures
    assert figures is not None  # of a fit
    return {"auroc": figures.auroc, "n_with": figures.n_with, "n_without": figures.n_without}


def joint(
    latents: Sequence[ConceptLatent], evidence: list[dict[str, float]], first: Sequence[str]
) -> ChosenLatents:
    """Return concept latents as one choice; `first` names the concepts of all but the last."""
    sae = append_latents(latents[0].as_sae(), latents[1:])
    return ChosenLatents(sae, list(range(len(latents))), evidence, "concept_latent", tuple(first))


@dataclass(frozen=True)
class TaughtLatents:
    """A concept latent that was taught before (`dermaudit concepts teach`), as it is, behind those that it was
    taught after.

    Score it on no image that one of them was taught with.
    """

    latents: tuple[ConceptLatent, ...]
    figures: list[dict[str, float]]
    first: tuple[str, ...] = ()
    name: str = "concept_latent"
    needs_labels: bool = False

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the latents."""
        return joint(self.latents, self.figures, self.first)


METHOD = ConceptLatentMethod()
