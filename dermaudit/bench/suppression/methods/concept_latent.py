"""One concept latent, fitted with labels on images without the target (`dermaudit.sae.concept_latents`)."""

from __future__ import annotations

from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod

METHOD = CrossFittedMethod(ConceptLatentMethod())
