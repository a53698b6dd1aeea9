"""`bench probe` as tables: the probe of every label by itself, and the few-label curve of `label`."""

from __future__ import annotations

from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.data import Manifest
from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import MIN_CELL

from .few_labels import LabelledEmbeddings, curve_sheets
from .inputs.saved_predictions import Predictions, write_predictions
from .options import ProbeOptions, Resampling
from .output.render import Sheet
from .session import BenchSession


def run_probe(options: ProbeOptions) -> dict[str, Any]:
    """Probe every model on all labels and on few of them; return what `--json` prints."""
    if options.parts < 1:
        raise UserInputError(
            f"--parts {options.parts} must be at least 1", "--parts 1 draws each part of train once"
        )
    session = BenchSession(options, "probe", saves_predictions=True)
    manifest = session.manifest()

    from dermaudit.pretrain.training.probe import embed_splits, measure

    sheets, measured, embedded = [], {}, {}
    for name, tower in session.towers():
        embedded[name] = embed_splits(tower, manifest)
        measured[name] = measure(tower, manifest, seed=options.seed, x=embedded[name])
        if not measured[name]:
            raise EvidenceError(
                f"{options.data} has no label with enough test images to measure {name} on"
            )
        sheets.append(label_sheet(name, session.dataset, measured[name]))
    curve, predictions = few_label_curve(
        manifest, embedded, session.dataset, session.resampling, options.parts
    )
    written: dict[str, Any] = {}
    if options.out is not None and predictions:
        paths = write_predictions(options.out, session.dataset, predictions)
        written["predictions"] = [str(path) for path in paths]
    return {
        "data": str(options.data),
        "names": session.models,
        "where": options.where,
        "models": measured,
        **written,
        **session.finish([*sheets, *curve]),
    }


def label_sheet(name: str, dataset: str, figures: dict[str, dict[str, Any]]) -> Sheet:
    """Return the figures that `measure` gave for one model."""
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


def few_label_curve(
    manifest: Manifest,
    embedded: dict[str, np.ndarray],
    dataset: str,
    resampling: Resampling,
    n_subsets: int,
) -> tuple[list[Sheet], dict[str, Predictions]]:
    """Return (sheets of the curve, {model: test predictions of the probe on all of train}).

    Both are empty if the data set has too few labels.
    """
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
            LabelledEmbeddings(x[train], y[train], groups[train]),
            LabelledEmbeddings(x[test], y[test], groups[test]),
        )
        for name, x in embedded.items()
    }
    sheets, last = curve_sheets(dataset, data, classes, resampling, n_subsets=n_subsets)
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
