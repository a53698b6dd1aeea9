"""The word nearest to the mean embedding of the images that activate a latent most, as SemanticLens does it
(arXiv 2501.05398).
"""

from __future__ import annotations

import numpy as np

from ..forced import forced_names
from .registry import NamingEvidence, NamingMethod

TOP = 30  # images


def nearest_words(evidence: NamingEvidence) -> np.ndarray:
    """Return the cosines (h, c) of mean embeddings and concepts."""
    top = np.argsort(-evidence.codes, axis=0, kind="stable")[:TOP]
    mean = evidence.pooled[top].mean(0)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True) @ evidence.vectors.T


NAMER = NamingMethod(
    "semanticlens", lambda evidence: forced_names(evidence, nearest_words(evidence))
)
