"""The stage `recipe:<concept>`: a suppression recipe and its measured effect."""

from __future__ import annotations

from typing import Any

from dermaudit.console import say
from dermaudit.errors import EvidenceError
from dermaudit.failpoints import hit
from dermaudit.files import write_json, write_parquet
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, stage
from dermaudit.sae.run_data import RunData

from ..inputs import artifacts_of, known_concept, tower_of, vocabulary_of
from ..results import Reason, make_or_give_reason
from ..vocabulary.vocabulary import Vocabulary
from .figures import Figures
from .options import RecipeOptions

RECIPE = Record(
    "recipe",
    reads=("images", "embed", "fit:*", "name?"),
    writes=("recipes/{key}.recipe.json", "suppression/{key}.*"),
)


@stage("recipe make", RecipeOptions, RECIPE, key_flag="--concept")
def make_recipes(run: Run, options: RecipeOptions) -> dict[str, Any]:
    """Choose the latents of a concept, measure their suppression, and write the recipe.

    The latents are chosen on val images, and the effect is measured on test images.
    """
    words = vocabulary_of(run, options.vocabulary)
    if options.concept:
        concepts = {concept: known_concept(run, words, concept) for concept in options.concept}
    else:
        concepts = {concept: concept for concept in artifacts_of(run, words)}
    if not concepts:
        say("  no artifact is labelled or named: nothing to suppress")
        return {"run": str(run.path), "suppression": {}}
    tower = tower_of(run, options.threads)
    figures = {
        given: recipe_run(run, concept, tower, words, options)
        for given, concept in concepts.items()
    }
    return {"run": str(run.path), "suppression": figures}


def recipe_run(
    run: Run,
    concept: str,
    tower: Any,
    vocabulary: Vocabulary,
    options: RecipeOptions = RecipeOptions(),
) -> Figures | Reason:
    """Write `recipes/<concept>.recipe.json` and `suppression/<concept>.json|.parquet`; return the figures.

    Without evidence: EvidenceError if `options.refuse`, else the reason is the result.
    """
    from .make_recipe import make_recipe

    data = RunData(run)
    recipe_file, effects = run.files.recipe(concept), run.files.effects(concept)
    images_file = run.files.suppressed_images(concept)
    reason_file = run.files.suppression_reason(concept)

    def make() -> Made[Figures]:
        recipe, figures, images = make_recipe(data, concept, vocabulary, options, tower)
        recipe.save(recipe_file)
        write_json(effects, figures)
        if images is not None:
            write_parquet(images_file, images)
        hit("recipe")
        return [recipe_file, effects, *([] if images is None else [images_file])], figures

    figures = run.perform(
        RECIPE,
        options.inputs(run, vocabulary),
        lambda: make_or_give_reason(make, reason_file, recipe_file, effects, images_file),
        key=concept,
        force=options.force,
    )
    if "numbers" in figures and options.refuse:
        raise EvidenceError(
            f"{concept}: {figures['reason']}", f"see {reason_file}", figures["numbers"]
        )
    say(f"  {concept}: {_effect_text(figures)}")
    return figures


def _effect_text(figures: Figures | Reason) -> str:
    if "numbers" in figures:
        return figures["reason"]
    if "reason" in figures:
        return f"latents {figures['latents']} (by name); {figures['reason']}"
    low, high = figures["ci"]
    interval = "undefined" if low is None else f"[{low:+.2f}, {high:+.2f}]"
    return (
        f"{len(figures['latents'])} latents, worst group {figures['worst_group_before']:.2f} → "
        f"{figures['worst_group_after']:.2f} (Δ {interval}), better than "
        f"{figures['random_sets_beaten']} of {figures['random_sets']} random sets"
    )
