"""The commands of concepts. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError
from dermaudit.run.directory import newest_run, open_run
from dermaudit.sae.inference.modes import DOES, check_mode

_MODES = "; ".join(f"{mode} {does}" for mode, does in DOES.items())
RunOption = Annotated[Path, typer.Option("--run", help="folder of the run")]
ReadRun = Annotated[
    Path | None, typer.Option("--run", help="folder of the run (default: the newest)")
]
Seed = Annotated[int | None, typer.Option(help="default: the seed of the run")]
Threads = Annotated[int, typer.Option(help="torch threads")]
Force = Annotated[bool, typer.Option(help="make it again")]
VocabularyOption = Annotated[
    str | None,
    typer.Option(
        help="a bundled vocabulary, or a TOML / JSON file "
        "(default: the one that the run was named with, else dermoscopy)"
    ),
]
Level = Annotated[
    float | None, typer.Option(help="of --mode scale: the factor of the codes, e.g. 0.5", min=0)
]


def annotate(run: RunOption, seed: Seed = None, force: Force = False) -> dict[str, Any]:
    """Compare latents with labels: the best latent of every known concept, and its lift share (test)."""
    opened = open_run(run)
    from .annotation.stage import AnnotateOptions, annotate_run

    return annotate_run(opened, AnnotateOptions(seed, force))


def name(
    run: RunOption,
    vocabulary: VocabularyOption = None,
    method: Annotated[str, typer.Option(help="naming method")] = "permutation",
    seed: Seed = None,
    threads: Threads = 1,
    force: Force = False,
) -> dict[str, Any]:
    """Name the latents whose activations a word explains better than chance; the rest stay unnamed."""
    opened = open_run(run)
    from .inputs import tower_of, vocabulary_of
    from .naming.stage import NameOptions, name_run

    words = vocabulary_of(opened, vocabulary)
    return name_run(opened, words, tower_of(opened, threads), NameOptions(method, seed, force))


def compare(
    run: RunOption,
    task: Annotated[str, typer.Option(help="the label that is predicted against the rest")] = "mel",
    nec: Annotated[int, typer.Option(help="effective concepts of every bottleneck", min=1)] = 5,
    vocabulary: VocabularyOption = None,
    seed: Seed = None,
    threads: Threads = 1,
    force: Force = False,
) -> dict[str, Any]:
    """Compare bottlenecks at equal NEC: SAE codes, the vocabulary, random words; and the full probe."""
    opened = open_run(run)
    from .bottlenecks.stage import CompareOptions, compare_run
    from .inputs import tower_of, vocabulary_of

    words = vocabulary_of(opened, vocabulary)
    options = CompareOptions(task, nec, seed, force)
    return compare_run(opened, words, tower_of(opened, threads), options)


def heads(run: RunOption, seed: Seed = None, force: Force = False) -> dict[str, Any]:
    """Fit the run's linear head on its train split, measured on test."""
    opened = open_run(run)
    from .heads import HeadOptions, fit_heads

    return fit_heads(opened, HeadOptions(seed, force))


def recipe_make(
    run: RunOption,
    concept: Annotated[
        list[str], typer.Option("--concept", help="e.g. ruler; repeat it for several")
    ],
    target: Annotated[
        str, typer.Option(help="the label whose prediction must not depend on the concept")
    ] = "mel",
    strength: Annotated[
        float, typer.Option(help="P(concept | target) in the trap split", min=0.5, max=1.0)
    ] = 0.9,
    mode: Annotated[str, typer.Option(help=f"how a latent is suppressed: {_MODES}")] = "subtract",
    level: Level = None,
    vocabulary: VocabularyOption = None,
    seed: Seed = None,
    threads: Threads = 1,
    force: Force = False,
    refuse: Annotated[
        bool, typer.Option("--refuse/--keep-going", help="exit 3 at a concept without evidence")
    ] = True,
) -> dict[str, Any]:
    """Choose the latents to suppress on val, measure the effect on test, and write the recipe."""
    check_mode(mode, level)
    opened = open_run(run)
    from .inputs import known_concept, tower_of, vocabulary_of
    from .suppression.make_recipe import RecipeOptions
    from .suppression.stage import recipe_run

    words = vocabulary_of(opened, vocabulary)
    concepts = {word: known_concept(opened, words, word) for word in concept}
    tower = tower_of(opened, threads)
    options = RecipeOptions(target, strength, mode, level, seed)
    figures = {
        word: recipe_run(opened, known, tower, words, options, force=force, refuse=refuse)
        for word, known in concepts.items()
    }
    return {"run": str(run), "suppression": figures}


def recipe_show(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or a concept of the run")],
    run: ReadRun = None,
) -> dict[str, Any]:
    """Show what a recipe suppresses, how, and with what measured effect."""
    from .suppression.recipe import SuppressionRecipe
    from .suppression.suppressed_model import load_recipe

    path = Path(recipe)
    if path.suffix == ".json":
        shown = SuppressionRecipe.load(path)
    else:
        opened = open_run(run or newest_run())
        path = opened.file("recipes", f"{recipe}.recipe.json")
        shown = load_recipe(opened, recipe)
    shown.show()
    return {"path": str(path), "sha256": shown.sha256, "body": shown.body}


def concepts(
    run: ReadRun = None,
    unnamed: Annotated[bool, typer.Option(help="list the unnamed latents too")] = False,
) -> dict[str, Any]:
    """List the named latents and the best latent of every labelled concept."""
    opened = open_run(run or newest_run())
    from .naming.listing import list_concepts

    return list_concepts(opened, unnamed)


def suppress(
    run: ReadRun = None,
    concept: Annotated[
        list[str] | None, typer.Option("--concept", help="e.g. ruler; repeat it for several")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="a folder or data set (default: the run's own images)")
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV of the predictions")] = Path("predictions.csv"),
    head: Annotated[str | None, typer.Option(help="a head of the run, or zeroshot")] = None,
    target: Annotated[
        str | None, typer.Option(help="the class whose logit changes are listed")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(help=f"how a latent is suppressed (default: as the recipe does): {_MODES}"),
    ] = None,
    level: Level = None,
    vocabulary: VocabularyOption = None,
    seed: Seed = None,
    threads: Threads = 1,
    force: Annotated[bool, typer.Option(help="overwrite --out")] = False,
    dry_run: Annotated[bool, typer.Option(help="print what would change, write nothing")] = False,
) -> dict[str, Any]:
    """Predict with a concept suppressed, and list what changed."""
    if not concept:
        raise UserInputError("--concept is missing", "run: dermaudit suppress --concept ruler")
    if mode is not None:
        check_mode(mode, level)
    elif level is not None:
        raise UserInputError(
            f"--level {level:g} needs --mode scale", "add --mode scale, or leave --level out"
        )
    if out.exists() and not (force or dry_run):
        raise UserInputError(f"{out} exists", "use --force to overwrite it, or another --out")
    opened = open_run(run or newest_run())
    from .inputs import known_concept, tower_of, vocabulary_of
    from .suppression.predictions import SuppressOptions, suppress_images

    words = vocabulary_of(opened, vocabulary)
    wanted = [known_concept(opened, words, word) for word in concept]
    manifest = None
    if images is not None:
        from dermaudit.data import Manifest

        manifest = Manifest.load(images)
    options = SuppressOptions(out, head, target, mode, level, seed, dry_run)
    tower = tower_of(opened, threads)
    return suppress_images(opened, wanted, tower, words, options, manifest)
