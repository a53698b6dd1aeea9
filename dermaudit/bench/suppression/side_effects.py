"""What is left of an artifact after its suppression, and what suppression takes from other concepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import Fold, TrapData, cross_fit, folds
from dermaudit.concepts.evidence.operating_points import fold_auroc
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.heads import fit_probe, probe_score
from dermaudit.stats.intervals import MIN_CELL, GroupBootstrap, percentile_interval

DRAWS = 300
Score = Callable[[np.ndarray], np.ndarray]


def side_effects(trap: TrapData, others: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return {"residual": {"linear", "mlp"}, "concepts": {name}}: each {"before", "after", "ci" of the change}.

    Residual: AUROC of the artifact by fresh probes, which are fitted on the edited training rows of each fold and
    read the edited rows held out; .5 is what no information gives. Concepts: AUROC of another concept by a probe
    that was fitted on unedited rows, and reads rows before and after the edit. `others`: the values (n,) of other
    concepts: 1, 0, or nan where unknown.
    """
    found = folds(trap)
    fitted = cross_fit(CrossFittedMethod(ConceptLatentMethod()), found).fitted
    edits = [one.edit for one in fitted]  # type: ignore[attr-defined]  # an EditedHead
    kinds = {"linear": _linear, "mlp": _mlp}
    residual = {name: _residual(trap, found, edits, fit) for name, fit in kinds.items()}
    concepts = {
        name: _change(trap, values, *_read_before_and_after(trap, found, edits, values))
        for name, values in others.items()
        if min((values[trap.scored] == kind).sum() for kind in (0, 1)) >= MIN_CELL
    }
    return {"residual": residual, "concepts": concepts}


def _residual(
    trap: TrapData, found: list[Fold], edits: list[Score], fit: Callable[..., Score]
) -> dict[str, Any]:
    before, after = np.full((2, len(trap.x)), np.nan)
    fold = np.full(len(trap.x), -1)
    for one, edit in zip(found, edits, strict=True):
        train, held = trap.x[one.train], trap.x[one.held]
        given = (trap.a[one.train], trap.groups[one.train], trap.seed)
        before[one.held] = fit(train, *given)(held)
        after[one.held] = fit(edit(train), *given)(edit(held))
        fold[one.held] = one.number
    return _change(trap, trap.a, before, after, fold)


def _linear(x: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int) -> Score:
    head = fit_probe(x, truth, groups, seed=seed)
    return lambda rows: probe_score(head, rows)


def _mlp(x: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int) -> Score:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    network = MLPClassifier((64,), alpha=0.01, early_stopping=True, random_state=seed, max_iter=200)
    model = make_pipeline(StandardScaler(), network).fit(x, truth)
    return lambda rows: model.predict_proba(rows)[:, 1]


def _read_before_and_after(
    trap: TrapData, found: list[Fold], edits: list[Score], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the score of a concept before and after the edit, and the fold of each row."""
    before, after = np.full((2, len(trap.x)), np.nan)
    fold = np.full(len(trap.x), -1)
    for one, edit in zip(found, edits, strict=True):
        known = one.train[np.isfinite(values[one.train])]
        score = _linear(trap.x[known], values[known], trap.groups[known], trap.seed)
        before[one.held], after[one.held] = score(trap.x[one.held]), score(edit(trap.x[one.held]))
        fold[one.held] = one.number
    return before, after, fold


def _change(
    trap: TrapData, truth: np.ndarray, before: np.ndarray, after: np.ndarray, fold: np.ndarray
) -> dict[str, Any]:
    """Return AUROC before and after on the scored rows, with the 95 % interval of the change over groups."""
    rows = np.flatnonzero(trap.scored & np.isfinite(truth))
    weights = GroupBootstrap(trap.groups[rows], DRAWS, trap.seed).matrix()
    weights = np.vstack([np.ones(len(rows)), weights])
    present = truth[rows] == 1
    values = [
        fold_auroc(score[rows], present, ~present, fold[rows], weights) for score in (before, after)
    ]
    change = values[1] - values[0]
    return {
        "before": float(values[0][0]),
        "after": float(values[1][0]),
        "ci": list(percentile_interval(change[1:])),
        "n": int(present.sum()),
    }
