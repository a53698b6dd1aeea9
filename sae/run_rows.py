"""The rows and figures of a run as `RunData` returns them: the columns and keys of docs/formats.md.

None stands for what was not measured. Intervals are [low, high], 95 % over groups.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Interval = list[float | None]


class ConceptRow(TypedDict):
    """A row of concepts.parquet: one live latent. `name` is None where it is unnamed."""

    site: str
    latent: int
    name: str | None
    type: str | None
    z: float
    p_null: float
    q: float
    p_correct: float | None
    rivals: str  # JSON: [[word, z], …]
    n_active: int
    frequency: float
    top_rows: list[int]
    label_concept: str | None
    label_auprc: float | None
    wrong: bool | None
    reason: str | None


class LabelRow(TypedDict):
    """A row of labels.parquet: a labelled concept, its best latent, and a probe as the ceiling."""

    concept: str
    type: Literal["artifact", "clinical", "diagnosis"]
    site: str | None
    latent: int | None
    auprc: float | None
    auprc_lo: float | None
    auprc_hi: float | None
    auroc: float | None
    auroc_lo: float | None
    auroc_hi: float | None
    probe_auprc: float | None
    probe_auroc: float | None
    prevalence: float | None
    n: int
    n_pos: int
    lift_share: float | None
    lift_share_lo: float | None
    lift_share_hi: float | None
    reason: str | None


class BottleneckRow(TypedDict):
    """A row of bottlenecks.parquet; `concepts` is a JSON list."""

    task: str
    kind: Literal["sae", "vocabulary", "random", "probe"]
    nec: int
    auroc: float
    lo: float | None
    hi: float | None
    n: int
    n_pos: int
    concepts: str


class SuppressedImageRow(TypedDict):
    """A row of suppression/<concept>.parquet: a test image before and after."""

    row: int
    group4: str
    p_before: float
    p_after: float
    top1_before: str
    top1_after: str
    flipped: bool
    fired: bool


class MeasuredEffects(TypedDict):
    """suppression/<concept>.json. Accuracies and AUROCs are 0 … 1; `worst_group_*` are of the four groups
    label × artifact, `clean_*` of images without artifacts, `insertion_*` of drawn artifacts. Where a figure
    was not measured it is None, and a key of the same name with `_reason` says why.
    """

    site: str
    target: str
    strength: float
    latents: list[int]
    worst_group_before: float
    worst_group_after: float
    worst_group_lift: float
    ci: Interval
    worst_group_before_ci: Interval
    worst_group_after_ci: Interval
    worst_group_after_fixed_threshold: float
    worst_group_after_refit: float
    worst_group_without_trap: float
    groups_before: dict[str, float]
    groups_after: dict[str, float]
    threshold_before: float
    threshold_after: float
    auroc_before: float
    auroc_after: float
    clean_auroc_delta: float | None
    clean_auroc_delta_reason: NotRequired[str]
    clean_is: str
    clean_n: int
    clean_n_pos: int
    insertion_residual: float | None
    insertion_residual_reason: NotRequired[str]
    insertion_n: NotRequired[int]
    insertion_before: NotRequired[float]
    insertion_after: NotRequired[float]
    random_sets: int
    random_sets_beaten: int
    random_lifts: list[float]
    identity_rows: int
    n: dict[str, int]
    test_is: str
    n_fit: int
    n_choose: int
    n_test: int


class UnmeasuredEffects(TypedDict):
    """suppression/<concept>.json of latents chosen by name: nothing was measured, and `reason` says why."""

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
