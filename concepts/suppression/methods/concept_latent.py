"""One concept latent, fitted with labels on images without the target (`dermaudit.sae.concept_latents`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.sae.concept_latents.latent import ConceptLatent

from ...evidence.cross_fit import TrainingRows
from ..editor import Edit
from .registry import ChosenLatents

if TYPE_CHECKING:
    from dermaudit.sae import ThresholdSAE


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
        """Return the fitted latent. EvidenceError where the images are too few or not told apart."""
        latent = self.fit_latent(rows)
        assert latent.figures is not None  # of a fit
        figures = latent.figures
        evidence = {
            "auroc": figures.auroc,
            "n_with": figures.n_with,
            "n_without": figures.n_without,
        }
        return ChosenLatents(latent.as_sae(), [0], [evidence], "concept_latent")

    def fit_latent(self, rows: TrainingRows) -> ConceptLatent:
        """Fit the latent."""
        data = rows.data
        usable = rows.train[data.y[rows.train] != 1]
        kinds = [usable[data.a[usable] == kind] for kind in (1, 0)]
        if self.n_labels is not None:
            generator = np.random.default_rng([data.seed, rows.number, 3, self.draw])
            kinds = [generator.permutation(kind)[: self.n_labels] for kind in kinds]
        present, absent = kinds
        return ConceptLatent.fit(
            data.x[present],
            data.x[absent],
            groups_with=data.groups[present],
            groups_without=data.groups[absent],
            seed=data.seed,
        )


@dataclass(frozen=True)
class TaughtLatent:
    """A concept latent that was taught before (`dermaudit concepts teach`), as it is: `sae` holds it alone.

    Score it on no image that it was taught with.
    """

    sae: ThresholdSAE
    figures: dict[str, float]
    name: str = "concept_latent"
    needs_labels: bool = False

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
        """Return the latent."""
        return ChosenLatents(self.sae, [0], [self.figures], "concept_latent")


METHOD = ConceptLatentMethod()
