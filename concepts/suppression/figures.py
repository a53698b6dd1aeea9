"""The figures of a suppression, as `suppression/<concept>.json` holds them (docs/formats.md).

Accuracies, AUROC values and probabilities are fractions from 0 to 1; a `_delta` is a difference of two of
them, from -1 to 1. An interval is [low, high] at 95 %, from a bootstrap over groups; a value that is not
defined, or of too few images, is nan here and null in the file.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, final

from ..evidence.effect_figures import EffectFigures


class InsertionFigures(TypedDict):
    """How far an artifact that is drawn onto images moves p(target) of the trap heads."""

    insertion_n: NotRequired[int]  # images
    insertion_before: NotRequired[float]  # mean |Δp| without suppression
    insertion_after: NotRequired[float]  # mean |Δp| with suppression
    insertion_residual: float | None  # after / before; 0: the drawn artifact moves nothing
    insertion_residual_reason: NotRequired[str]


class Stability(TypedDict):
    """Cosine of the directions that a method makes from two disjoint halves of the groups: the mean of
    `halvings`, the lowest and the highest. Several latents are matched one to one.
    """

    cosine: float
    low: float
    high: float
    halvings: int


@final
class MeasuredFigures(EffectFigures, InsertionFigures):
    """The figures of a suppression that was measured. `refused`: why no recipe was written, [] if nothing
    speaks against it; with `accepted_limits` the recipe was written all the same, for the reason given.
    """

    site: str
    method: str
    latents: list[int]
    target: str
    strength: float  # P(artifact | target) in head training
    n_scored: int  # images that the figures are of
    n_trap: int  # images that a trap head was fitted on, mean over the folds
    random_changes: list[float]  # of the cross-group AUROC, by each set of random latents
    refused: list[str]
    accepted_limits: str | None
    # None: a half of the images is too small; absent: latents that are chosen by their name, or were taught with
    # other images
    stability: NotRequired[Stability | None]
    measured_on: NotRequired[dict[str, Any]]  # the reference, if not the images of the run


@final
class UnmeasuredFigures(TypedDict):
    """The same object for a recipe whose limits were accepted although nothing could be measured."""

    site: str
    method: str
    latents: list[int]
    reason: str
    refused: list[str]
    accepted_limits: str


Figures = MeasuredFigures | UnmeasuredFigures
