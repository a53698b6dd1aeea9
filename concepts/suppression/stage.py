"""The stage `recipe:<concept>`: a suppression recipe and its measured effect."""

from __future__ import annotations

from typing import Any

from dermaudit.console import say
from dermaudit.errors import EvidenceError
from dermaudit.failpoints import hit
from dermaudit.files import write_json, write_parquet
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData

from ..inputs import finished_fits
from ..results import Made, make_or_give_reason
from ..vocabulary.vocabulary import Vocabulary
from .make_recipe import DEFAULT_OPTIONS, RecipeOptions, make_recipe


def recipe_run(
    run: Run,
    concept: str,
    tower: Any,
    vocabulary: Vocabulary,
    options: RecipeOptions = DEFAULT_OPTIONS,
    *,
    force: bool = False,
    refuse: bool = True,
) -> dict[str, Any]:
    """Write `recipes/<concept>.recipe.json` and `suppression/<concept>.json|.parquet`; return the figures.

    Without evidence: EvidenceError if `refuse`, else the reason is the result."""
    upstream = ["images", "embed", *finished_fits(run)]
    if "name" in run.meta["stages"]:
        run.require("name")
        upstream.append("name")
    data = RunData(run)
    results = [
        run.file("recipes", f"{concept}.recipe.json"),
        run.file("suppression", f"{concept}.json"),
        run.file("suppression", f"{concept}.parquet"),
    ]
    reason_file = run.file("suppression", f"{concept}.reason.json")

    def make() -> Made:
        recipe, figures, images = make_recipe(data, concept, vocabulary, options, tower)
        recipe.save(results[0])
        write_json(results[1], figures)
        if images is not None:
            write_parquet(results[2], images)
        hit("recipe")
        return results[: 2 if images is None else 3], figures

    figures = run.stage(
        f"recipe:{concept}",
        options.as_inputs(run, vocabulary),
        lambda: make_or_give_reason(make, reason_file, *results),
        upstream=upstream,
        force=force,
    )
    if "numbers" in figures and refuse:
        raise EvidenceError(
            f"{concept}: {figures['reason']}", f"see {reason_file}", figures["numbers"]
        )
    say(f"  {concept}: {_effect_text(figures)}")
    return figures


def _effect_text(figures: dict[str, Any]) -> str:
    if "numbers" in figures:
        return figures["reason"]
    if figures["worst_group_before"] is None:
        return f"latents {figures['latents']} (by name); {figures['reason']}"
    low, high = figures["ci"]
    interval = "undefined" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    return (
        f"{len(figures['latents'])} latents, worst group {figures['worst_group_before']:.2f} → "
        f"{figures['worst_group_after']:.2f} (Δ {interval}), better than "
        f"{figures['random_sets_beaten']} of {figures['random_sets']} random sets"
    )
