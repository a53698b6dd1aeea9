"""Zero-shot classification of a manifest's labels: probabilities by prompt ensembles, then figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.data import Manifest
from dermaudit.data.captions.ontology import Ontology
from dermaudit.errors import UserInputError
from dermaudit.stats.intervals import MIN_CELL

from .inputs.prompts import Classes, load_classes, load_templates, named_classes, truth_numbers
from .inputs.saved_predictions import Predictions, write_predictions
from .measures.hierarchy import class_nodes, hierarchy_figures
from .measures.metrics import confusion
from .options import Resampling, ZeroShotOptions
from .output.render import TOO_SMALL, Sheet, cell
from .session import BenchSession, check_enough, split_rows
from .table import classification_sheets

if TYPE_CHECKING:
    from dermaudit.towers.embedding import Embedded


def run_zeroshot(options: ZeroShotOptions) -> dict[str, Any]:
    """Classify the images of a split with every model; return what `--json` prints."""
    templates = load_templates(options.templates)
    if options.classes is not None:
        named_classes(options.classes)
    ontology = None if options.ontology is None else _load_ontology(options.ontology)
    session = BenchSession(options, "zeroshot", saves_predictions=True)
    manifest = session.manifest()
    rows = split_rows(manifest, options.split)
    in_split = set(rows.tolist())
    # Labels of the other splits need not be among the classes.
    labels = [label if row in in_split else None for row, label in enumerate(manifest.labels)]
    classes = load_classes(options.classes, labels, options.data)
    truth = truth_numbers(labels, classes, options.data)
    labelled = rows[truth[rows] >= 0]
    check_enough(len(labelled), f"{options.data}, split {options.split}, with a label")
    predictions = {
        name: predict(tower, embedded, manifest, truth, classes, templates)
        for name, tower, embedded in session.embed(manifest, labelled)
    }
    sheets, details = zeroshot_sheets(
        session.dataset,
        predictions,
        classes,
        session.resampling,
        ontology=ontology,
        by_class=options.by_class,
    )
    if options.out is not None:
        paths = write_predictions(options.out, session.dataset, predictions)
        details["predictions"] = [str(path) for path in paths]
    return {
        **session.description(options.split),
        "n_unlabelled": len(rows) - len(labelled),
        "templates": templates,
        **details,
        **session.finish(sheets),
    }


def _load_ontology(path: Path) -> Ontology:
    if not path.exists():
        raise UserInputError(
            f"ontology {path} does not exist",
            'give nested JSON, {"nail diseases": {"onycholysis": {}}}, or leave --ontology out',
        )
    return Ontology.load(path)


def predict(
    tower: Any,
    embedded: Embedded,
    manifest: Manifest,
    truth: np.ndarray,
    classes: Classes,
    templates: list[str],
) -> Predictions:
    """Return zero-shot predictions of the embedded rows; `truth` (n rows of the manifest,)."""
    import torch

    from dermaudit.towers import ZeroShot

    head = ZeroShot(tower, classes, templates)
    logits = head.logits(torch.from_numpy(embedded.x).to(head.weight.device))
    # Computed in float64: a softmax in float32 need not sum to 1 to the last printed digit.
    probs = logits.double().softmax(1).cpu().numpy()
    names, groups, rows = manifest.column("image"), manifest.groups, embedded.rows
    return Predictions(
        [names[i] for i in rows],
        truth[rows],
        probs.argmax(1),
        probs,
        list(classes),
        [groups[i] for i in rows],
        True,
    )


def zeroshot_sheets(
    dataset: str,
    models: dict[str, Predictions],
    classes: Classes,
    resampling: Resampling,
    *,
    ontology: Ontology | None = None,
    by_class: bool = False,
) -> tuple[list[Sheet], dict[str, Any]]:
    """Return (sheets, what `--json` adds: the confusion of each model and the nodes of the classes)."""
    sheets = classification_sheets(dataset, models, resampling, by_class=by_class, digits=3)
    first = next(iter(models.values()))
    counts = np.bincount(first.truth, minlength=len(first.classes))
    common = int(counts.argmax())
    sheets[0].notes.append(
        f"control: always {first.classes[common]} has accuracy {counts[common] / first.n:.3f}, "
        f"balanced accuracy {1 / (counts > 0).sum():.3f}"
    )
    details: dict[str, Any] = {
        "classes": classes,
        "confusion": {name: confusion(p).tolist() for name, p in models.items()},
    }
    if ontology is not None:
        nodes = class_nodes(ontology, classes)
        sheets.append(_hierarchy_sheet(dataset, models, ontology, nodes, resampling))
        details["nodes"] = {
            code: None if node is None else ontology.path(node)
            for code, node in zip(classes, nodes, strict=True)
        }
    return sheets, details


def _hierarchy_sheet(
    dataset: str,
    models: dict[str, Predictions],
    ontology: Ontology,
    nodes: list[int | None],
    resampling: Resampling,
) -> Sheet:
    figures, counts = hierarchy_figures(models, ontology, nodes, resampling)
    first = next(iter(models.values()))
    # Most classes of a task share the upper nodes: this is what the most common class reaches there.
    common = int(np.bincount(first.truth).argmax())
    constant = {"constant": replace(first, predicted=np.full(first.n, common))}
    control, _ = hierarchy_figures(constant, ontology, nodes, Resampling(1, resampling.seed))
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
