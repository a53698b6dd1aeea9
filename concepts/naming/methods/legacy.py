"""Each word to one latent: the assignment with the largest sum of cosines, as DermFM-Zero does it (arXiv 2602.10624).

Latents that are left without a word stay unnamed.
"""

from __future__ import annotations

import numpy as np

from ..forced import forced_names
from .decoder import cosines
from .registry import UNNAMED, Names, NamingEvidence, NamingMethod


def name_latents(evidence: NamingEvidence) -> Names:
    """Assign words to live latents one to one."""
    from scipy.optimize import linear_sum_assignment

    scores = cosines(evidence)
    names = forced_names(evidence, scores)
    live = np.flatnonzero(names.word >= 0)
    if scores is None or not len(live):
        return names
    rows, words = linear_sum_assignment(-scores[live])
    given = dict(zip(live[rows], words, strict=True))
    for j in live:
        names.word[j] = given.get(j, -1)
        if j not in given:
            names.verdict[j], names.reason[j] = UNNAMED, "all words are given to other latents"
    names.named_under_permutation = len(given)
    return names


NAMER = NamingMethod("legacy", name_latents)
