"""The best word of a latent, if it beats its permutation null (`concepts/naming/scores.py`) and is no distractor."""

from __future__ import annotations

import numpy as np

from ..scores import rivals, word_scores
from .registry import Names, NamingEvidence, NamingMethod


def name_latents(evidence: NamingEvidence) -> Names:
    """Name the latents whose best word beats the permutation null; the others stay unnamed."""
    found = word_scores(evidence)
    word = found.scores.argmax(1)
    reason = [found.without_evidence(j) for j in range(len(word))]
    for j in np.flatnonzero(word >= len(evidence.vectors)):
        reason[j] = reason[j] or "a word that names nothing in these images scores best"
    named = np.array([r is None for r in reason])
    return Names(
        np.where(named, word, -1),
        np.where(found.alive, found.scores.max(1), np.nan),
        np.where(found.alive, found.p, np.nan),
        found.q,
        [
            rivals(scores, evidence) if alive else "[]"
            for scores, alive in zip(found.scores, found.alive, strict=True)
        ],
        reason,
        found.named_under_permutation,
    )


NAMER = NamingMethod("permutation", name_latents)
