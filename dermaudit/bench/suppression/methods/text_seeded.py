"""A concept latent without labels: its rows are ranked by a text (`concepts teach --from-text --direct`)."""

from __future__ import annotations

from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.ranked import RankedLatentMethod

METHOD = CrossFittedMethod(RankedLatentMethod("text_seeded"))
