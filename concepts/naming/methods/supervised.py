"""The labelled concept that a latent ranks best on the images of the naming: the upper bound of all names."""

from __future__ import annotations

import numpy as np

from ..forced import forced_names
from ..judging import Judge
from .registry import Names, NamingEvidence, NamingMethod


def name_latents(evidence: NamingEvidence) -> Names:
    """Name every live latent after its best labelled concept."""
    ids = [concept.id for concept in evidence.vocabulary.concepts]
    labels = {name: values for name, values in evidence.labels.items() if name in ids}
    scores = np.full((evidence.codes.shape[1], len(ids)), -np.inf)
    if labels:
        judge = Judge(evidence.codes, labels, np.arange(len(evidence.codes)))
        for name, lift in zip(judge.concepts, judge.lift, strict=True):
            scores[:, ids.index(name)] = np.where(np.isfinite(lift), lift, -np.inf)
    names = forced_names(evidence, scores)
    unknown = ~np.isfinite(scores).any(1)
    names.word[unknown] = -1
    return names


NAMER = NamingMethod("supervised", name_latents)
