"""Latents of the unsupervised SAE, chosen by their effect on a head, as `recipe make --method sae` does."""

from __future__ import annotations

from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.sae import SaeLatents

METHOD = CrossFittedMethod(SaeLatents())
