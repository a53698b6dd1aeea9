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

from ..inputs import artifacts_of, known_concept, taught_concepts, tower_of, vocabulary_of
from ..results import Reason, make_or_give_reason
from ..teaching.taught import provenance
from ..vocabulary.vocabulary import Vocabulary
from .figures import Figures
from .options import RecipeOptions
from .reference_recipe import copy_suppression, has_no_evidence

RECIPE = Record(
    "recipe",
    reads=("images", "embed", "fit:*", "name?", "heads?", "teach:{key}?"),
    writes=("recipes/{key}.recipe.json", "suppression/{key}.*"),
)


@stage("recipe make", RecipeOptions, RECIPE, key_flag="--concept")
def make_recipes(run: Run, options: RecipeOptions) -> dict[str, Any]:
    """Measure the suppression of a concept, and write its recipe if the evidence allows it.

    The figures are cross-fitted over groups and stated at three operating points. Where the change cannot be
    told from chance, costs images without the concept too much, or is not better than that of random latents,
    no recipe is written: exit code 3 with the figures, which stay in the run. In a run with the reference dictionary
    of its model, what the images of the run cannot show comes from the reference, with the figures of there.
    """
    words = vocabulary_of(run, options.vocabulary)
    if options.concept:
        concepts = {concept: known_concept(run, words, concept) for concept in options.concept}
    else:
        concepts = {concept: concept for concept in artifacts_of(run, words)}
    if not concepts:
        say("  no artifact is labelled, taught or named: nothing to suppress")
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
    """Write `suppression/<concept>.json|.parquet`, and `recipes/<concept>.recipe.json` if the evidence allows
    it; return the figures.

    Without evidence: EvidenceError if `options.refuse`, else the reason is the result.
    """
    from .make_recipe import RecipeRequest, make_recipe

    request = RecipeRequest(RunData(run), concept, vocabulary, options, tower)
    recipe_file, effects = run.files.recipe(concept), run.files.effects(concept)
    images_file = run.files.suppressed_images(concept)
    reason_file = run.files.suppression_reason(concept)

    def copied() -> Made[Figures] | None:
        for path in (images_file, recipe_file, effects, reason_file):
            path.unlink(missing_ok=True)  # of an earlier outcome
        return copy_suppression(request.data, concept)

    def make() -> Made[Figures]:
        if has_no_evidence(request.data, concept) and (found := copied()) is not None:
            return found
        try:
            made = make_recipe(request)
        except EvidenceError:
            if (found := copied()) is not None:
                return found
            raise
        written = [effects]
        write_json(effects, made.figures)
        for path in (images_file, recipe_file):
            path.unlink(missing_ok=True)  # of an earlier outcome
        if made.images is not None:
            write_parquet(images_file, made.images)
            written.append(images_file)
        if made.recipe is not None:
            made.recipe.save(recipe_file)
            written.append(recipe_file)
        hit("recipe")
        return written, made.figures

    figures = run.perform(
        RECIPE,
        options.inputs(run, vocabulary),
        lambda: make_or_give_reason(make, reason_file, recipe_file, effects, images_file),
        key=concept,
        reads=[*run.reads_of(RECIPE, concept), *_taught_first(run, concept)],
        force=options.force,
    )
    why = refusal(figures)
    if why is not None and options.refuse:
        where = reason_file if "numbers" in figures else effects
        raise EvidenceError(
            f"{concept}: {why}",
            f'see {where}; to write the recipe all the same, add --accept-limits "reason"',
            refused_numbers(figures),
        )
    say(f"  {concept}: {_effect_text(figures)}")
    return figures


def _taught_first(run: Run, concept: str) -> list[str]:
    """Return the records of the concepts that this one was taught after."""
    if concept not in taught_concepts(run):
        return []
    return [f"teach:{name}" for name in provenance(run, concept)["after"]]


def refusal(figures: Figures | Reason) -> str | None:
    """Return why there is no recipe, None if there is one."""
    if "numbers" in figures:
        return figures["reason"]
    if figures["refused"] and not figures["accepted_limits"]:
        return "no recipe is written: " + "; ".join(figures["refused"])
    return None


def refused_numbers(figures: Figures | Reason) -> Any:
    """Return the figures that a refusal rests on."""
    if "numbers" in figures:
        return figures["numbers"]
    keys = (
        "cross_group_auroc_before",
        "cross_group_auroc_after",
        "ci",
        "clean_auroc_ci",
        "random_beaten",
    )
    return {key: figures.get(key) for key in keys}


def _effect_text(figures: Figures | Reason) -> str:
    why = refusal(figures)
    if "cross_group_auroc_before" not in figures:
        return why or f"effect not measured; written because: {figures.get('accepted_limits')}"
    low, high = figures["ci"]
    change = "interval undefined" if low is None else f"Δ [{low:+.2f}, {high:+.2f}]"
    text = (
        f"cross-group AUROC {figures['cross_group_auroc_before']:.2f} → "
        f"{figures['cross_group_auroc_after']:.2f} ({change}; {figures['oracle']:.2f} without the trap), "
        f"{figures['random_beaten']} of {len(figures['random_changes'])} random latents beaten"
    )
    if "measured_on" in figures:
        text += f", measured on the reference of {figures['measured_on']['reference']}"
    return text if why is None else f"{text}; {why}"
