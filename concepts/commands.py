"""The commands of concepts that are not stages. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.run.directory import newest_run, open_run

from .inference.options import SuppressOptions

ReadRun = Annotated[
    Path | None, typer.Option("--run", help="folder of the run (default: the newest)")
]


def concepts(
    run: ReadRun = None,
    unnamed: Annotated[bool, typer.Option(help="list the unnamed latents too")] = False,
) -> dict[str, Any]:
    """List the named latents and the best latent of every labelled concept."""
    from .naming.listing import list_concepts

    return list_concepts(open_run(run or newest_run()), unnamed)


def vocabulary_check(
    file: Annotated[
        str, typer.Argument(help="a vocabulary: a TOML or JSON file, or a bundled one by name")
    ],
) -> dict[str, Any]:
    """Look for terms of two concepts, diagnoses among other concepts, missing opposites, and markup."""
    from .vocabulary.check import check_vocabulary

    return check_vocabulary(file)


def suppress(options: SuppressOptions) -> dict[str, Any]:
    """Predict with a concept suppressed, and list what changed."""
    if options.run is not None:
        open_run(options.run)
    from .inference.opened import open_model
    from .inference.predictions import suppress_images

    return suppress_images(open_model(options), options)
