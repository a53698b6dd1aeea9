"""Two artifacts that go together: latents that are fitted apart, against a second one that is fitted after the first.

    python tests/benchmarks/bench_joint_latents.py RUN [FIRST+SECOND …]

By the protocol of `bench suppress` with the trap of the second artifact: what the latent of the first suppresses, that
of the second, both as they were fitted apart, and both where the second was fitted on what the first leaves
(`concepts teach SECOND --after FIRST`). `others`: mean and lowest change of the AUROC at which probes that were
fitted before the edit read every other labelled concept.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace

import numpy as np

from dermaudit.bench.suppression.side_effects import other_concepts
from dermaudit.concepts.evidence.cross_fit import Fold, TrapData, cross_fit, folds, oracle_scores
from dermaudit.concepts.evidence.edited_head import EditedHead
from dermaudit.concepts.evidence.figures import suppression_effect
from dermaudit.concepts.results import rounded
from dermaudit.concepts.suppression.cross_fitted import trap_data
from dermaudit.concepts.suppression.editor import Edit
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.concept_latents.latent import ConceptLatent, append_latents
from dermaudit.sae.run_data import RunData

PAIRS = ("ruler+ink", "hair+ruler", "dark_corner+gel_border", "gel_border+gel_bubble")
KINDS = ("first", "second", "apart", "jointly")


@dataclass
class Latents:
    """The latents of one kind, fitted in each fold on rows without the target."""

    name: str
    values: np.ndarray  # of the first concept

    def fit(self, fold: Fold) -> EditedHead:
        first, second = self.values, fold.data.a
        if self.name == "jointly":
            data = replace(fold.data, first=(("first", first),))
            sae = ConceptLatentMethod().choose(replace(fold, data=data), Edit()).sae
        else:
            used = {"first": [first], "second": [second], "apart": [first, second]}[self.name]
            latents = [self._alone(fold, values) for values in used]
            sae = append_latents(latents[0].as_sae(), latents[1:])
        return EditedHead.of_suppressor(fold.head, LatentSuppressor(sae, range(sae.d_sae)))

    def _alone(self, fold: Fold, values: np.ndarray) -> ConceptLatent:
        rows = replace(fold, data=replace(fold.data, a=values))
        return ConceptLatent.of_sae(ConceptLatentMethod().choose(rows, Edit()).sae)[0]


def figures_of(data: RunData, first: str, second: str) -> dict[str, object]:
    trap: TrapData = trap_data(data, second).known()
    found = folds(trap)
    oracle = oracle_scores(found)
    others = {
        name: t.values[trap.row] for name, t in data.truth.items() if name not in (first, second)
    }
    table: dict[str, object] = {}
    for kind in KINDS:
        result = cross_fit(Latents(kind, data.truth[first].values[trap.row]), found)
        effect = suppression_effect(trap, result, oracle)
        read = other_concepts(found, [fitted.edit for fitted in result.fitted], others)
        changes = [one["after"] - one["before"] for one in read.values()]
        table[kind] = {
            "gap_closed": effect.gap_closed,
            "ci": effect.ci,
            "clean_auroc_delta": effect.clean_auroc_delta,
            "clean_auroc_ci": effect.clean_auroc_ci,
            "identity_share": effect.identity_share,
            "others_mean": float(np.mean(changes)),
            "others_lowest": float(min(changes)),
        }
        print(first, second, kind, table[kind], file=sys.stderr, flush=True)
    return table


def main(run: str, *pairs: str) -> None:
    data = RunData.open(run)
    found = {pair: figures_of(data, *pair.split("+")) for pair in pairs or PAIRS}
    print(json.dumps(rounded(found), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
