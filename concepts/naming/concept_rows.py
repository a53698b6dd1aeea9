"""The rows of concepts.parquet (docs/formats.md): what is known of each live latent."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

from ..results import rounded

_SCHEMA = pa.schema(
    [
        ("site", pa.string()),
        ("latent", pa.int64()),
        ("verdict", pa.string()),
        ("name", pa.string()),
        ("type", pa.string()),
        ("named_by", pa.string()),
        ("z", pa.float64()),
        ("p_null", pa.float64()),
        ("q", pa.float64()),
        ("p_correct", pa.float64()),
        ("rivals", pa.string()),
        ("n_active", pa.int64()),
        ("frequency", pa.float64()),
        ("top_rows", pa.list_(pa.int64())),
        ("label_concept", pa.string()),
        ("label_auprc", pa.float64()),
        ("wrong", pa.bool_()),
        ("reason", pa.string()),
        ("one_of", pa.list_(pa.string())),
        ("agreement", pa.float64()),
        ("half_names", pa.list_(pa.string())),
    ]
)


class ConceptRow(TypedDict):
    """One live latent: its name, the evidence for it, and where it is active."""

    site: str
    latent: int
    verdict: str  # of methods.registry.VERDICTS
    name: str | None  # a concept of the vocabulary; None: unnamed, see `reason`
    named_by: str | None  # labels or words
    type: str | None  # artifact, clinical or diagnosis
    z: float | None  # score of the best word, in standard deviations of the null
    p_null: float | None  # p value of that score
    q: float | None  # the p value corrected over latents (false discovery rate)
    p_correct: (
        float | None
    )  # that the name is right, of a set that it contains the right one; None: not estimated
    rivals: str  # JSON: the best words with their scores, [[word, score], …]
    n_active: int  # images
    frequency: float  # n_active / images
    top_rows: list[int]  # images with the highest activation, highest first
    label_concept: str | None  # the label that fits best on train and val
    label_auprc: float | None  # AUPRC of that label on test
    wrong: bool | None  # whether labels of test images refute the name; None: not judged
    reason: str | None  # why the latent is unnamed
    one_of: list[str] | None  # concepts of which it is one; None unless the verdict is a set
    agreement: (
        float | None
    )  # mean cosine of the fits of a consensus with this latent; None: one fit, or residual
    half_names: (
        list[str] | None
    )  # names in the dictionaries of two halves, "unnamed" or "not found"; None: no halves


def concept_table(rows: list[ConceptRow]) -> pa.Table:
    """Return the table that is written, with numbers rounded to 9 digits."""
    return pa.Table.from_pylist([rounded(row, 9) for row in rows], _SCHEMA)
