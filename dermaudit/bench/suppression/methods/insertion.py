"""Latents of the unsupervised SAE that rise when the artifact is drawn (`recipe make --method insertion`)."""

from __future__ import annotations

from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.insertion import InsertionMethod

METHOD = CrossFittedMethod(InsertionMethod())
