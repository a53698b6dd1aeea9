"""The figures of a cross-fitted suppression as they are written. Imports no torch: pages read them."""

from __future__ import annotations

from typing import TypedDict


class EffectFigures(TypedDict):
    """A SuppressionEffect as it is written (docs/formats.md): `worst_group_*` are the accuracies of the worst
    group, before, at the unchanged and at the prevalence-matched threshold; pairs of rates are without and
    with the artifact.
    """

    cross_group_auroc_before: float
    cross_group_auroc_after: float
    oracle: float
    gap_closed: float
    ci: tuple[float, float]
    auroc_before: float
    auroc_after: float
    clean_auroc_delta: float
    clean_auroc_ci: tuple[float, float]
    worst_group_before: float
    worst_group_fixed: float
    worst_group_prevalence: float
    sensitivity_before: tuple[float, float]
    specificity_before: tuple[float, float]
    sensitivity_fixed: tuple[float, float]
    specificity_fixed: tuple[float, float]
    sensitivity_prevalence: tuple[float, float]
    specificity_prevalence: tuple[float, float]
    flips: dict[str, int]
    identity_share: float
    random_beaten: int | None
    n: dict[str, int]
