"""The few figures that are computed while looking: prevalences with φ, groups, one latent's evidence.

Each stands on stored labels and codes, carries its n and an interval by bootstrap over groups, and
keeps the rule of the house: what is chosen is chosen on val, what is claimed is scored on test.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

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

DRAWS = 400
SHOWN_LABELS = 6


@dataclass(frozen=True)
class Cell:
    """An artifact among the images of one label: `n_pos` of `n` known; φ against the other labels.
    φ and its interval are None where one of the four cells is empty or n < 30."""

    artifact: str
    label: str
    n: int
    n_pos: int
    phi: float | None
    lo: float | None
    hi: float | None


def phi(n11: np.ndarray, n1_: np.ndarray, n_1: np.ndarray, n: np.ndarray) -> np.ndarray:
    """φ of 2 × 2 counts: both, first, second, all. nan where a margin is empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (n * n11 - n1_ * n_1) / np.sqrt(n1_ * (n - n1_) * n_1 * (n - n_1))


def prevalence(view: RunView, *, seed: int = 0) -> list[Cell]:
    """Every artifact against every label, over all images whose both are known.
    EvidenceError where there are no labels or no artifact columns."""
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
            np.stack([w @ counts for w in GroupBootstrap(view.groups[both], DRAWS, seed).weights()])
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


def latent_evidence(
    view: RunView, site: str, latent: int, *, seed: int = 0
) -> list[dict[str, Any]]:
    """How one latent ranks the labels: the SHOWN_LABELS that it ranks best on val (by AUPRC above
    prevalence), scored on test with intervals. EvidenceError without labels, or without a val."""
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
        row: dict[str, Any] = {
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
            low, high = auroc_span(y, score, _draws(view, test, seed))
            row |= {
                "auroc": auroc(y, score),
                "lo": low,
                "hi": high,
                "auprc": auprc(y, score),
                "prevalence": float(y.mean()),
            }
        rows.append(row)
    if not rows:
        raise EvidenceError("no label has both kinds of image in val: not measured")
    return rows


def _draws(view: RunView, rows: np.ndarray, seed: int) -> np.ndarray:
    """The bootstrap weights (DRAWS, len(rows)) over the groups of these rows, kept for the run."""
    key = f"draws {seed} {hash(rows.tobytes())}"
    if key not in view.memo:
        drawn = GroupBootstrap(view.groups[rows], DRAWS, seed).weights()
        view.memo[key] = np.stack([w.astype(np.float32) for w in drawn])
    return view.memo[key]


def auroc_span(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """95 % interval of the AUROC over the draws `weights` (draws, n)."""
    return percentile_interval(auroc_draws(y, score, weights))


def group_accuracy(
    rows: list[dict[str, Any]], groups: np.ndarray, target: str, *, seed: int = 0
) -> list[dict[str, Any]]:
    """Accuracy of each of the four groups of a trap's test rows before and after a suppression, and
    the change, each with its interval; cells under 30 images say so and carry none."""
    names = np.array([row["group4"] for row in rows])
    out = []
    for name in sorted(set(names)):
        part = [row for row, at in zip(rows, names, strict=True) if at == name]
        truth = name.startswith("y=1")
        right = np.array(
            [
                [(row[key] == target) == truth for key in ("top1_before", "top1_after")]
                for row in part
            ],
            dtype=float,
        )
        entry: dict[str, Any] = {
            "group": name,
            "n": len(part),
            "before": float(right[:, 0].mean()),
            "after": float(right[:, 1].mean()),
            "before_ci": None,
            "after_ci": None,
            "change_ci": None,
            "flipped": int(sum(row["flipped"] for row in part)),
            "fired": int(sum(row["fired"] for row in part)),
            "reason": None if len(part) >= MIN_CELL else f"n too small: {len(part)} images",
        }
        if entry["reason"] is None:
            member = groups[[row["row"] for row in part]]
            draws = np.array(
                [w @ right / w.sum() for w in GroupBootstrap(member, DRAWS, seed).weights()]
            )
            entry["before_ci"] = percentile_interval(draws[:, 0])
            entry["after_ci"] = percentile_interval(draws[:, 1])
            entry["change_ci"] = percentile_interval(draws[:, 1] - draws[:, 0])
        out.append(entry)
    return out


def probability(logit: float) -> float:
    """Return the probability of a decision threshold on the logit scale."""
    return 1.0 / (1.0 + math.exp(-logit))


def threshold_effects(
    rows: list[dict[str, Any]], threshold_before: float, threshold_after: float
) -> list[dict[str, Any]]:
    """Return, for each of the four groups, the share of right decisions before suppression, after it
    at the unchanged threshold, and after it at the threshold that was chosen again.

    `rows` are the test images of a trap (docs/formats.md), the thresholds logits. The share is the
    sensitivity in groups with the target and the specificity in groups without it.
    """
    old, new = probability(threshold_before), probability(threshold_after)
    out = []
    for name in sorted({row["group4"] for row in rows}):
        part = [row for row in rows if row["group4"] == name]
        truth = name.startswith("y=1")

        def right(key: str, at: float, part: list = part, truth: bool = truth) -> float:
            return sum((row[key] > at) == truth for row in part) / len(part)

        out.append(
            {
                "group": name,
                "n": len(part),
                "measure": "sensitivity" if truth else "specificity",
                "before": right("p_before", old),
                "after_unchanged": right("p_after", old),
                "after": right("p_after", new),
            }
        )
    return out


def flipped_cases(
    rows: list[dict[str, Any]], target: str, threshold_before: float | None = None
) -> list[dict[str, Any]]:
    """The images whose decision changed, with what it means, gravest first: a true target that is
    no longer called (malignant → benign), then other target → rest, then rest → target.

    With the threshold before suppression (a logit), `cause` says whether the decision changes at
    this threshold ("edit") or only because the threshold moved ("threshold").
    """
    found = []
    for row in rows:
        if not row["flipped"]:
            continue
        lost = row["top1_before"] == target
        true = row["group4"].startswith("y=1")
        kind = (
            f"{target} missed after suppression"
            if lost and true
            else "false alarm gone"
            if lost
            else f"{target} found after suppression"
            if true
            else "new false alarm"
        )
        cause = None
        if threshold_before is not None:
            old = probability(threshold_before)
            cause = "edit" if (row["p_before"] > old) != (row["p_after"] > old) else "threshold"
        found.append(
            {
                **row,
                "kind": kind,
                "cause": cause,
                "order": (not lost, not (lost and true), not true),
            }
        )
    return sorted(found, key=lambda r: (r["order"], -abs(r["p_before"] - r["p_after"]), r["row"]))


def nearest(view: RunView, row: int, k: int = 6) -> list[tuple[int, float]]:
    """The images nearest to `row` by cosine of the pooled embedding, itself left out."""
    x = view.pooled
    length = np.linalg.norm(x, axis=1)
    cosine = x @ x[row] / np.maximum(length * length[row], 1e-12)
    cosine[row] = -np.inf
    order = np.argsort(-cosine, kind="stable")[: min(k, len(x) - 1)]
    return [(int(i), float(cosine[i])) for i in order]
