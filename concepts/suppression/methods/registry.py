"""The extension point for methods that choose the latents of a concept: a file of this folder that
defines `METHOD` adds one (`dermaudit recipe make --method`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dermaudit.errors import EvidenceError, unknown
from dermaudit.plugins import discover

if TYPE_CHECKING:
    from dermaudit.sae import ThresholdSAE, TopKSAE

    from ...evidence.cross_fit import TrainingRows
    from ..editor import Edit


class NoLatent(EvidenceError):
    """No latent qualifies. In one fold of a cross-fit, nothing is suppressed then."""


@dataclass(frozen=True)
class ChosenLatents:
    """Latents S of an SAE, each with the figures that it was chosen by; `source` says what SAE it is: that of
    the run, or that of concept latents alone. `first`: the concepts of all latents but
    the last, where there are several concepts.
    """

    sae: ThresholdSAE | TopKSAE
    latents: list[int]
    evidence: list[dict[str, float]]
    source: Literal["sae", "concept_latent"]
    first: tuple[str, ...] = ()


class SuppressionMethod(Protocol):
    """Chooses the latents of a concept from the rows that it may use. NoLatent with the figures if none
    qualifies. A method that needs no labels never reads `a` of the rows.
    """

    @property
    def name(self) -> str:
        """What `--method` calls it."""
        ...

    @property
    def needs_labels(self) -> bool:
        """Whether it needs labels of the concept."""
        ...

    def choose(self, rows: TrainingRows, edit: Edit) -> ChosenLatents:
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
