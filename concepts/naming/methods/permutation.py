"""The best word of a latent, if it beats its permutation null (`concepts/naming/scores.py`) and is no distractor."""

from __future__ import annotations

from ..scores import NOTHING_SEEN, unnamed, word_scores
from .registry import NAMED, WORDS, Names, NamingEvidence, NamingMethod


def name_latents(evidence: NamingEvidence) -> Names:
    """Name the latents whose best word beats the permutation null; the others stay unnamed."""
    found = word_scores(evidence)
    names = unnamed(found, evidence)
    for j, word in enumerate(found.scores.argmax(1)):
        if names.reason[j] is not None:
            continue
        if word >= len(evidence.vectors):
            names.reason[j] = NOTHING_SEEN
        else:
            names.word[j], names.verdict[j], names.named_by[j] = word, NAMED, WORDS
    return names


NAMER = NamingMethod("permutation", name_latents)
