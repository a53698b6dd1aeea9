"""How often is a recipe written that harms on new images?

    python tests/benchmarks/bench_harmful_recipes.py RUN [draws]

In each draw a quarter or a half of the groups of a run is a user's set, and labels of one artifact are known in it.
They are right, or 20 or 40 % of them are swapped at random, or all of them are shuffled, so that they say nothing. A
recipe is written or refused by the rule of `recipe make` on that set. Then heads are fitted on the user's set, with the
true labels, and what the recipe's latent does is measured on all other images: to the cross-group AUROC of a head that
was fitted in the trap, and to the AUROC of a head that was fitted without one. Images of the model's train split take
part on both sides, because a half of the others is too few; the rule does not know of it. Prints the share of written
recipes whose effect on the other images is 0 or below, with its exact 95 % interval.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
from scipy.stats import binomtest

from dermaudit.concepts.evidence.cross_fit import (
    TrainingRows,
    TrapData,
    biased_rows,
    cross_fit,
    folds,
)
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.evidence.figures import (
    random_control,
    reasons_to_refuse,
    suppression_effect,
)
from dermaudit.concepts.inputs import artifacts_of, vocabulary_of
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod, trap_data
from dermaudit.concepts.suppression.editor import Edit, editor_of
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import auroc

#: The share of labels that are swapped; "shuffled" labels say nothing.
LABELS, SHARES = (0.0, 0.2, 0.4, "shuffled"), (0.25, 0.5)
BOOTSTRAP = 300


def rows_of(data: TrapData, rows: np.ndarray) -> TrapData:
    parts = {name: getattr(data, name)[rows] for name in ("x", "y", "a", "groups")}
    return replace(data, **parts, scored=np.ones(len(rows), bool), row=None)


def refused(mine: TrapData) -> list[str]:
    """Why no recipe is written of a user's set; [] where one is."""
    try:
        found = folds(mine)
        result = cross_fit(CrossFittedMethod(ConceptLatentMethod()), found)
        nothing = np.zeros(len(mine.x))  # the oracle decides nothing
        effect = suppression_effect(mine, result, nothing, draws=BOOTSTRAP)
        if effect.ci[0] <= 0:
            return reasons_to_refuse(effect)
        control = random_control(found, result)
        return reasons_to_refuse(suppression_effect(mine, result, nothing, control, BOOTSTRAP))
    except EvidenceError as error:
        return [error.message]


def given_labels(truth: TrapData, kind: float | str, generator: np.random.Generator) -> np.ndarray:
    """The labels of the artifact that the user has."""
    if kind == "shuffled":
        return generator.permutation(truth.a)
    return np.where(generator.random(len(truth.a)) < float(kind), 1 - truth.a, truth.a)


def held_out_effects(mine: TrapData, truth: TrapData, others: TrapData) -> tuple[float, float]:
    """The change that the latent of the user's set makes on other images: of the cross-group AUROC of a head in the
    trap, and of the AUROC of a head without one.
    """
    rows = TrainingRows(mine, 0, np.arange(len(mine.x)))
    chosen = ConceptLatentMethod().choose(rows, Edit())
    suppressor = editor_of(chosen.sae, Edit(), rows)[0].module(chosen.latents)

    def change(fitted_on: np.ndarray, measured_on: np.ndarray) -> float:
        head = fit_probe(
            truth.x[fitted_on], truth.y[fitted_on], truth.groups[fitted_on], seed=truth.seed
        )
        x, y = others.x[measured_on], others.y[measured_on]
        after = EditedHead.of_suppressor(head, suppressor).score(x)
        return float(auroc(y, after) - auroc(y, probe_score(head, x)))

    trap = biased_rows(truth, np.arange(len(truth.x)), np.random.default_rng(truth.seed))
    cross = others.cell(1, 0) | others.cell(0, 1)
    return change(trap, cross), change(np.arange(len(truth.x)), np.ones(len(others.x), bool))


def one_draw(whole: TrapData, kind: float | str, share: float, generator: np.random.Generator):
    """Why no recipe is written (a list), or its two effects on the other images (a tuple)."""
    groups = np.unique(whole.groups)
    chosen = generator.permutation(groups)[: int(share * len(groups))]
    inside = np.isin(whole.groups, chosen)
    truth, others = (rows_of(whole, np.flatnonzero(side)) for side in (inside, ~inside))
    mine = replace(truth, a=given_labels(truth, kind, generator))
    return refused(mine) or held_out_effects(mine, truth, others)


def main(run: str, draws: int) -> None:
    data = RunData.open(run)
    sets = {c: trap_data(data, c).known() for c in artifacts_of(data.run, vocabulary_of(data.run))}
    names = sorted(name for name, trap in sets.items() if len(trap.x))
    written: list[tuple[str, float | str, float, float]] = []
    for draw in range(draws):
        generator = np.random.default_rng([0, draw])
        name, kind = names[draw % len(names)], LABELS[generator.integers(len(LABELS))]
        share = float(generator.choice(SHARES))
        found = one_draw(replace(sets[name], seed=draw), kind, share, generator)
        if isinstance(found, tuple):
            written.append((name, kind, *found))
        print(draw, name, kind, share, found, file=sys.stderr, flush=True)
    print(json.dumps(summary(written, draws), indent=1))


def summary(written: list[tuple[str, float | str, float, float]], draws: int) -> dict[str, object]:
    """The counts and shares of the written recipes."""
    if not written:
        return {"draws": draws, "written": 0}
    harmful = [row for row in written if row[2] <= 0]
    without_trap = np.array([row[3] for row in written])
    interval = binomtest(len(harmful), len(written)).proportion_ci()
    return {
        "draws": draws,
        "written": len(written),
        "written_by_labels": {str(kind): sum(row[1] == kind for row in written) for kind in LABELS},
        "harmful": len(harmful),
        "harmful_by_artifact": sorted(row[0] for row in harmful),
        "harmful_share": len(harmful) / len(written),
        "harmful_share_ci": [interval.low, interval.high],
        "smallest_effect": min(row[2] for row in written),
        "median_effect": float(np.median([row[2] for row in written])),
        "without_a_trap": {
            "median": float(np.median(without_trap)),
            "smallest": float(without_trap.min()),
            "share_that_loses_more_than_.03": float((without_trap < -0.03).mean()),
        },
    }


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 600)
