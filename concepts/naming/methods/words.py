"""Names from words alone, with a probability: one concept, a set of concepts, or none.

Words are scored as by `permutation`. Diagnoses and words that name nothing in these images compete for a latent, but
do not name it: a latent that one of them wins is diagnosis-like, or not in the vocabulary. Otherwise the words whose
score is at least SHARE of the best are what it may be. The best is its name if the calibration is sure enough of it
at the risk that is asked for; else the set is the answer, if it is small and sure enough; else there is none.
"""

from __future__ import annotations

import numpy as np

from ..calibration import calibrations, figures_of
from ..scores import NOTHING_SEEN, WordScores, unnamed, word_scores
from .registry import (
    DIAGNOSIS,
    NAMED,
    ONE_OF,
    OTHER,
    WORDS,
    Names,
    NamingEvidence,
    NamingMethod,
)

SHARE = 0.8  # of the best score: words above it are what a latent may be
MOST = 4  # words in a set
NOT_NAMES = ("diagnosis", "distractor")


def name_latents(evidence: NamingEvidence) -> Names:
    """Name the latents with a word, or a set of words, that is right with the probability that is asked for."""
    found = word_scores(evidence)
    h = len(found.scores)
    best = found.scores.argmax(1)
    kinds = evidence.types[best]
    names = unnamed(found, evidence)
    names.p_correct = np.full(h, np.nan)
    for j in range(h):
        if names.reason[j] is not None:
            continue
        if kinds[j] == "diagnosis":
            word = evidence.vocabulary.concepts[best[j]].id
            names.verdict[j], names.reason[j] = DIAGNOSIS, f"the diagnosis {word} explains it best"
        elif kinds[j] == "distractor":
            names.verdict[j], names.reason[j] = OTHER, NOTHING_SEEN
    open_ones = np.array([j for j in range(h) if names.reason[j] is None], dtype=int)
    if len(open_ones):
        _decide(names, found, open_ones, evidence)
    return names


def candidates(scores: np.ndarray, types: np.ndarray) -> tuple[int, ...]:
    """Return the words (words,) that a latent may be, the best first; neither diagnoses nor distractors."""
    order = np.argsort(-scores, kind="stable")
    near = order[scores[order] >= SHARE * scores[order[0]]]
    return tuple(int(word) for word in near if types[word] not in NOT_NAMES)


def _decide(names: Names, found: WordScores, latents: np.ndarray, evidence: NamingEvidence) -> None:
    """Enter name, set or reason of the latents that a concept explains best."""
    concepts = [evidence.vocabulary.concepts[word].id for word in found.scores[latents].argmax(1)]
    figures = figures_of(found.scores[latents])
    known = calibrations()
    p_name, p_set = (known[kind].p_correct(concepts, figures) for kind in ("name", "set"))
    least = {kind: known[kind].threshold(evidence.risk) for kind in ("name", "set")}
    assert names.p_correct is not None
    for i, j in enumerate(latents):
        words = candidates(found.scores[j], evidence.types)
        names.p_correct[j] = p_name[i]
        if p_name[i] >= least["name"]:
            names.verdict[j], names.word[j], names.named_by[j] = NAMED, words[0], WORDS
        elif 1 < len(words) <= MOST and p_set[i] >= least["set"]:
            names.verdict[j], names.sets[j], names.p_correct[j] = ONE_OF, words, p_set[i]
            names.reason[j] = "one of: " + ", ".join(
                evidence.vocabulary.concepts[word].id for word in words
            )
        else:
            names.reason[j] = f"its best word is right with a probability of {p_name[i]:.0%} only"


NAMER = NamingMethod("words", name_latents)
