"""The figures that are computed when a page is opened: φ, groups, the evidence of one latent.

Each is computed from stored labels and codes, and has its n and an interval by bootstrap over groups.
What is selected is selected on validation images, and measured on test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.stats.intervals import (
    MIN_CELL,
    GroupBootstrap,
    auprc,
    auprc_table,
    auroc,
    auroc_draws,
    percentile_interval,
)

from .run_view import RunView

Interval = tuple[float, float] | None

DRAWS = 400
SHOWN_LABELS = 6


@dataclass(frozen=True)
class Cell:
    """An artifact in the images of one label: `n_pos` of `n` known ones, and φ with its interval.

    φ compares with all other labels. It is None where one of the four cells is empty or n < 30.
    """

    artifact: str
    label: str
    n: int
    n_pos: int
    phi: float | None
    lo: float | None
    hi: float | None


def phi(n11: np.ndarray, n1_: np.ndarray, n_1: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Return φ of the counts of a 2 by 2 table: both, first, second, all; nan for an empty margin."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * n11 - n1_ * n_1) / np.sqrt(n1_ * (n - n1_) * n_1 * (n - n_1))


def prevalence(view: RunView, *, seed: int = 0) -> list[Cell]:
    """Return every artifact against every label, over the images for which both are known.

    EvidenceError where there are no labels or no artifact columns.
    """
    if "prevalence" in view.memo:
        return view.memo["prevalence"]
    artifacts = [t for t in view.truth.values() if t.type == "artifact"]
    labels = [t for t in view.truth.values() if t.type == "diagnosis"]
    if not labels:
        raise EvidenceError("no labels: not measured")
    if not artifacts:
        raise EvidenceError("no artifact columns in the manifest: not measured")
    cells = []
    for artifact in artifacts:
        both = np.isfinite(artifact.values) & (view.labels != "")
        a = artifact.values[both]
        y = np.stack([t.values[both] for t in labels], axis=1)
        counts = np.hstack([np.ones((len(a), 1)), a[:, None], y, a[:, None] * y])
        draws = (
            np.stack(
                [
                    w @ counts
                    for w in GroupBootstrap(view.groups[both].tolist(), DRAWS, seed).weights()
                ]
            )
            if len(a)
            else np.zeros((0, counts.shape[1]))
        )
        for i, label in enumerate(labels):
            n, n_pos = int(y[:, i].sum()), int((a * y[:, i]).sum())
            value = low = high = None
            if n >= MIN_CELL and len(a) - n >= MIN_CELL and 0 < a.sum() < len(a):
                total = counts.sum(0)
                k = len(labels)
                value = float(phi(total[2 + k + i], total[1], total[2 + i], total[0]))
                low, high = percentile_interval(
                    phi(draws[:, 2 + k + i], draws[:, 1], draws[:, 2 + i], draws[:, 0])
                )
            cells.append(Cell(artifact.name, label.name, n, n_pos, value, low, high))
    view.memo["prevalence"] = cells
    return cells


class LabelScore(TypedDict):
    """How one latent ranks one label on test images; None, with the reason, where n is too small."""

    concept: str
    type: str
    n: int  # test images with a known label
    n_pos: int
    auroc: float | None
    lo: float | None  # interval of the AUROC
    hi: float | None
    auprc: float | None
    prevalence: float | None
    reason: str | None


def latent_evidence(view: RunView, site: str, latent: int, *, seed: int = 0) -> list[LabelScore]:
    """Return how one latent ranks the labels, scored on test images with intervals.

    The labels are the SHOWN_LABELS that it ranks best on validation images, by AUPRC above prevalence.
    EvidenceError without labels, or without validation images.
    """
    truths = list(view.truth.values())
    if not truths:
        raise EvidenceError("no labels: not measured")
    values = np.stack([t.values for t in truths], axis=1)
    code = view.codes(site).column(latent)
    val = np.flatnonzero(view.splits == "val")
    if not len(val):
        raise EvidenceError("the run has no val images: no label can be chosen for this latent")
    with np.errstate(invalid="ignore"):
        known = np.isfinite(values[val])
        share = np.where(known, values[val], 0).sum(0) / np.maximum(known.sum(0), 1)
        above = auprc_table(code[val][:, None], values[val])[:, 0] - share
    order = [
        i for i in np.argsort(-np.nan_to_num(above, nan=-9), kind="stable") if np.isfinite(above[i])
    ]
    rows = []
    for i in order[:SHOWN_LABELS]:
        test = np.flatnonzero((view.splits == "test") & np.isfinite(values[:, i]))
        y, score = values[test, i], code[test]
        row: LabelScore = {
            "concept": truths[i].name,
            "type": truths[i].type,
            "n": len(test),
            "n_pos": int(y.sum()),
            "auroc": None,
            "lo": None,
            "hi": None,
            "auprc": None,
            "prevalence": None,
            "reason": None,
        }
        if len(test) < MIN_CELL or row["n_pos"] < 5 or row["n_pos"] == len(test):
            row["reason"] = f"n too small: {row['n_pos']} of {len(test)} labelled test images"
        else:
            row["auroc"], row["auprc"] = auroc(y, score), auprc(y, score)
            row["lo"], row["hi"] = auroc_span(y, score, _draws(view, test, seed))
            row["prevalence"] = float(y.mean())
        rows.append(row)
    if not rows:
        raise EvidenceError("no label has both kinds of image in val: not measured")
    return rows


def _draws(view: RunView, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the bootstrap weights (DRAWS, len(rows)) over the groups of these rows; they are kept."""
    key = f"draws {seed} {hash(rows.tobytes())}"
    if key not in view.memo:
        drawn = GroupBootstrap(view.groups[rows].tolist(), DRAWS, seed).weights()
        view.memo[key] = np.stack([w.astype(np.float32) for w in drawn])
    return view.memo[key]


