"""One concept latent, fitted with labels on images without the target (`dermaudit.sae.concept_latents`)."""

from __future__ import annotations

from dermaudit.concepts.evidence.edited_head import ConceptLatentMethod

METHOD = ConceptLatentMethod()
