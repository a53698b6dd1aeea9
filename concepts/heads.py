"""The stage `heads`: the linear head that a run predicts with, in heads/label.safetensors."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.heads import LinearHead, fit_head
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import POOLED, RunData
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_interval
from dermaudit.towers.loading.reference import ReferenceFiles

from .results import make_or_give_reason, rounded

MIN_OF_CLASS = 3  # a class with fewer train images is left out of the head


HEADS = Record(
    "heads",
    reads=("images", "embed"),
    writes=("heads/label.safetensors", "heads/label.reason.json"),
)


@stage("heads", StageOptions, HEADS)
def fit_heads(run: Run, options: StageOptions = StageOptions()) -> dict[str, Any]:
    """Fit the linear head of the run on its train split.

    It is measured on test images. Without labels, or with too few, the run predicts with the head of the reference,
    if its SAE is the reference dictionary; else the reason is recorded, and it predicts zero-shot.
    """
    run.require("embed")
    seed = run.seed(options.seed)
    data = RunData(run)
    path = run.files.head()
    reference = data.reference(POOLED)

    def fit() -> Made[dict[str, Any]]:
        if not set(data.labels) - {""}:
            raise EvidenceError("no labels: no head is fitted, predictions are zero-shot")
        train = np.flatnonzero(data.rows("train") & (data.labels != ""))
        classes, counts = np.unique(data.labels[train].astype(str), return_counts=True)
        kept = train[np.isin(data.labels[train], classes[counts >= MIN_OF_CLASS].tolist())]
        head = fit_head(data.pooled[kept], data.labels[kept], data.groups[kept], seed=seed)
        head.save(path)
        figures = {"classes": head.classes, "C": head.C, "n_train": head.n_train}
        return [path], rounded({**figures, "test": _measure_on_test(data, head)})

    def make() -> Made[dict[str, Any]]:
        try:
            return fit()
        except EvidenceError:
            if reference is None:
                raise
            return _of_reference(data, reference)

    figures = run.perform(
        HEADS,
        {"seed": seed, **({"reference": reference.sha256} if reference else {})},
        lambda: make_or_give_reason(make, run.files.head_reason(), path),
        reads=[*run.reads_of(HEADS), *([f"fit:{POOLED}"] if reference else [])],
        force=options.force,
    )
    return dict(figures)


def _of_reference(data: RunData, reference: ReferenceFiles) -> Made[dict[str, Any]]:
    """Copy the head of the reference of the model into the run, and measure it on the labelled images of the run."""
    path = data.run.files.head()
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(reference.file(f"heads/{path.name}"), path)
    head = LinearHead.load(path)
    figures = {"classes": head.classes, "C": head.C, "n_train": head.n_train}
    measured = _measure_on_test(data, head, np.ones(data.n, dtype=bool))
    return [path], rounded({**figures, "reference": reference.model, "test": measured})


def _measure_on_test(
    data: RunData, head: LinearHead, rows: np.ndarray | None = None
) -> dict[str, Any]:
    """Return accuracy, balanced accuracy and the AUROC of every class on the labelled test images, or on the labelled
    images of a mask `rows` (n,).
    """
    rows = data.rows("test") if rows is None else rows
    test = np.flatnonzero(rows & np.isin(data.labels, head.classes))
    if len(test) < MIN_CELL:
        return {"n": len(test), "reason": "n too small"}
    labels, groups = data.labels[test], data.groups[test]
    p = head.probs(data.pooled[test])
    correct = np.array(head.classes)[p.argmax(1)] == labels
    recalls = [correct[labels == c].mean() for c in head.classes if (labels == c).any()]
    figures: dict[str, Any] = {
        "n": len(test),
        "accuracy": float(correct.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
    }
    for i, label in enumerate(head.classes):
        y = (labels == label).astype(float)
        if 5 <= y.sum() < len(test):
            interval = auroc_interval(y, p[:, i], groups, n_draws=300)
            figures[f"auroc:{label}"] = [auroc(y, p[:, i]), *interval]
    return figures
