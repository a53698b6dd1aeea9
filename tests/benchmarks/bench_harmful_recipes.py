"""How often is a recipe written that harms on new images?

    python tests/benchmarks/bench_harmful_recipes.py RUN [draws]

In each draw a quarter or a half of the groups of a run is a user's set, and labels of one artifact are known in it, of
which a share (0, 20 or 40 %) is swapped at random. A recipe is written or refused by the rule of `recipe make` on
that set. Then a head is fitted in the trap on the user's set, with the true labels, and what the recipe's latent does
to the cross-group AUROC is measured on all other images. Images of the model's train split take part on both sides,
because a half of the others is too few; the rule does not know of it. Prints the share of written recipes whose effect
on the other images is 0 or below.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np

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

NOISE, SHARES = (0.0, 0.2, 0.4), (0.25, 0.5)
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


def held_out_effect(mine: TrapData, truth: TrapData, others: TrapData) -> float:
    """The change of the cross-group AUROC of other images, by the latent of the user's set."""
    rows = TrainingRows(mine, 0, np.arange(len(mine.x)))
    chosen = ConceptLatentMethod().choose(rows, Edit())
    suppressor = editor_of(chosen.sae, Edit(), rows)[0].module(chosen.latents)
    trap = biased_rows(truth, np.arange(len(truth.x)), np.random.default_rng(truth.seed))
    head = fit_probe(truth.x[trap], truth.y[trap], truth.groups[trap], seed=truth.seed)
    cross = others.cell(1, 0) | others.cell(0, 1)
    x, y = others.x[cross], others.y[cross]
    after = EditedHead.of_suppressor(head, suppressor).score(x)
    return float(auroc(y, after) - auroc(y, probe_score(head, x)))


def main(run: str, draws: int) -> None:
    data = RunData.open(run)
    sets = {c: trap_data(data, c).known() for c in artifacts_of(data.run, vocabulary_of(data.run))}
    names = sorted(name for name, trap in sets.items() if len(trap.x))
    generator = np.random.default_rng(0)
    written: list[tuple[str, float, float]] = []
    tried = 0
    for draw in range(draws):
        name, noise, share = (
            names[draw % len(names)],
            generator.choice(NOISE),
            generator.choice(SHARES),
        )
        whole = replace(sets[name], seed=draw)
        groups = np.unique(whole.groups)
        chosen = generator.permutation(groups)[: int(share * len(groups))]
        inside = np.isin(whole.groups, chosen)
        truth, others = (rows_of(whole, np.flatnonzero(side)) for side in (inside, ~inside))
        swapped = generator.random(len(truth.a)) < noise
        mine = replace(truth, a=np.where(swapped, 1 - truth.a, truth.a))
        tried += 1
        why = refused(mine)
        effect = None if why else held_out_effect(mine, truth, others)
        if effect is not None:
            written.append((name, float(noise), effect))
        print(draw, name, noise, share, effect if effect is not None else why[0], file=sys.stderr)
    harmful = [row for row in written if row[2] <= 0]
    figures = {
        "draws": tried,
        "written": len(written),
        "written_by_share_of_swapped_labels": {
            f"{noise:g}": sum(row[1] == noise for row in written) for noise in NOISE
        },
        "harmful": len(harmful),
        "harmful_share": len(harmful) / len(written) if written else None,
        "smallest_effect": min((row[2] for row in written), default=None),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200)
