"""Make and measure the suppression of one concept in a run: trap, choice, effects, insertion.

With labels for the concept the latents are chosen by the method of the options (methods/); without,
by name, and the recipe records that the effects were not measured.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dermaudit.errors import UserInputError, unknown
from dermaudit.heads import LinearHead, fit_probe, probe_score
from dermaudit.sae.run_data import POOLED, RunData

from ..results import rounded
from ..vocabulary.vocabulary import Vocabulary
from .editor import Editor, free_codes
from .effects import evaluate, refit_worst, worst_without_trap
from .methods.registry import ChoiceData, ChosenLatents, SuppressionMethod, suppression_method
from .options import RecipeOptions
from .recipe import SuppressionRecipe, sae_facts
from .trap import Trap, make_trap

INSERTIONS = 60


def make_recipe(
    data: RunData,
    concept: str,
    vocabulary: Vocabulary,
    options: RecipeOptions = RecipeOptions(),
    tower: Any = None,
) -> tuple[SuppressionRecipe, dict[str, Any], pa.Table | None]:
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
    method = suppression_method(options.method)
    free, free_description = free_codes(data, POOLED, concept, options.mode)
    editor = Editor(data.sae(POOLED), options.mode, factor=options.level, free=free)
    codes = data.codes(POOLED).csr().toarray()
    given = ChoiceData(data, concept, editor, data.pooled, codes)
    rows = None
    if truth is not None and target in data.labels:
        figures, evidence, rows = _measured(given, truth.values, method, options, tower)
    else:
        figures, evidence = _not_measured(given)
    body = {
        "concept": concept,
        "target": target,
        "model": {k: run.meta["model"][k] for k in ("name", "fingerprint", "preprocess")},
        "sae": sae_facts(run, POOLED),
        "vocabulary_sha256": vocabulary.sha256(),
        "data": {"images_sha256": run.meta["stages"]["images"]["outputs"]["images.parquet"]},
        "latents": [
            {"latent": j, "why": figure}
            for j, figure in zip(figures["latents"], evidence, strict=True)
        ],
        "operation": _operation(editor, figures["latents"], free_description),
        "protocol": {"trap_strength": options.strength, "seed": seed, **options.method_used()},
        "effects": {k: v for k, v in figures.items() if k not in ("latents", "random_lifts")},
        "limits": _limits(figures),
        "parent": None,
    }
    return SuppressionRecipe(rounded(body)), rounded(figures), rows


def _operation(editor: Editor, latents: list[int], free_description: str | None) -> dict[str, Any]:
    """What is done to the latents, with the levels it was measured with."""
    found = {"mode": editor.mode, "renormalise": True, "error_term": "kept"}
    levels = {name: torch.as_tensor(v).tolist() for name, v in editor.levels(latents).items()}
    return {**found, **levels, **({"level_from": free_description} if free_description else {})}


def _measured(
    given: ChoiceData,
    a: np.ndarray,
    method: SuppressionMethod,
    options: RecipeOptions,
    tower: Any,
) -> tuple[dict[str, Any], list[dict[str, float]], pa.Table]:
    """Choose latents on the rows of choice, and measure their suppression on test rows; `a` (n,) is 1
    where the concept is present, 0 where absent, nan where unknown.
    """
    data, editor, x, target = given.data, given.editor, given.x, options.target
    seed, groups, concept = data.run.seed(options.seed), data.groups, given.concept
    y = np.where(data.labels == "", np.nan, (data.labels == target).astype(float))
    trap = make_trap(y, a, data.splits, groups=groups, strength=options.strength, seed=seed)
    head = fit_probe(x[trap.fit], y[trap.fit], groups[trap.fit], seed=seed)
    chosen = method.choose(dataclasses.replace(given, head=head, trap=trap))
    clean, clean_description = artifact_free(data, concept)
    figures = evaluate(
        editor,
        head,
        x,
        trap,
        chosen,
        active=(given.codes > 0).sum(0),
        clean=clean,
        groups=groups,
        seed=seed,
    )
    figures.update(
        site=POOLED,
        clean_is=clean_description,
        strength=options.strength,
        target=target,
        worst_group_after_refit=refit_worst(editor, chosen.latents, x, trap, groups, seed),
        worst_group_without_trap=worst_without_trap(
            x, trap, np.flatnonzero(data.rows("train")), groups, seed
        ),
        identity_rows=_identity_rows(editor, chosen, x),
    )
    figures.update(_insertion(data, head, editor, chosen, concept, trap, tower, seed))
    return figures, chosen.evidence, _image_rows(data, head, editor, chosen, trap, figures)


def _image_rows(
    data: RunData,
    head: LinearHead,
    editor: Editor,
    chosen: ChosenLatents,
    trap: Trap,
    figures: dict[str, Any],
) -> pa.Table:
    """What happened to every test image of the trap: group, probability of the target, decision."""
    rows = np.sort(trap.test)
    x = data.pooled[rows]
    edited = editor.rows(chosen.latents, x)
    before, after = probe_score(head, x), probe_score(head, edited)
    decided = [before > figures["threshold_before"], after > figures["threshold_after"]]
    words = np.array(["rest", figures["target"]])
    return pa.table(
        {
            "row": rows.astype(np.int64),
            "group4": [f"y={int(trap.y[r])} a={int(trap.a[r])}" for r in rows],
            "p_before": _sigmoid(before),
            "p_after": _sigmoid(after),
            "top1_before": words[decided[0].astype(int)],
            "top1_after": words[decided[1].astype(int)],
            "flipped": decided[0] != decided[1],
            "fired": ~_same_bits(edited, x),
        }
    )


def artifact_free(data: RunData, concept: str) -> tuple[np.ndarray, str]:
    """Test rows without any known artifact where there are enough, else without this concept."""
    test = data.rows("test") & (data.labels != "")
    artifacts = [t for t in data.truth.values() if t.type == "artifact"]
    if artifacts:
        free = test & np.all([t.values == 0 for t in artifacts], axis=0)
        if free.sum() >= 100:
            return np.flatnonzero(free), "test images without any of the labelled artifacts"
    free = test & (data.truth[concept].values == 0)
    return np.flatnonzero(free), f"test images without {concept}"


def _identity_rows(editor: Editor, chosen: ChosenLatents, x: np.ndarray) -> int:
    """Rows that came back bit for bit (no latent of S fired in them)."""
    return int(_same_bits(editor.rows(chosen.latents, x), x).sum())


def _same_bits(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one.view(np.uint32) == other.view(np.uint32)).all(1)


def _insertion(
    data: RunData,
    head: LinearHead,
    editor: Editor,
    chosen: ChosenLatents,
    concept: str,
    trap: Trap,
    tower: Any,
    seed: int,
) -> dict[str, Any]:
    """Draw the artifact onto test images that lack it: mean |Δp| before and after suppression.

    `insertion_residual` = after / before, 1 = nothing gained, 0 = the artifact moves nothing.
    """
    from dermaudit.phantom import ARTIFACTS

    if tower is None or concept not in ARTIFACTS:
        return {
            "insertion_residual": None,
            "insertion_residual_reason": f"{concept} cannot be drawn"
            if tower is not None
            else "no model at hand",
        }
    from dermaudit.data import read_image
    from dermaudit.phantom import draw_artifact
    from dermaudit.sae.embed.embed import activations

    free = trap.test[trap.a[trap.test] == 0][:INSERTIONS]
    drawn = [
        draw_artifact(concept, read_image(data.image_path(row)), seed=seed * 1_000_003 + int(row))[
            0
        ]
        for row in free
    ]
    inserted = np.concatenate(
        [activations(tower, drawn[i : i + 32], [POOLED])[POOLED] for i in range(0, len(drawn), 32)]
    )

    def moved(latents: list[int]) -> np.ndarray:
        with_artifact = probe_score(head, editor.rows(latents, inserted))
        without = probe_score(head, editor.rows(latents, data.pooled[free]))
        return np.abs(_sigmoid(with_artifact) - _sigmoid(without))

    before, after = moved([]), moved(chosen.latents)
    out = {
        "insertion_n": len(free),
        "insertion_before": float(before.mean()),
        "insertion_after": float(after.mean()),
    }
    if before.mean() < 0.005:
        reason = f"drawing {concept} moves the prediction by {before.mean():.4f} only"
        return {**out, "insertion_residual": None, "insertion_residual_reason": reason}
    return {**out, "insertion_residual": float(after.mean() / before.mean())}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def _not_measured(given: ChoiceData) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Choose latents by name; nothing can be measured without labels."""
    chosen = suppression_method("name").choose(given)
    reason = (
        "the concept has no labels here, or the target class is absent: "
        "chosen by name, effect not measured"
    )
    absent = (
        "worst_group_before",
        "worst_group_after",
        "ci",
        "clean_auroc_delta",
        "insertion_residual",
        "random_sets",
        "random_sets_beaten",
        "n",
    )
    figures = {"latents": chosen.latents, "site": POOLED, "reason": reason}
    return figures | dict.fromkeys(absent), chosen.evidence


def _limits(figures: dict[str, Any]) -> list[str]:
    limits = []
    if figures.get("worst_group_before") is None:
        limits.append("effect not measured: " + str(figures.get("reason")))
    elif figures["random_sets_beaten"] < figures["random_sets"]:
        limits.append(
            f"only {figures['random_sets_beaten']} of {figures['random_sets']} random sets are beaten: "
            "the effect may not be specific"
        )
    keys = [k for k in ("clean_auroc_delta", "insertion_residual") if figures.get(f"{k}_reason")]
    return [*limits, *(f"{key}: {figures[f'{key}_reason']}" for key in keys)]
