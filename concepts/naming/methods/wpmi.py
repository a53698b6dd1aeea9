"""Soft-WPMI of CLIP-Dissect (arXiv 2204.10965), with its settings."""

from __future__ import annotations

import numpy as np

from ..forced import forced_names
from .registry import NamingEvidence, NamingMethod

TOP = 100  # images with the highest activation
SHARPNESS = 10.0  # of the softmax over words
LAMBDA = 1.0  # weight of the frequency of a word
MEMBERSHIP = 0.998, 0.97  # of the first and of the last of the top images


def soft_wpmi(evidence: NamingEvidence) -> np.ndarray:
    """Return the scores (h, c)."""
    from scipy.special import logsumexp, softmax

    codes, n = evidence.codes, min(TOP, len(evidence.codes))
    words = softmax(SHARPNESS * (evidence.pooled @ evidence.vectors.T), axis=1)
    share = np.linspace(*MEMBERSHIP, n)[:, None]
    found = np.empty((codes.shape[1], words.shape[1]))
    for j in range(codes.shape[1]):
        top = np.argsort(-codes[:, j], kind="stable")[:n]
        found[j] = np.log(1 + share * (words[top] - 1) + 1e-7).sum(0)
    frequency = logsumexp(found, axis=0) - np.log(len(found))
    return found - LAMBDA * frequency


NAMER = NamingMethod("wpmi", lambda evidence: forced_names(evidence, soft_wpmi(evidence)))
