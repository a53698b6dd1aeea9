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
from .methods.registry import methods
from .side_effects import side_effects
from .sweeps import DRAWS, LABELS, STRENGTHS, few_labels, trap_curve

SWEEPS = ("curves", "few_labels", "side_effects")
HEADER = (
    "artifact", "method", "cross-group AUROC", "gap closed", "change, 95 %", "artifact-free",
    "worst group: before", "unchanged threshold", "prevalence-matched", "rows unchanged",
    "random beaten",
)  # fmt: skip


def compare_methods(options: SuppressionOptions) -> dict[str, Any]:
    """Return {"suppression": {artifact: {method: figures}}}, and with `sweeps` {"curves": {artifact: points},
    "few_labels": {artifact: {n: figures}}, "side_effects": {artifact: figures}}; where something cannot be
    measured, the reason stands in place of the figures.

    Raises UserInputError for an unknown method, concept or target.
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
    # Texts and drawn artifacts are for methods without labels; the others need no model.
    need_model = {m.name for m in chosen} & {"roboshot", "insertion", *SOURCES}
    tower = tower_of(run, options.threads) if need_model else None
    found: dict[str, dict[str, Any]] = {}
    sweeps: dict[str, dict[str, Any]] = {name: {} for name in SWEEPS} if options.sweeps else {}
    lines = []
    for concept in concepts or artifacts_of(run, words):
        say(f"  {concept} …")
        found[concept] = {}
        try:
            trap = _trap(data, concept, words, options, tower)
            if (
                tower is not None
                and need_model & {"drawn", "agreement", "insertion"}
                and concept in ARTIFACTS
            ):
                trap = replace(trap, drawn=_drawn(data, concept, trap, options, tower))
            cross_fold = folds(trap)
            oracle = oracle_scores(cross_fold)
            measured = dict(_effects(cross_fold, oracle, chosen))
            if options.sweeps:
                sweeps["curves"][concept] = rounded(trap_curve(trap))
                sweeps["few_labels"][concept] = rounded(few_labels(cross_fold, oracle))
                others = _others(data, trap, concept)
                sweeps["side_effects"][concept] = rounded(side_effects(cross_fold, others))
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
    if options.sweeps:
        _print_sweeps(sweeps)
    figures = {"suppression": found, **sweeps}
    if options.out is not None:
        write_json(options.out, figures)
    return {"run": str(run.path), **figures}


def _others(data: RunData, trap: TrapData, concept: str) -> dict[str, np.ndarray]:
    """Return the values of every other labelled concept, and of every label, for the rows of `trap`."""
    assert trap.row is not None  # of a run
    return {name: t.values[trap.row] for name, t in data.truth.items() if name != concept}


def _print_sweeps(sweeps: dict[str, dict[str, Any]]) -> None:
    table(
        "Concept latent: cross-group AUROC before → after, by P(artifact | target) where the head is fitted",
        ("artifact", *(f"{strength:g}" for strength in STRENGTHS)),
        [
            (concept, *(f"{p['before']:.2f} → {p['after']:.2f}" for p in points))
            for concept, points in sweeps["curves"].items()
        ],
    )
    table(
        f"Concept latent: gap closed with n + n labels, mean (lowest) of {DRAWS} draws",
        ("artifact", *(f"{n} + {n}" for n in LABELS)),
        [
            (concept, *(f"{each['mean']:.2f} ({each['lowest']:.2f})" for each in row.values()))
            for concept, row in sweeps["few_labels"].items()
        ],
    )

    def pair(one: dict[str, Any]) -> str:
        return f"{one['before']:.2f} → {one['after']:.2f}"

    lines = []
    for concept, found in sweeps["side_effects"].items():
        lost = [n for n, one in found["concepts"].items() if (one["ci"][1] or 0) < 0]
        residual = (pair(found["residual"][kind]) for kind in ("linear", "mlp"))
        lines.append((concept, *residual, ", ".join(lost) or "none"))
    table(
        "Concept latent: AUROC of the artifact by fresh probes of edited rows, and concepts that lose",
        ("artifact", "linear probe", "MLP", "other concepts that are read significantly worse"),
        lines,
    )


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