def auroc_span(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the AUROC over the draws `weights` (draws, n)."""
    return percentile_interval(auroc_draws(y, score, weights))


class ScoredImage(TypedDict):
    """An image that a suppression was measured on: a row of suppression/<concept>.parquet (docs/formats.md)."""

    row: int  # of images.parquet
    group4: str  # label and artifact, such as "y=1 a=0"
    p_before: float  # probability of the target
    p_after: float
    positive_before: bool  # the decision before suppression,
    positive_fixed: bool  # after it at the unchanged threshold,
    positive_matched: bool  # and at the prevalence-matched one
    flipped: bool  # the last of the three is not the first
    cause: str  # why it flipped: "edit", "threshold", "both", or ""
    fired: bool  # the embedding changed


class FlippedCase(ScoredImage):
    """An image whose decision changed."""

    kind: str  # what the change means
    order: tuple[bool, bool, bool]  # the gravest sorts first


DECISIONS = ("positive_before", "positive_fixed", "positive_matched")


def group_rates(
    rows: list[ScoredImage], groups: np.ndarray, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the share of right decisions of each of the four groups before suppression, and after it at
    both thresholds: the sensitivity in groups with the target, the specificity in groups without it.

    `rows` are the images of a suppression, `groups` the patient or lesion of every image of the run. Each
    share has an interval; a group with fewer than 30 images has a reason instead.
    """
    out = []
    for name in sorted({row["group4"] for row in rows}):
        part = [row for row in rows if row["group4"] == name]
        truth = name.startswith("y=1")
        right = np.array([[row[key] == truth for key in DECISIONS] for row in part], dtype=float)
        shares = np.column_stack([right, right[:, 2] - right[:, 0]])
        spans = _share_intervals(shares, groups[[row["row"] for row in part]], seed)
        entry: dict[str, Any] = {
            "group": name,
            "measure": "sensitivity" if truth else "specificity",
            "n": len(part),
            "flipped": sum(row["flipped"] for row in part),
            "fired": sum(row["fired"] for row in part),
            "reason": None if len(part) >= MIN_CELL else f"n too small: {len(part)} images",
        }
        for i, key in enumerate(("before", "fixed", "matched")):
            entry |= {key: float(right[:, i].mean()), f"{key}_ci": spans[i]}
        out.append({**entry, "change_ci": spans[3]})
    return out


def _share_intervals(right: np.ndarray, members: np.ndarray, seed: int) -> list[Interval]:
    """Return the 95 % interval of the mean of each column of `right` (n, k), None where n is small."""
    if len(right) < MIN_CELL:
        return [None] * right.shape[1]
    draws = [w @ right / w.sum() for w in GroupBootstrap(members.tolist(), DRAWS, seed).weights()]
    return [percentile_interval(column) for column in np.array(draws).T]


def decision_shares(view: RunView, predicted: np.ndarray, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return sensitivity and specificity of the predicted class for each label, on test images.

    `predicted` (n,) is the class with the highest probability. Each share has its n, and an interval
    by bootstrap over groups unless n is too small.
    """
    test = np.flatnonzero((view.splits == "test") & (view.labels != ""))
    out = []
    for label in sorted(set(view.labels[test])):
        entry: dict[str, Any] = {"label": label}
        for measure, wanted in (("sensitivity", True), ("specificity", False)):
            rows = test[(view.labels[test] == label) == wanted]
            right = ((predicted[rows] == label) == wanted).astype(float)[:, None]
            share = float(right.mean()) if len(rows) else None
            span = _share_intervals(right, view.groups[rows], seed)[0]
            entry |= {measure: share, f"{measure}_ci": span, f"{measure}_n": len(rows)}
        out.append(entry)
    return out


def flipped_cases(rows: list[ScoredImage], target: str) -> list[FlippedCase]:
    """Return the images whose decision changed, with what it means, gravest first.

    First a true target that is no longer called (malignant → benign), then another one that is no
    longer called, then those that are called now.
    """
    found: list[FlippedCase] = []
    for row in rows:
        if not row["flipped"]:
            continue
        lost, true = row["positive_before"], row["group4"].startswith("y=1")
        kind = (
            f"{target} missed after suppression"
            if lost and true
            else "false alarm gone"
            if lost
            else f"{target} found after suppression"
            if true
            else "new false alarm"
        )
        found.append({**row, "kind": kind, "order": (not lost, not (lost and true), not true)})
    return sorted(found, key=lambda r: (r["order"], -abs(r["p_before"] - r["p_after"]), r["row"]))


def nearest(view: RunView, row: int, k: int = 6) -> list[tuple[int, float]]:
    """Return the images nearest to `row` by cosine of the pooled embedding, itself left out."""
    x = view.pooled
    length = np.linalg.norm(x, axis=1)
    cosine = x @ x[row] / np.maximum(length * length[row], 1e-12)
    cosine[row] = -np.inf
    order = np.argsort(-cosine, kind="stable")[: min(k, len(x) - 1)]
    return [(int(i), float(cosine[i])) for i in order]
