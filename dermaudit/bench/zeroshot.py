"""Zero-shot classification of a manifest's labels: probabilities by prompt ensembles, then figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dermaudit.data import Manifest
from dermaudit.stats.intervals import MIN_CELL
from dermaudit.towers import ZeroShot
from dermaudit.towers.embedding import Embedded

from .inputs.prompts import Classes
from .inputs.saved_predictions import Predictions
from .measures.hierarchy import class_nodes, hierarchy_figures
from .measures.metrics import confusion
from .output.render import TOO_SMALL, Sheet, cell
from .table import honest_sheets


def predict(
    tower: Any,
    embedded: Embedded,
    manifest: Manifest,
    truth: np.ndarray,
    classes: Classes,
    templates: list[str],
) -> Predictions:
    """Zero-shot predictions of the embedded rows; `truth` (n rows of the manifest,) class numbers."""
    head = ZeroShot(tower, classes, templates)
    logits = head.logits(torch.from_numpy(embedded.x).to(head.weight.device))
    # The softmax in float64: a float32 one need not sum to 1 to the last printed digit.
    return as_predictions(
        logits.double().softmax(1).cpu().numpy(), embedded, manifest, truth, list(classes)
    )


def as_predictions(
    probs: np.ndarray, embedded: Embedded, manifest: Manifest, truth: np.ndarray, classes: list[str]
) -> Predictions:
    """Probabilities (k, classes) of the embedded rows, with the names and groups of the manifest."""
    names, groups = manifest.column("image"), manifest.groups
    return Predictions(
        [names[i] for i in embedded.rows],
        truth[embedded.rows],
        probs.argmax(1),
        probs,
        classes,
        [groups[i] for i in embedded.rows],
        True,
    )


def zeroshot_sheets(
    dataset: str,
    models: dict[str, Predictions],
    classes: Classes,
    *,
    ontology: Any = None,
    n_draws: int,
    seed: int,
    reference: str | None,
    by_class: bool,
) -> tuple[list[Sheet], dict[str, Any]]:
    """(sheets, what --json adds: the confusion of each model and the nodes of the classes)."""
    sheets, _ = honest_sheets(
        dataset,
        models,
        n_draws=n_draws,
        seed=seed,
        reference=reference,
        by_class=by_class,
        digits=3,
    )
    first = next(iter(models.values()))
    counts = np.bincount(first.truth, minlength=len(first.classes))
    common = int(counts.argmax())
    sheets[0].notes.append(
        f"control: always {first.classes[common]} has accuracy {counts[common] / first.n:.3f}, "
        f"balanced accuracy {1 / (counts > 0).sum():.3f}"
    )
    more: dict[str, Any] = {
        "classes": classes,
        "confusion": {name: confusion(p).tolist() for name, p in models.items()},
    }
    if ontology is not None:
        nodes = class_nodes(ontology, classes)
        sheets.append(_hierarchy_sheet(dataset, models, ontology, nodes, n_draws, seed))
        more["nodes"] = {
            code: None if node is None else ontology.path(node)
            for code, node in zip(classes, nodes, strict=True)
        }
    return sheets, more


def _hierarchy_sheet(
    dataset: str,
    models: dict[str, Predictions],
    ontology: Any,
    nodes: list,
    n_draws: int,
    seed: int,
) -> Sheet:
    figures, counts = hierarchy_figures(models, ontology, nodes, n_draws=n_draws, seed=seed)
    first = next(iter(models.values()))
    # Most classes of a task share the upper nodes: how much is right there without looking?
    common = int(np.bincount(first.truth).argmax())
    blind = {"blind": replace(first, predicted=np.full(first.n, common))}
    control, _ = hierarchy_figures(blind, ontology, nodes, n_draws=1, seed=seed)
    rows = [
        (
            name,
            str(counts[k]),
            *(
                cell(figures.points[m, k], *figures.interval(m, k), 3, counts[k])
                for m in range(len(models))
            ),
            f"{control.points[0, k]:.3f}" if counts[k] >= MIN_CELL else TOO_SMALL,
        )
        for k, name in enumerate(figures.metrics)
    ]
    by_name = dict(zip(figures.metrics, counts, strict=True))
    records = [
        {**row, "n": by_name[row["metric"]]}
        for row in figures.records(table="hierarchy", dataset=dataset)
        if by_name[row["metric"]] >= MIN_CELL
    ]
    unknown = [c for c, node in zip(first.classes, nodes, strict=True) if node is None]
    notes = ["right at a level: predicted and true class share their node of that depth"]
    if unknown:
        notes.append(
            f"not in the ontology: {', '.join(unknown)}; their images are left out, and calling "
            "another image so is wrong at every level"
        )
    header = ("level", "n", *figures.models, f"(always {first.classes[common]})")
    return Sheet(f"{dataset}: hierarchical accuracy", header, rows, notes, records)
