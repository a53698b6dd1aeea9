"""The extension point for naming methods: a method is one file in this folder with a `@register`ed function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dermaudit.errors import unknown

from ..vocabulary.vocabulary import Vocabulary

_NOT_METHODS = ("namer", "stage", "listing")


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
    ) -> Names: ...


_NAMERS: dict[str, Namer] = {}


def register(name: str) -> Callable[[Namer], Namer]:
    """Register the function below as the naming method `name` (`dermaudit name --method`)."""

    def keep(method: Namer) -> Namer:
        _NAMERS[name] = method
        return method

    return keep


def namer(name: str) -> Namer:
    """Return a naming method; UserInputError offers the nearest for an unknown name."""
    package = __package__ or ""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name not in _NOT_METHODS:
            importlib.import_module(f"{package}.{module.name}")
    if name not in _NAMERS:
        raise unknown("naming method", name, _NAMERS)
    return _NAMERS[name]
