"""The extension point for naming methods: a file of this folder that defines `NAMER` adds one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from dermaudit.errors import unknown
from dermaudit.plugins import discover

from ...vocabulary.vocabulary import Vocabulary

NAMED, ONE_OF, UNNAMED = "named", "one of a set", "unnamed"
DIAGNOSIS, OTHER = "diagnosis-like", "not in the vocabulary"
LABELS, WORDS = "labels", "words"
VERDICTS = (NAMED, ONE_OF, UNNAMED, DIAGNOSIS, OTHER)


@dataclass(frozen=True)
class NamingEvidence:
    """What a method names the latents of one site from: train and val images, and the words.

    `codes` (n, h) and the unit embeddings `pooled` (n, d) are of the same images; `vectors` (c, d) of the concepts
    of `vocabulary` and `distractors` (r, d) are text vectors of the same model. `decoder` (h, d) are the decoder
    rows where the site is the pooled one, so that they lie in the space of the words; else None. `labels` are what is
    known of the concepts in these images.
    """

    codes: np.ndarray
    pooled: np.ndarray
    vectors: np.ndarray
    distractors: np.ndarray
    vocabulary: Vocabulary
    decoder: np.ndarray | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # {concept: (n,) of 1, 0 or nan}
    risk: float = 0.1  # largest share of wrong names
    seed: int = 0

    @property
    def words(self) -> np.ndarray:
        """The vectors (c + r, d) of the concepts and of the distractors."""
        return np.vstack([self.vectors, self.distractors])

    @property
    def types(self) -> np.ndarray:
        """The type of each of `words`; of distractors "distractor"."""
        kinds = [concept.type for concept in self.vocabulary.concepts]
        return np.array([*kinds, *["distractor"] * len(self.distractors)])


@dataclass
class Names:
    """The names of one site: arrays over all its latents (h,)."""

    word: np.ndarray  # index into the vocabulary's concepts, −1 = unnamed
    z: np.ndarray  # score of the best word (nan for latents that are active on too few images)
    p_null: np.ndarray
    q: np.ndarray
    rivals: list[str]  # JSON: [[word, score], …]
    reason: list[str | None]  # why a latent is unnamed; None for a named one
    named_under_permutation: int
    verdict: list[str] = field(default_factory=list)  # of VERDICTS; by default from `word`
    # That the name is right; of a set: that it contains the right one.
    p_correct: np.ndarray | None = None
    # Concepts of which the latent may be one.
    sets: list[tuple[int, ...]] = field(default_factory=list)
    named_by: list[str | None] = field(default_factory=list)  # LABELS or WORDS; by default words

    def __post_init__(self) -> None:
        self.verdict = self.verdict or [NAMED if w >= 0 else UNNAMED for w in self.word]
        self.sets = self.sets or [()] * len(self.word)
        self.named_by = self.named_by or [WORDS if w >= 0 else None for w in self.word]


class Namer(Protocol):
    """A naming method."""

    def __call__(self, evidence: NamingEvidence) -> Names:
        """Return the names of one site."""
        ...


@dataclass(frozen=True)
class NamingMethod:
    """A `Namer` with the name by which `dermaudit name --method` finds it."""

    name: str
    run: Namer


@functools.cache
def naming_methods() -> dict[str, NamingMethod]:
    """Return {name: method} of every module of this folder that defines `NAMER`."""
    return discover(__name__.rpartition(".")[0], "NAMER")


def naming_method(name: str) -> Namer:
    """Return a naming method; UserInputError offers the nearest for an unknown name."""
    if name not in naming_methods():
        raise unknown("naming method", name, naming_methods())
    return naming_methods()[name].run
