"""`bench names`: naming methods side by side on the latents of a run, judged by labels of its test images."""

from __future__ import annotations

from typing import Any

import numpy as np

from dermaudit.concepts.inputs import tower_of, vocabulary_of
from dermaudit.concepts.naming.judging import Judge
from dermaudit.concepts.naming.methods.registry import NAMED, ONE_OF, Names, naming_methods
from dermaudit.concepts.naming.naming import RunNamer, judge_of
from dermaudit.concepts.naming.risk import Answers, risk_figures
from dermaudit.concepts.results import rounded
from dermaudit.console import table
from dermaudit.errors import EvidenceError, unknown
from dermaudit.run.directory import newest_run, open_run
from dermaudit.sae.run_data import RunData

from .options import NamesOptions


def compare_namers(options: NamesOptions) -> dict[str, Any]:
    """Name the latents of a run with each method, and compare the names with labels of test images, which no method
    has seen. EvidenceError for a run without labels of test images.
    """
    run = open_run(options.run or newest_run())
    data, vocabulary = RunData(run), vocabulary_of(run, options.vocabulary)
    test = np.flatnonzero(data.rows("test"))
    if not data.truth or not len(test):
        raise EvidenceError(
            f"{run.path} has no labels of test images to judge names by",
            "add artifact: or concept: columns to the manifest",
        )
    tower = tower_of(run, options.threads)
    vectors = vocabulary.text_vectors(tower)
    judges = {site: judge_of(data, site, test, vocabulary) for site in data.sites}
    found = {}
    for name in options.method or sorted(naming_methods()):
        if name not in naming_methods():
            raise unknown("naming method", name, naming_methods())
        namer = RunNamer(
            data, naming_methods()[name].run, vocabulary, *vectors, options.risk, run.seed(None)
        )
        names = {site: namer.of_run(site) for site in data.sites}
        found[name] = figures_of_method(data, names, judges, namer.ids)
    _print(found)
    return {"run": str(run.path), "risk": options.risk, "methods": found}


def figures_of_method(
    data: RunData, names: dict[str, Names], judges: dict[str, Judge], ids: list[str]
) -> dict[str, Any]:
    """Return the figures of the names of all sites; `ids` are the concepts of the vocabulary."""
    live, permuted = 0, 0
    single, sets = Answers(), Answers()
    gaps = []
    for site, given in names.items():
        judge = judges[site]
        live += int((data.codes(site).n_active()[: len(given.word)] > 0).sum())
        permuted += given.named_under_permutation
        for j, verdict in enumerate(given.verdict):
            score = given.z[j] if given.p_correct is None else given.p_correct[j]
            if verdict == NAMED:
                concept = ids[given.word[j]]
                judgement = judge.of(j, concept)
                single.add(concept, score, None if judgement is None else not judgement.wrong)
                if judgement is not None:
                    single.tolerant.append(judgement.wrong_tolerant)
                    gaps.append(judgement.best_auprc - judgement.auprc)
            elif verdict == ONE_OF:
                judged = [judge.of(j, ids[word]) for word in given.sets[j]]
                known = [one for one in judged if one is not None]
                sets.add(
                    ids[given.sets[j][0]],
                    score,
                    any(not one.wrong for one in known) if known else None,
                )
    figures = risk_figures(
        single, probabilities=any(n.p_correct is not None for n in names.values())
    )
    return rounded(
        {
            **figures,
            "live": live,
            "named": single.count,
            "coverage": single.count / live if live else None,
            "named_under_permutation": permuted,
            "auprc_gap": float(np.mean(gaps)) if gaps else None,
            "sets": {
                "given": sets.count,
                "n_judged": len(sets.right),
                "truth_inside": float(np.mean(sets.right)) if sets.right else None,
            },
            "answered": (single.count + sets.count) / live if live else None,
        }
    )


def _print(found: dict[str, dict[str, Any]]) -> None:
    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.0%}"

    table(
        "names, judged by labels of test images (risk–coverage: wrong among the surest 40 % of the judged names)",
        (
            "method", "named", "of live", "judged", "wrong", "95 %", "tolerant", "surest 40 %", "ECE", "sets",
            "truth inside", "named when permuted",
        ),
        [
            (
                name, one["named"], share(one["coverage"]), one["n_judged"], share(one["wrong"]),
                "–" if one["wrong_ci"] is None else " … ".join(share(v) for v in one["wrong_ci"]),
                share(one["wrong_tolerant"]), share(one["risk_coverage"].get("0.4")),
                "–" if one["ece"] is None else f"{one['ece']:.2f}", one["sets"]["given"],
                share(one["sets"]["truth_inside"]), one["named_under_permutation"],
            )
            for name, one in found.items()
        ],
    )  # fmt: skip
