"""The extension point for naming methods: a file of this folder that defines `NAMER` adds one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dermaudit.errors import unknown
from dermaudit.plugins import discover

from ...vocabulary.vocabulary import Vocabulary


@dataclass
class Names:
    """The names of one site: arrays over all its latents (d_sae,)."""

    word: np.ndarray  # index into the vocabulary's concepts, −1 = unnamed
    z: np.ndarray  # score of the best word (nan for latents that are active on too few images)
    p_null: np.ndarray
    q: np.ndarray
    rivals: list[str]  # JSON: [[word, score], …]
    reason: list[str | None]  # why a latent is unnamed; None for a named one
    named_under_permutation: int


class Namer(Protocol):
    """A naming method.

    `codes` (n, d_sae) and the unit embeddings `pooled` (n, d) are those of the train and val images;
    `vectors` (c, d) and `distractors` (r, d) are text vectors of the same model.
    """

    def __call__(
        self,
        codes: np.ndarray,
        pooled: np.ndarray,
        vectors: np.ndarray,
        distractors: np.ndarray,
        vocabulary: Vocabulary,
        *,
        seed: int = 0,
    ) -> Names:
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
