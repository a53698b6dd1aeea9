"""The concept latent with its codes set to their mean, so that the mean of the rows stays."""

from __future__ import annotations

from dermaudit.concepts.evidence.edited_head import ConceptLatentMethod

METHOD = ConceptLatentMethod("concept_latent_mean", mean_preserving=True)
