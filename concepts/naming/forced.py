"""What published naming methods do: every latent that is active gets the word with the best score."""

from __future__ import annotations

import numpy as np

from .methods.registry import Names, NamingEvidence
from .scores import enough_images, rivals

NO_DECODER = "its decoder does not lie in the space of the words"


def forced_names(evidence: NamingEvidence, scores: np.ndarray | None) -> Names:
    """Name every live latent after the concept with the best of `scores` (h, concepts), distractors left out; None
    where the method has no score.
    """
    active, _ = enough_images(evidence.codes)
    h = len(active)
    if scores is None:
        return _names(np.full(h, -1), np.full(h, np.nan), ["[]"] * h, [NO_DECODER] * h)
    live = active > 0
    padded = np.pad(scores, ((0, 0), (0, len(evidence.distractors))), constant_values=-np.inf)
    return _names(
        np.where(live, scores.argmax(1), -1),
        np.where(live, scores.max(1), np.nan),
        [rivals(row, evidence) if on else "[]" for row, on in zip(padded, live, strict=True)],
        [None if on else "dead" for on in live],
    )


def _names(word: np.ndarray, score: np.ndarray, best: list[str], reason: list[str | None]) -> Names:
    unknown = np.full(len(word), np.nan)
    named = int((word >= 0).sum())
    # Nothing keeps these methods from naming a latent with permuted activations.
    return Names(word, score, unknown, unknown, best, reason, named)
