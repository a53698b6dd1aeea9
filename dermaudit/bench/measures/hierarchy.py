"""Hierarchical accuracy: down to which level of the ontology a prediction is right.

At level d an image counts as right when the predicted class lies below the same node of depth d as
the true one; images whose class is less deep are left out of that level. The mean Wu–Palmer similarity
(ACL 1994) of predicted and true class is reported too: calling a melanoma another proliferation is
less wrong than calling it a nail disease.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dermaudit.data.captions.ontology import Ontology
from dermaudit.errors import EvidenceError
from dermaudit.stats.paired import Figures, bootstrap_figures

from ..inputs.saved_predictions import Predictions
from ..options import Resampling

SIMILARITY = "Wu–Palmer"


def class_nodes(ontology: Ontology, classes: Mapping[str, Sequence[str]]) -> list[int | None]:
    """Return the node of each class: that of the first of its names which the ontology contains."""
    found = []
    for code, names in classes.items():
        nodes = (ontology.find(name) for name in (*names, code))
        found.append(next((node for node in nodes if node is not None), None))
    return found


def class_table(ontology: Ontology, nodes: Sequence[int | None]) -> tuple[np.ndarray, np.ndarray]:
    """Return (right (classes, classes, levels), similarity (classes, classes)), [truth, predicted].

    `right` is 1, 0, or nan where the true class is less deep. A truth without a node is nan
    everywhere; a prediction without one is wrong at every level and has similarity 0.
    """
    paths = [None if node is None else ontology.ancestors(node) for node in nodes]
    levels = max((len(path) for path in paths if path), default=0)
    right = np.full((len(nodes), len(nodes), levels), np.nan)
    similarity = np.full((len(nodes), len(nodes)), np.nan)
    for t, true_path in enumerate(paths):
        if true_path is None:
            continue
        for p, path in enumerate(paths):
            for level, node in enumerate(true_path):
                right[t, p, level] = path is not None and path[level : level + 1] == [node]
            similarity[t, p] = (
                0.0 if path is None else 1 - ontology.distance(true_path[-1], path[-1])
            )
    return right, similarity


def hierarchy_figures(
    models: dict[str, Predictions],
    ontology: Ontology,
    nodes: Sequence[int | None],
    resampling: Resampling,
) -> tuple[Figures, list[int]]:
    """Return (figures "level 1" … and Wu–Palmer, number of images that each of them rests on).

    Errors: EvidenceError when the ontology contains fewer than two of the classes.
    """
    if sum(node is not None for node in nodes) < 2:
        raise EvidenceError(
            "the ontology contains fewer than two of the classes: no hierarchical accuracy",
            "give names that the ontology contains in --classes FILE",
        )
    right, similarity = class_table(ontology, nodes)
    first = next(iter(models.values()))
    defined = [
        *(np.isfinite(right[first.truth, first.truth, level]) for level in range(right.shape[2])),
        np.isfinite(similarity[first.truth, first.truth]),
    ]

    def statistic(found: Predictions, weights: np.ndarray) -> np.ndarray:
        cells = [*right[found.truth, found.predicted].T, similarity[found.truth, found.predicted]]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.stack(
                [
                    weights[:, keep] @ values[keep] / weights[:, keep].sum(1)
                    for keep, values in zip(defined, cells, strict=True)
                ],
                axis=1,
            )

    names = [*(f"level {level + 1}" for level in range(right.shape[2])), SIMILARITY]
    statistics = {name: lambda w, p=p: statistic(p, w) for name, p in models.items()}
    bootstrap = resampling.bootstrap(first.groups)
    figures = bootstrap_figures(statistics, names, first.n, bootstrap)
    return figures, [int(keep.sum()) for keep in defined]
