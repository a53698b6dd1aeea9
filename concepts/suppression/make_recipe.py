"""Make and measure the suppression of one concept in a run: trap, choice, effects, insertion.

With labels for the concept the latents are chosen by the method of the options (methods/); without,
by name, and the recipe records that the effects were not measured.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from dermaudit.errors import UserInputError, unknown
from dermaudit.heads import LinearHead, fit_probe, probe_score
from dermaudit.sae.run_data import POOLED, RunData

from ..results import rounded
from ..vocabulary.vocabulary import Vocabulary
from .editor import Editor, free_codes
from .effects import evaluate, refit_worst, worst_without_trap
from .figures import Figures, MeasuredFigures, UnmeasuredFigures
from .insertion import measure_insertion, sigmoid
from .methods.registry import ChoiceData, ChosenLatents, suppression_method
from .options import RecipeOptions
from .recipe import LatentEntry, Operation, RecipeBody, SuppressionRecipe, sae_facts
from .trap import Trap, make_trap

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

MIN_CLEAN = 100  # test images without any artifact, to measure the cost on


def make_recipe(
    data: RunData,
    concept: str,
    vocabulary: Vocabulary,
    options: RecipeOptions = RecipeOptions(),
    tower: HookedTower | None = None,
) -> tuple[SuppressionRecipe, Figures, pa.Table | None]:
    """Return the recipe for `concept`, its figures, and a table with one row per test image of the
    trap (docs/formats.md); None instead of the table if the effect is not measured.

    The latents are chosen, and everything is measured, in the mode of the options. Raises
    UserInputError for a concept that neither labels nor vocabulary contain (the nearest is offered),
    EvidenceError with the scores if no latent qualifies or n is too small.
    """
    run, target, seed = data.run, options.target, data.run.seed(options.seed)
    if POOLED not in data.sites:
        raise UserInputError(
            f"the run {run.path} has no SAE at {POOLED}",
            f"run: {run.remake_command(f'fit:{POOLED}')}",
        )
    truth = data.truth.get(concept)
    known = {entry.id for entry in vocabulary.concepts} | set(data.truth)
    if concept not in known:
        raise unknown("concept", concept, sorted(known))
    suppression_method(options.method)  # an unknown method is refused, with or without labels
    free, free_description = free_codes(data, POOLED, concept, options.mode)
    editor = Editor(data.sae(POOLED), options.mode, factor=options.level, free=free)
    codes = data.codes(POOLED).csr().toarray()
    given = ChoiceData(data, concept, editor, data.pooled, codes)
    if truth is not None and target in data.labels:
        chosen, figures, images = _measured(given, truth.values, options, tower)
    else:
        chosen, figures = _not_measured(given)
        images = None
    body: RecipeBody = {
        "concept": concept,
        "target": target,
        "model": {k: run.meta["model"][k] for k in ("name", "fingerprint", "preprocess")},
        "sae": sae_facts(run, POOLED),
        "vocabulary_sha256": vocabulary.sha256(),
        "data": {"images_sha256": run.meta["stages"]["images"]["outputs"]["images.parquet"]},
        "latents": [
            LatentEntry(latent=j, why=why)
            for j, why in zip(chosen.latents, chosen.evidence, strict=True)
        ],
        "operation": _operation(editor, chosen.latents, free_description),
        "protocol": {"trap_strength": options.strength, "seed": seed, **options.method_used()},
        "effects": {k: v for k, v in figures.items() if k not in ("latents", "random_lifts")},
        "limits": _limits(figures),
        "parent": None,
    }
    return SuppressionRecipe(rounded(body)), rounded(figures), images


def _operation(editor: Editor, latents: list[int], free_description: str | None) -> Operation:
    """Return what is done to the latents, with the levels that it was measured with."""
    operation = Operation(mode=editor.mode, renormalise=True, error_term="kept")
    levels = editor.levels(latents)
    if "level" in levels:
        operation["level"] = levels["level"].tolist()
    if "gate_level" in levels:
        operation["gate_level"] = levels["gate_level"]
    if free_description:
        operation["level_from"] = free_description
    return operation


def _measured(
    given: ChoiceData, a: np.ndarray, options: RecipeOptions, tower: HookedTower | None
) -> tuple[ChosenLatents, MeasuredFigures, pa.Table]:
    """Choose latents on the rows of choice, and measure their suppression on test rows; `a` (n,) is 1
    where the concept is present, 0 where absent, nan where unknown.
    """
    data, editor, x, target = given.data, given.editor, given.x, options.target
    seed, groups = data.run.seed(options.seed), data.groups
    y = np.where(data.labels == "", np.nan, (data.labels == target).astype(float))
    trap = make_trap(y, a, data.splits, groups=groups, strength=options.strength, seed=seed)
    head = fit_probe(x[trap.fit], y[trap.fit], groups[trap.fit], seed=seed)
    method = suppression_method(options.method)
    chosen = method.choose(dataclasses.replace(given, head=head, trap=trap))
    clean, clean_description = _artifact_free(data, given.concept)
    effects = evaluate(
        editor,
        head,
        x,
        trap,
        chosen.latents,
        active=(given.codes > 0).sum(0),
        clean=clean,
        groups=groups,
        seed=seed,
    )
    figures: MeasuredFigures = {
        **effects,
        **measure_insertion(given, head, trap, chosen.latents, tower, seed),
        "site": POOLED,
        "clean_is": clean_description,
        "strength": options.strength,
        "target": target,
        "worst_group_after_refit": refit_worst(editor, chosen.latents, x, trap, groups, seed),
        "worst_group_without_trap": worst_without_trap(
            x, trap, np.flatnonzero(data.rows("train")), groups, seed
        ),
        "identity_rows": int(_same_bits(editor.rows(chosen.latents, x), x).sum()),
    }
    return chosen, figures, _image_table(given, head, trap, figures)


def _image_table(
    given: ChoiceData, head: LinearHead, trap: Trap, figures: MeasuredFigures
) -> pa.Table:
    """Return what happens to each test image of the trap: group, p(target), decision."""
    rows, x = trap.test, given.x[trap.test]
    edited = given.editor.rows(figures["latents"], x)
    before, after = probe_score(head, x), probe_score(head, edited)
    decided = [before > figures["threshold_before"], after > figures["threshold_after"]]
    words = np.array(["rest", figures["target"]])
    return pa.table(
        {
            "row": rows.astype(np.int64),
            "group4": [f"y={int(trap.y[r])} a={int(trap.a[r])}" for r in rows],
            "p_before": sigmoid(before),
            "p_after": sigmoid(after),
            "top1_before": words[decided[0].astype(int)],
            "top1_after": words[decided[1].astype(int)],
            "flipped": decided[0] != decided[1],
            "fired": ~_same_bits(edited, x),
        }
    )


def _artifact_free(data: RunData, concept: str) -> tuple[np.ndarray, str]:
    """Return the test rows without any labelled artifact, and what they are; if there are fewer than
    MIN_CLEAN of them, those without this concept.
    """
    test = data.rows("test") & (data.labels != "")
    artifacts = [t for t in data.truth.values() if t.type == "artifact"]
    if artifacts:
        free = test & np.all([t.values == 0 for t in artifacts], axis=0)
        if free.sum() >= MIN_CLEAN:
            return np.flatnonzero(free), "test images without any of the labelled artifacts"
    free = test & (data.truth[concept].values == 0)
    return np.flatnonzero(free), f"test images without {concept}"


def _same_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one.view(np.uint32) == other.view(np.uint32)).all(1)


def _not_measured(given: ChoiceData) -> tuple[ChosenLatents, UnmeasuredFigures]:
    """Choose latents by name; nothing can be measured without labels."""
    chosen = suppression_method("name").choose(given)
    return chosen, {
        "latents": chosen.latents,
        "site": POOLED,
        "reason": "the concept has no labels here, or the target class is absent: "
        "chosen by name, effect not measured",
        "worst_group_before": None,
        "worst_group_after": None,
        "ci": None,
        "clean_auroc_delta": None,
        "insertion_residual": None,
        "random_sets": None,
        "random_sets_beaten": None,
        "n": None,
    }


def _limits(figures: Figures) -> list[str]:
    """Return what the evidence does not show, in sentences."""
    if "reason" in figures:
        return [f"effect not measured: {figures['reason']}"]
    limits = []
    if figures["random_sets_beaten"] < figures["random_sets"]:
        limits.append(
            f"only {figures['random_sets_beaten']} of {figures['random_sets']} random sets are beaten: "
            "the effect may not be specific"
        )
    reasons = ("clean_auroc_delta_reason", "insertion_residual_reason")
    limits += [
        f"{key.removesuffix('_reason')}: {figures.get(key)}" for key in reasons if key in figures
    ]
    return limits
