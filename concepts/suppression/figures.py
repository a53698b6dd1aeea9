"""The figures of a measured suppression, as `suppression/<concept>.json` holds them (docs/formats.md).

Accuracies, AUROC values and probabilities are fractions from 0 to 1; a `_lift` or `_delta` is a
difference of two of them, from -1 to 1. An interval is [low, high] at 95 %, from a bootstrap over
groups; its bounds are nan here, and null in the file, if too few draws were defined. The optional
`<key>_reason` says why the figure `<key>` is None.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict, final


class CleanFigures(TypedDict):
    """What the suppression costs on test images without artifacts."""

    clean_n: int  # images
    clean_n_pos: int  # images of the target class
    clean_auroc_delta: float | None  # AUROC after minus before
    clean_auroc_delta_reason: NotRequired[str]


class EffectFigures(CleanFigures):
    """The accuracy of the four groups (label × artifact) of the test rows, before and after."""

    latents: list[int]
    worst_group_before: float
    worst_group_after: float  # at the threshold that was chosen again
    worst_group_after_fixed_threshold: float  # at the threshold from before
    worst_group_lift: float  # worst_group_after minus worst_group_before
    ci: list[float]  # of worst_group_lift
    worst_group_before_ci: list[float]
    worst_group_after_ci: list[float]
    groups_before: dict[str, float]  # {"y=1 a=0": accuracy}
    groups_after: dict[str, float]
    threshold_before: float  # a logit
    threshold_after: float
    auroc_before: float
    auroc_after: float
    random_sets: int  # sets of random latents that fire as often
    random_sets_beaten: int  # sets with a smaller lift
    random_lifts: list[float]  # worst_group_lift of each random set; not in the recipe
    n: dict[str, int]  # test images of each group
    test_is: str  # which test images: see Trap
    n_fit: int
    n_choose: int
    n_test: int


class InsertionFigures(TypedDict):
    """How far an artifact that is drawn onto images moves p(target)."""

    insertion_n: NotRequired[int]  # images
    insertion_before: NotRequired[float]  # mean |Δp| without suppression
    insertion_after: NotRequired[float]  # mean |Δp| with suppression
    insertion_residual: float | None  # after / before; 0: the drawn artifact moves nothing
    insertion_residual_reason: NotRequired[str]


@final
class MeasuredFigures(EffectFigures, InsertionFigures):
    """All figures of a suppression whose effect was measured."""

    site: str
    target: str
    strength: float  # P(artifact | target) in head training
    clean_is: str  # which images the figures `clean_…` are of
    worst_group_after_refit: float  # with a head fitted on suppressed embeddings
    worst_group_without_trap: float  # of a head fitted on as many images without the trap
    identity_rows: int  # images whose embedding does not change in any bit


@final
class UnmeasuredFigures(TypedDict):
    """The same object for latents chosen by name, whose effect cannot be measured: None with a reason."""

    site: str
    latents: list[int]
    reason: str
    worst_group_before: None
    worst_group_after: None
    ci: None
    clean_auroc_delta: None
    insertion_residual: None
    random_sets: None
    random_sets_beaten: None
    n: None


Figures = MeasuredFigures | UnmeasuredFigures
