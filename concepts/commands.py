"""The commands of concepts that are not stages. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError
from dermaudit.run.directory import newest_run, open_run
from dermaudit.sae.inference.modes import check_mode

from .inputs import THREADS_HELP, VOCABULARY_HELP
from .suppression.options import LEVEL_HELP, MODES_HELP

ReadRun = Annotated[
    Path | None, typer.Option("--run", help="folder of the run (default: the newest)")
]


def recipe_show(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or a concept of the run")],
    run: ReadRun = None,
) -> dict[str, Any]:
    """Show what a recipe suppresses, how, and with what measured effect."""
    from .suppression.recipe import SuppressionRecipe, load_recipe

    path = Path(recipe)
    if path.suffix == ".json":
        shown = SuppressionRecipe.load(path)
    else:
        opened = open_run(run or newest_run())
        path, shown = opened.files.recipe(recipe), load_recipe(opened, recipe)
    shown.show()
    return {"path": str(path), "sha256": shown.sha256, "body": shown.body}


def concepts(
    run: ReadRun = None,
    unnamed: Annotated[bool, typer.Option(help="list the unnamed latents too")] = False,
) -> dict[str, Any]:
    """List the named latents and the best latent of every labelled concept."""
    from .naming.listing import list_concepts

    return list_concepts(open_run(run or newest_run()), unnamed)


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
        typer.Option(
            help=f"how a latent is suppressed (default: as the recipe does): {MODES_HELP}"
        ),
    ] = None,
    level: Annotated[float | None, typer.Option(help=LEVEL_HELP, min=0)] = None,
    vocabulary: Annotated[str | None, typer.Option(help=VOCABULARY_HELP)] = None,
    seed: Annotated[
        int | None, typer.Option(help="of a recipe that is made first (default: the run's)")
    ] = None,
    threads: Annotated[int, typer.Option(help=THREADS_HELP)] = 1,
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
