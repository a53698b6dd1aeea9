"""`bench table`: the figures of saved predictions, by our bootstrap or by the published one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import EvidenceError, unknown
from dermaudit.stats.intervals import MIN_CELL

from .inputs.saved_predictions import Predictions
from .measures.legacy import (
    PUBLISHED_FILE,
    REFERENCE,
    Agreement,
    LegacyCell,
    agreement,
    legacy_cells,
    read_published,
)
from .measures.metrics import METRICS, SHOWN, TESTED, columns, recall_figures, score_predictions
from .options import Resampling
from .output.render import WORDS, Sheet, cell, comparison_sheet, figure_sheet


def classification_sheets(
    dataset: str,
    models: dict[str, Predictions],
    resampling: Resampling,
    *,
    by_class: bool = False,
    digits: int = 4,
) -> list[Sheet]:
    """Return the full-sample values with bootstrap intervals, paired differences, recall by class."""
    first = next(iter(models.values()))
    figures = score_predictions(models, resampling)
    title = f"{dataset}: {first.n} images, {len(first.classes)} classes"
    sheet = figure_sheet(
        title, figures, SHOWN, first.n, digits=digits, what="classification", dataset=dataset
    )
    sheet.notes.append(_units(first, resampling.n_draws))
    counts = np.bincount(first.truth, minlength=len(first.classes))
    rare = [f"{c} {k}" for c, k in zip(first.classes, counts, strict=True) if 0 < k < MIN_CELL]
    absent = [c for c, k in zip(first.classes, counts, strict=True) if k == 0]
    if rare:
        sheet.notes.append(
            f"classes of fewer than {MIN_CELL} images: {', '.join(rare)}; all measures but accuracy "
            "and weighted F1 give each of them the weight of a large class"
        )
    if absent:
        sheet.notes.append(f"classes without an image, left out of the means: {', '.join(absent)}")
    for name, found in models.items():
        n_differing = int(
            (found.probs.max(1) > found.probs[np.arange(found.n), found.predicted]).sum()
        )
        if n_differing:
            sheet.notes.append(
                f"{name}: in {n_differing} rows predicted_label is not the most probable class; "
                "predicted_label is what is scored"
            )
    sheets = [sheet]
    if len(models) > 1 and first.n >= MIN_CELL:
        tested = columns(figures, TESTED)
        comparisons = tested.compare(reference=resampling.reference)
        sheets.append(comparison_sheet(tested, comparisons, digits=digits, dataset=dataset))
    if by_class:
        sheets.append(_class_sheet(dataset, models, resampling, digits))
    return sheets


def _units(first: Predictions, n_draws: int) -> str:
    n_groups = len(set(first.groups))
    unit = f"{n_groups} groups" if first.grouped else "images (no column group: each is its own)"
    return f"full-sample values; 95 % intervals by {n_draws} resamples of {unit}"


def _class_sheet(
    dataset: str, models: dict[str, Predictions], resampling: Resampling, digits: int
) -> Sheet:
    figures, counts = recall_figures(models, resampling)
    rows = [
        (
            name,
            str(counts[k]),
            *(
                cell(figures.points[m, k], *figures.interval(m, k), digits, counts[k])
                for m in range(len(models))
            ),
        )
        for k, name in enumerate(figures.metrics)
    ]
    by_name = dict(zip(figures.metrics, counts.tolist(), strict=True))
    # A figure that is not shown is not in the file either.
    records = [
        {**row, "metric": "recall", "class": row["metric"], "n": by_name[row["metric"]]}
        for row in figures.records(table="recall by class", dataset=dataset)
        if by_name[row["metric"]] >= MIN_CELL
    ]
    return Sheet(f"{dataset}: recall by class", ("class", "n", *figures.models), rows, [], records)


def legacy_sheets(
    found: dict[str, dict[str, Predictions]], folder: Path
) -> tuple[list[Sheet], dict[str, Any]]:
    """Return the published table computed again, and how many of its cells agree."""
    cells: dict[tuple[str, str], dict[str, LegacyCell]] = {}
    sheets = []
    for dataset, models in found.items():
        against = models.get(REFERENCE)
        for name, predictions in models.items():
            reference = None if name == REFERENCE else against
            cells[dataset, name] = legacy_cells(predictions, reference)
        n = next(iter(models.values())).n
        sheets.append(_legacy_sheet(dataset, n, {m: cells[dataset, m] for m in models}))
    floored = sum(c.floored for measures in cells.values() for c in measures.values())
    sheets[-1].notes.append(f"a lower bound of 0 was lifted in {floored} cells, as published")
    path = _published_file(folder)
    if path is None:
        sheets[-1].notes.append(f"there is no {PUBLISHED_FILE} to compare with")
        return sheets, {"published": None}
    checked = agreement(cells, read_published(path))
    sheets[-1].notes.extend(_agreement_notes(checked, path))
    return sheets, {
        "published": {
            "file": path.name,
            "cells": checked.cells,
            "equal": checked.equal,
            "p_values": checked.p_cells,
            "p_values_equal": checked.p_equal,
            "largest_difference": checked.largest,
            "differing": list(checked.differing),
        }
    }


def _legacy_sheet(dataset: str, n: int, cells: dict[str, dict[str, LegacyCell]]) -> Sheet:
    """Return the sheet of one data set; `cells` {model: {measure: cell}}."""
    return Sheet(
        f"{dataset}: {n} images, the published bootstrap (legacy)",
        ("model", *(WORDS[m] for m in METRICS), f"p against {REFERENCE}"),
        [
            (name, *(measures[m].text() for m in METRICS), measures["accuracy"].p_text())
            for name, measures in cells.items()
        ],
        [
            "points are means of 1,000 resamples of images (seed 42 for each model), not the "
            "values of the sample; one t-test on correctness stands for all measures"
        ],
        [
            {
                "table": "legacy",
                "dataset": dataset,
                "model": name,
                "metric": metric,
                "value": cell.mean,
                "low": cell.low,
                "high": cell.high,
                "p": cell.p,
                "n": n,
            }
            for name, measures in cells.items()
            for metric, cell in measures.items()
        ],
    )


def _published_file(folder: Path) -> Path | None:
    for place in (folder, folder.absolute().parent):
        if (place / PUBLISHED_FILE).is_file():
            return place / PUBLISHED_FILE
    return None


def _agreement_notes(checked: Agreement, path: Path) -> list[str]:
    if not checked.cells:
        return [f"{path.name} has no cell of these models and data sets"]
    notes = [
        f"{path.name}: {checked.equal} of {checked.cells} cells (mean and both bounds) agree to all "
        f"4 printed digits; {checked.p_equal} of {checked.p_cells} p-values agree as printed"
    ]
    return notes + [f"differs: {line}" for line in checked.differing[:5]]


def tabulate(
    found: dict[str, dict[str, Predictions]],
    folder: Path,
    resampling: Resampling,
    *,
    legacy: bool = False,
    by_class: bool = False,
) -> tuple[list[Sheet], dict[str, Any]]:
    """Return (sheets, what `--json` adds to their records).

    Errors: EvidenceError when no data set has 30 images, UserInputError for a reference that no data
    set has.
    """
    reference = resampling.reference
    if reference and not any(reference in models for models in found.values()):
        raise unknown(
            "reference model", reference, sorted({m for ms in found.values() for m in ms})
        )
    if legacy:
        return legacy_sheets(found, folder)
    sizes = {dataset: next(iter(models.values())).n for dataset, models in found.items()}
    if max(sizes.values()) < MIN_CELL:
        listed = ", ".join(f"{dataset} {n}" for dataset, n in sizes.items())
        raise EvidenceError(
            f"{folder}: no data set has {MIN_CELL} images ({listed})",
            f"predict at least {MIN_CELL} images with every model",
            {"n": sizes},
        )
    sheets: list[Sheet] = []
    for dataset, models in found.items():
        here = resampling
        if reference and reference not in models:
            say(f"  {dataset} has no {reference}: every pair is compared there")
            here = replace(resampling, reference=None)
        sheets += classification_sheets(dataset, models, here, by_class=by_class)
    return sheets, {}
