"""`bench probe` as tables: the probe of every label by itself, and the few-label curve of `label`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.data import Manifest
from dermaudit.stats.intervals import MIN_CELL

from .few_labels import Labelled, curve_sheets
from .inputs.saved_predictions import Predictions
from .output.render import Sheet


def label_sheet(name: str, dataset: str, figures: dict[str, dict[str, Any]]) -> Sheet:
    """What `measure` found of one model."""
    rows, records = [], []
    for label, row in figures.items():
        rows.append(
            (
                label,
                str(row["n"]),
                str(row["n_pos"]),
                "{:.3f} [{:.3f}, {:.3f}]".format(row["probe"], *row["probe_ci"]),
                "{:.3f} [{:.3f}, {:.3f}]".format(row["prompt"], *row["prompt_ci"]),
            )
        )
        for what in ("probe", "prompt"):
            low, high = row[f"{what}_ci"]
            records.append(
                {
                    "table": f"{what} AUROC",
                    "dataset": dataset,
                    "model": name,
                    "metric": label,
                    "value": row[what],
                    "low": low,
                    "high": high,
                    "n": row["n"],
                    "n_pos": row["n_pos"],
                }
            )
    return Sheet(
        f"{name} on {dataset} (test split; 95 % intervals over groups)",
        ("label", "n", "n_pos", "probe AUROC", "prompted AUROC"),
        rows,
        [],
        records,
    )


def curve_of(
    manifest: Manifest,
    embedded: dict[str, np.ndarray],
    dataset: str,
    *,
    n_parts: int,
    n_draws: int,
    seed: int,
    reference: str | None,
) -> tuple[list[Sheet], dict[str, Predictions]]:
    """(sheets of the curve, {model: test predictions of the probe on all of train}); both empty
    where the data set has no label to learn from."""
    labels = np.array([label or "" for label in manifest.labels], dtype=object)
    splits = np.asarray(manifest.splits)
    readable = np.all([np.isfinite(x).all(1) for x in embedded.values()], axis=0)
    usable = readable & (labels != "")
    train, test = (np.flatnonzero(usable & (splits == s)) for s in ("train", "test"))
    classes = sorted(set(labels[train].tolist()))
    unseen = np.array([label not in classes for label in labels[test]], dtype=bool)
    if unseen.any():
        say(f"  {unseen.sum()} test images of labels that train lacks are left out")
        test = test[~unseen]
    if len(classes) < 2 or len(train) < MIN_CELL or len(test) < MIN_CELL:
        return [], {}
    number = {label: i for i, label in enumerate(classes)}
    y = np.array([number.get(label, -1) for label in labels], dtype=int)
    groups = np.asarray(manifest.groups, dtype=str)
    data = {
        name: (
            Labelled(x[train], y[train], groups[train]),
            Labelled(x[test], y[test], groups[test]),
        )
        for name, x in embedded.items()
    }
    sheets, last = curve_sheets(
        dataset, data, classes, n_parts=n_parts, n_draws=n_draws, seed=seed, reference=reference
    )
    names = manifest.column("image")
    predictions = {
        name: Predictions(
            [names[i] for i in test],
            y[test],
            probs.argmax(1),
            probs / probs.sum(1, keepdims=True),
            classes,
            groups[test].tolist(),
            True,
        )
        for name, probs in last.items()
    }
    return sheets, predictions
