"""The word nearest to the decoder row, as DN-CBM does it (arXiv 2407.14499)."""

from __future__ import annotations

import numpy as np

from ..forced import forced_names
from .registry import NamingEvidence, NamingMethod


def cosines(evidence: NamingEvidence) -> np.ndarray | None:
    """Return the cosines (h, c) of decoder rows and concepts; None without decoder rows in their space."""
    if evidence.decoder is None:
        return None
    rows = evidence.decoder / np.maximum(
        np.linalg.norm(evidence.decoder, axis=1, keepdims=True), 1e-12
    )
    return rows @ evidence.vectors.T


NAMER = NamingMethod("decoder", lambda evidence: forced_names(evidence, cosines(evidence)))
