"""Names from labels where there are any, else from words (the default method).

A latent that a labelled concept explains is named by it: by the concept whose lift on the images of the naming is the
best, if the calibration is sure enough of it at the risk that is asked for. Where that concept is a diagnosis, the
latent is diagnosis-like. All other latents get the answer of the method `words`, unless the labels contradict it. The
labels that judge a name are those of other images.
"""

from __future__ import annotations

import numpy as np

from ..calibration import calibrations, label_figures
from ..judging import CLEAR, Judge
from ..scores import enough_images
from .registry import DIAGNOSIS, LABELS, NAMED, UNNAMED, Names, NamingEvidence, NamingMethod
from .words import name_latents as names_from_words

#: The least lift with which a labelled concept explains a latent; 1 is a perfect ranking.
EXPLAINS = 0.25


def name_latents(evidence: NamingEvidence) -> Names:
    """Name the latents with labels and words."""
    names = names_from_words(evidence)
    ids = [concept.id for concept in evidence.vocabulary.concepts]
    known, lift = label_lifts(evidence)
    if len(known) < 2:
        return names
    best = [known[i] for i in lift.argmax(0)]
    calibration = calibrations()["label"]
    p = calibration.p_correct(best, label_figures(lift))
    least = calibration.threshold(evidence.risk)
    _, alive = enough_images(evidence.codes)
    for j in map(int, np.flatnonzero(alive)):
        if p[j] >= least and lift[:, j].max() >= EXPLAINS:
            _enter(names, j, ids.index(best[j]), float(p[j]), evidence)
        else:
            _drop_contradicted(names, j, lift[:, j], known, ids)
    return names


def label_lifts(evidence: NamingEvidence) -> tuple[list[str], np.ndarray]:
    """Return the concepts of the vocabulary with enough labels, and their lifts (concepts, h) in the latents."""
    ids = {concept.id for concept in evidence.vocabulary.concepts}
    labels = {name: values for name, values in evidence.labels.items() if name in ids}
    judge = Judge(evidence.codes, labels, np.arange(len(evidence.codes)))
    known = judge.judged
    return known, judge.lift[[judge.concepts.index(name) for name in known]]


def _enter(names: Names, j: int, word: int, p: float, evidence: NamingEvidence) -> None:
    """Name a latent by a labelled concept."""
    assert names.p_correct is not None
    concept = evidence.vocabulary.concepts[word]
    names.sets[j], names.p_correct[j] = (), p
    if concept.type == "diagnosis":
        names.word[j], names.verdict[j], names.named_by[j] = -1, DIAGNOSIS, None
        names.reason[j] = f"the diagnosis {concept.id} explains it best"
    else:
        names.word[j], names.verdict[j], names.named_by[j] = word, NAMED, LABELS
        names.reason[j] = None


def _drop_contradicted(
    names: Names, j: int, lift: np.ndarray, known: list[str], ids: list[str]
) -> None:
    """Take a name of words back where labels say that another concept explains the latent clearly better."""
    if names.verdict[j] != NAMED or ids[names.word[j]] not in known:
        return
    word = ids[names.word[j]]
    if lift.max() > lift[known.index(word)] + CLEAR:
        names.word[j], names.verdict[j], names.named_by[j] = -1, UNNAMED, None
        names.reason[j] = (
            f"its best word is {word}, but labels say that {known[int(lift.argmax())]} explains it better"
        )


NAMER = NamingMethod("fused", name_latents)
