"""The extension point for methods that choose the latents of a concept: a file of this folder that
defines `METHOD` adds one (`dermaudit recipe make --method`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dermaudit.errors import unknown
from dermaudit.plugins import discover

if TYPE_CHECKING:
    from dermaudit.heads import LinearHead
    from dermaudit.sae.run_data import RunData

    from ..editor import Editor
    from ..trap import Trap


@dataclass
class ChosenLatents:
    """The latents S of a recipe, each with the figures that it was chosen by."""

    latents: list[int]
    evidence: list[dict[str, float]]
    n_candidates: int


@dataclass(frozen=True)
class ChoiceData:
    """What a method may use to choose latents: nothing of the test images.

    `x` (n, d) are the pooled embeddings and `codes` (n, d_sae) the codes of all images; a method reads
    the rows `trap.choose` of them. `head` and `trap` are None where the concept has no labels.
    """

    data: RunData
    concept: str
    editor: Editor
    x: np.ndarray
    codes: np.ndarray
    head: LinearHead | None = None
    trap: Trap | None = None


class SuppressionMethod(Protocol):
    """Chooses the latents of a concept. EvidenceError with the figures if none qualifies.

    `needs_labels`: without labels of the concept the method `name` takes its place.
    """

    name: str
    needs_labels: bool

    def choose(self, given: ChoiceData) -> ChosenLatents:
        """Return the latents to suppress, and the figures by which each was chosen."""
        ...


@functools.cache
def suppression_methods() -> dict[str, SuppressionMethod]:
    """Return {name: method} of every module of this folder that defines `METHOD`."""
    return discover(__name__.rpartition(".")[0], "METHOD")


def suppression_method(name: str) -> SuppressionMethod:
    """Return a method; UserInputError offers the nearest for an unknown name."""
    if name not in suppression_methods():
        raise unknown("suppression method", name, suppression_methods())
    return suppression_methods()[name]
