"""The concept latent, mean-preserving: a code that fires is set to the mean of those that fire instead of 0.

The mean of the training rows stays (before they are rescaled), and with it the share of positives at the
unchanged threshold.
"""

from __future__ import annotations

import torch

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.suppression.editor import Edit
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.sae import LatentSuppressor


class MeanPreserving:
    """The latent of the method `concept_latent`."""

    name = "concept_latent_mean"

    def fit(self, fold: Fold) -> EditedHead:
        """Fit the latent on the negatives of the fold."""
        sae = ConceptLatentMethod().choose(fold, Edit()).sae
        z = sae.encode(torch.from_numpy(fold.data.x[fold.train]))[:, 0]
        suppressor = LatentSuppressor(sae, [0], mode="mean", level=float(z[z > 0].mean()))
        return EditedHead.of_suppressor(fold.head, suppressor)


METHOD = MeanPreserving()
