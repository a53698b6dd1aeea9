"""What `suppress` predicts with: the recipes, the model and the head, of a run, of files, or of a bundled reference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file
from dermaudit.heads import LinearHead
from dermaudit.run.directory import Run, newest_run, open_run

from ..inputs import known_concept, tower_of, vocabulary_of
from ..recipes.recipe import SuppressionRecipe, load_recipe
from ..suppression.combined import make_suppressor, stored_intercept
from ..suppression.head import Head, ZeroShotHead, pick_target
from ..suppression.options import RecipeOptions
from ..suppression.stage import recipe_run, refusal, refused_numbers
from .options import DEFAULT_MODEL, SuppressOptions
from .reference import Reference
from .suppressed_model import SuppressedModel, build

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

ZERO_SHOT = "zeroshot"


@dataclass(frozen=True)
class Opened:
    """`run` is None where the recipes are not of a run; `place` says in words what they are of."""

    model: SuppressedModel
    recipes: list[SuppressionRecipe]
    place: str
    run: Run | None = None


def open_model(options: SuppressOptions) -> Opened:
    """Return what the options ask for: a run, recipe files, or a bundled model. Without any of them it is the
    newest run, and the reference of DEFAULT_MODEL where there is no run.
    """
    if options.recipe:
        return _of_files(options)
    if options.model is None:
        run = options.run or _newest()
        if run is not None:
            return _of_run(open_run(run), options)
    reference = Reference.load(options.model or DEFAULT_MODEL)
    recipes = [reference.recipe(concept) for concept in options.concept]
    return _without_run(options, recipes, reference, f"the reference of {reference.model}")


def _newest() -> Path | None:
    try:
        return newest_run()
    except UserInputError:
        return None


def _of_run(run: Run, options: SuppressOptions) -> Opened:
    words = vocabulary_of(run, options.vocabulary)
    concepts = [known_concept(run, words, word) for word in options.concept]
    tower = tower_of(run, options.threads)
    recipes = [recipe_of_run(run, concept, tower, words, options.seed) for concept in concepts]
    model = build(
        run,
        recipes,
        tower,
        head=options.head,
        target=options.target or _common_target(recipes),
        mode=options.mode,
        level=options.level,
    )
    return Opened(model, recipes, f"the run {run.path}", run)


def recipe_of_run(
    run: Run, concept: str, tower: Any, vocabulary: Any, seed: int | None
) -> SuppressionRecipe:
    """Return the recipe of the run, made first if need be. EvidenceError where it was refused."""
    reason, effects = run.files.suppression_reason(concept), run.files.effects(concept)
    if f"recipe:{concept}" not in run.meta["stages"]:
        recipe_run(run, concept, tower, vocabulary, RecipeOptions(seed=seed))
    elif not run.files.recipe(concept).is_file():
        known = read_json(reason if reason.is_file() else effects)
        raise EvidenceError(
            f"{concept}: {refusal(known)}",
            "nothing is suppressed without evidence; to write the recipe all the same, run: "
            f'{run.remake_command(f"recipe:{concept}")} --accept-limits "reason"',
            refused_numbers(known),
        )
    return load_recipe(run, concept)


def _of_files(options: SuppressOptions) -> Opened:
    recipes = [SuppressionRecipe.load(path) for path in options.recipe]
    names = {recipe.body["model"]["name"] for recipe in recipes}
    if len({recipe.body["model"]["fingerprint"] for recipe in recipes}) > 1:
        raise ForeignArtifactError(
            f"the recipes are of different models ({', '.join(sorted(names))})",
            "suppress them one at a time",
        )
    reference = Reference.of_model(sorted(names)[0])
    return _without_run(options, recipes, reference, ", ".join(map(str, options.recipe)))


def _without_run(
    options: SuppressOptions,
    recipes: list[SuppressionRecipe],
    reference: Reference | None,
    place: str,
) -> Opened:
    """Return the model of recipes that hold everything. The intercept is that of the recipe, or not known."""
    import torch

    from dermaudit.towers import load_model

    if options.images is None:
        raise UserInputError(
            f"--images is missing: {place} has no images of its own",
            "add --images FOLDER",
        )
    torch.set_num_threads(options.threads)
    tower = load_model(recipes[0].body["model"]["name"])
    for recipe in recipes:
        recipe.check_model(tower.fingerprint)
    head, name, sha256 = _head(options.head, tower, reference)
    suppressor = make_suppressor(recipes, None, options.mode, options.level)
    target = pick_target(head.classes, options.target or _common_target(recipes))
    model = SuppressedModel(
        tower,
        head,
        suppressor,
        target,
        intercept=stored_intercept(recipes, name, sha256, suppressor.module, target),
        distributions=[recipe.body["distribution"] for recipe in recipes],
    )
    return Opened(model, recipes, place)


def _head(
    wanted: str | None, tower: HookedTower, reference: Reference | None
) -> tuple[Head, str, str | None]:
    """Return a head, its name, and the sha256 of its file: the wanted one, else that of the reference, else the
    zero-shot classifier.
    """
    if wanted is not None and wanted.endswith(".safetensors"):
        path = Path(wanted)
        return LinearHead.load(path), path.stem, sha256_file(path)
    if wanted == ZERO_SHOT or reference is None:
        if wanted not in (None, ZERO_SHOT):
            raise UserInputError(
                f"there is no head '{wanted}' without a run",
                "give the file of a head (.safetensors), or zeroshot",
            )
        return ZeroShotHead(tower), ZERO_SHOT, None
    path = reference.head_file(wanted or "label")
    return LinearHead.load(path), path.stem, sha256_file(path)


def _common_target(recipes: list[SuppressionRecipe]) -> str | None:
    """Return the target of the recipes; None where they have several."""
    targets = {recipe.body["target"] for recipe in recipes}
    return targets.pop() if len(targets) == 1 else None
