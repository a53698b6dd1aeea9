"""A concept latent without labels: text and drawn artifacts rank its rows together."""

from __future__ import annotations

from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.ranked import RankedLatentMethod

METHOD = CrossFittedMethod(RankedLatentMethod("agreement"))
