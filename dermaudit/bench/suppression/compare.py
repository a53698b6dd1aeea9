"""`bench suppress`: every method for every labelled artifact of a run, under one protocol.

The protocol is that of `dermaudit.concepts.evidence`: trap heads and edits cross-fitted over groups,
figures from images outside the train split of the model, three operating points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from dermaudit.concepts.evidence.cross_fit import (
    CrossFitMethod,
    Fold,
    TrapData,
    folds,
    oracle_scores,
)
from dermaudit.concepts.evidence.figures import (
    RANDOM_LATENTS,
    SuppressionEffect,
    effect_figures,
    measure,
)
from dermaudit.concepts.inputs import artifacts_of, known_concept, tower_of, vocabulary_of
from dermaudit.concepts.results import rounded
from dermaudit.concepts.suppression.cross_fitted import trap_data
from dermaudit.concepts.suppression.head import ZeroShotHead
from dermaudit.concepts.teaching.sources import SOURCES, drawn_rows, text_direction
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.console import say, table
from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.files import write_json
from dermaudit.phantom import ARTIFACTS
from dermaudit.run.directory import newest_run, open_run
from dermaudit.sae.run_data import RunData

from ..options import SuppressionOptions
from ..output.paths import check_place
from .further import SWEEPS, Further, print_further
from .methods.registry import methods
from .pairs import read_pairs

HEADER = (
    "artifact", "method", "cross-group AUROC", "gap closed", "change, 95 %", "artifact-free",
    "worst group: before", "unchanged threshold", "prevalence-matched", "rows unchanged",
    "random beaten",
)  # fmt: skip


def compare_methods(options: SuppressionOptions) -> dict[str, Any]:
    """Return {"suppression": {artifact: {method: figures}}}, and with `sweeps` and `pairs` {kind: {artifact:
    figures}} for the kinds of further.py; where something cannot be measured, the reason stands in place of the
    figures.

    Raises UserInputError for an unknown method, concept or target, and for a table of pairs that cannot be read.
    """
    if options.out is not None:
        check_place(options.out, options.force)
    chosen = _chosen_methods(options.method)
    run = open_run(options.run or newest_run())
    data, words = RunData(run), vocabulary_of(run)
    if options.target not in data.labels:
        raise UserInputError(
            f"no image of the run {run.path} has the label '{options.target}'",
            f"give --target, one of: {', '.join(sorted(set(data.labels) - {''}))}",
        )
    concepts = [known_concept(run, words, word) for word in options.concept]
    # Texts, drawn artifacts and pairs need the model; what is fitted with labels does not.
    need_model = {m.name for m in chosen} & {"roboshot", "insertion", *SOURCES}
    needed = need_model or options.sweeps or options.pairs
    tower: Any = tower_of(run, options.threads) if needed else None
    further = _further(data, words, options, tower)
    found: dict[str, dict[str, Any]] = {}
    more: dict[str, dict[str, Any]] = {name: {} for name in SWEEPS} if options.sweeps else {}
    lines = []
    for concept in concepts or artifacts_of(run, words):
        say(f"  {concept} …")
        found[concept] = {}
        try:
            trap = _trap(data, concept, words, options, tower)
            if need_model & {"drawn", "agreement", "insertion"} and concept in ARTIFACTS:
                trap = replace(trap, drawn=_drawn(data, concept, trap, options, tower))
            cross_fold = folds(trap)
            oracle = oracle_scores(cross_fold)
            measured = dict(_effects(cross_fold, oracle, chosen))
            for kind, figures in further.measure(concept, cross_fold, oracle).items():
                more.setdefault(kind, {})[concept] = rounded(figures)
        except EvidenceError as error:
            found[concept] = {"reason": error.message, "numbers": rounded(error.numbers)}
            lines.append([concept, error.message, *[""] * (len(HEADER) - 2)])
            continue
        for name, effect in measured.items():
            found[concept][name] = (
                effect if isinstance(effect, dict) else rounded(effect_figures(effect))
            )
            lines.append([concept, name, *_cells(effect)])
    table("Suppression, cross-fitted", HEADER, lines)
    print_further(more)
    result = {"suppression": found, **more}
    if options.out is not None:
        write_json(options.out, result)
    return {"run": str(run.path), **result}


def _further(data: RunData, words: Vocabulary, options: SuppressionOptions, tower: Any) -> Further:
    """Return what is measured beside the effects."""
    if tower is None:
        return Further(data, options.sweeps)
    texts = ZeroShotHead(tower) if options.sweeps and tower.tokenizer is not None else None
    pairs = read_pairs(options.pairs, data.run, words, tower) if options.pairs else {}
    return Further(data, options.sweeps, texts, pairs)


def _chosen_methods(names: tuple[str, ...]) -> list[CrossFitMethod]:
    for name in names:
        if name not in methods():
            raise unknown("method", name, methods())
    return [method for name, method in methods().items() if not names or name in names]


def _trap(
    data: RunData, concept: str, words: Vocabulary, options: SuppressionOptions, tower: Any
) -> TrapData:
    """Return the rows with a known label and a known artifact. EvidenceError without labels for it."""
    if concept not in data.truth:
        raise EvidenceError(f"{concept} has no labels in this run", "label it in the manifest")
    given = {name: getattr(options, name) for name in ("target", "strength", "seed")}
    trap = trap_data(data, concept, **given).known()
    return replace(trap, text_direction=text_direction(tower, words, concept))


def _drawn(
    data: RunData, concept: str, trap: TrapData, options: SuppressionOptions, tower: Any
) -> np.ndarray:
    """Return the rows of `trap` with the artifact drawn, nan where it was not."""
    return drawn_rows(data, concept, options.target, tower, options.seed)[trap.row]


def _effects(
    found: list[Fold], oracle: np.ndarray, chosen: list[CrossFitMethod]
) -> Iterator[tuple[str, SuppressionEffect | dict[str, Any]]]:
    for method in chosen:
        try:
            yield method.name, measure(method, found, oracle)[1]
        except EvidenceError as error:
            yield method.name, {"reason": error.message, "numbers": rounded(error.numbers)}


def _cells(effect: SuppressionEffect | dict[str, Any]) -> list[str]:
    if isinstance(effect, dict):
        return [effect["reason"], *[""] * (len(HEADER) - 3)]
    low, high = effect.ci

    def worst(value: float) -> str:
        return "n too small" if np.isnan(value) else f"{value:.2f}"

    return [
        f"{effect.cross_group_auroc_before:.2f} → {effect.cross_group_auroc_after:.2f} ({effect.oracle:.2f})",
        f"{effect.gap_closed:.2f}",
        f"[{low:+.2f}, {high:+.2f}]",
        f"{effect.clean_auroc_delta:+.3f}",
        worst(effect.rates_before.worst),
        worst(effect.rates_fixed.worst),
        worst(effect.rates_prevalence.worst),
        f"{effect.identity_share:.0%}",
        "" if effect.random_beaten is None else f"{effect.random_beaten} of {RANDOM_LATENTS}",
    ]
