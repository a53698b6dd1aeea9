"""What is left of an artifact after its suppression, and what suppression takes from other concepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold
from dermaudit.concepts.evidence.operating_points import fold_auroc
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL

from .change import change_of, draw_weights

DRAWS = 300
Rows = Callable[[np.ndarray], np.ndarray]
#: From rows, truth, groups and a seed to the score of rows.
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, int], Rows]


def side_effects(
    found: list[Fold], edits: list[Rows], others: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return {"residual": {"linear", "mlp"}, "concepts": {name}}: each {"before", "after", "ci" of the change}
    by the edits of the folds.

    Residual: AUROC of the artifact by fresh probes, which are fitted on the edited training rows of each fold and
    read the edited rows held out; .5 is what no information gives. Concepts: AUROC of another concept by a probe
    that was fitted on unedited rows, and reads rows before and after the edit. `others`: the values (n,) of other
    concepts: 1, 0, or nan where unknown.
    """
    trap = found[0].data
    kinds: dict[str, Fit] = {"linear": _linear, "mlp": _mlp}
    return {
        "residual": {
            name: _change(found, edits, trap.a, fit, again=True) for name, fit in kinds.items()
        },
        "concepts": other_concepts(found, edits, others),
    }


def other_concepts(
    found: list[Fold], edits: list[Rows], others: dict[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    """Return {name: change} of every other concept that enough scored images have and lack."""
    scored = found[0].data.scored
    return {
        name: _change(found, edits, values, _linear, again=False)
        for name, values in others.items()
        if min((values[scored] == kind).sum() for kind in (0, 1)) >= MIN_CELL
    }


def _change(
    found: list[Fold], edits: list[Rows], truth: np.ndarray, fit: Fit, *, again: bool
) -> dict[str, Any]:
    """Return the AUROC of a probe on the scored rows before and after the edit, with the 95 % interval of the
    change over groups. `again`: it is fitted again on edited rows before it reads them.
    """
    trap = found[0].data
    before, after = np.full((2, len(trap.x)), np.nan)
    fold = np.full(len(trap.x), -1)
    for one, edit in zip(found, edits, strict=True):
        known = one.train[np.isfinite(truth[one.train])]
        x, held = trap.x[known], trap.x[one.held]
        given = (truth[known], trap.groups[known], trap.seed)
        probe = fit(x, *given)
        before[one.held] = probe(held)
        after[one.held] = (fit(edit(x), *given) if again else probe)(edit(held))
        fold[one.held] = one.number
    rows = np.flatnonzero(trap.scored & np.isfinite(truth))
    weights = draw_weights(trap, rows, DRAWS)
    present = truth[rows] == 1
    values = [
        fold_auroc(score[rows], present, ~present, fold[rows], weights) for score in (before, after)
    ]
    return {**change_of(*values), "n": int(present.sum())}


def _linear(x: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int) -> Rows:
    head = fit_probe(x, truth, groups, seed=seed)
    return lambda rows: probe_score(head, rows)


def _mlp(x: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int) -> Rows:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((64,), alpha=0.01, early_stopping=True, random_state=seed, max_iter=200)
    model = make_pipeline(StandardScaler(), network).fit(x, truth)
    return lambda rows: model.predict_proba(rows)[:, 1]
