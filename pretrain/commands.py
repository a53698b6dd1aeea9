"""The verb `pretrain`. Input is validated before anything heavy is imported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError


def pretrain(
    recipe: Annotated[
        str, typer.Argument(help="a bundled recipe (phantom-vit, dermoscopy-small) or a TOML file")
    ],
    data: Annotated[
        Path, typer.Option(help="data set with a split (dermaudit data convert | phantom)")
    ],
    out: Annotated[
        Path, typer.Option(help="folder for the checkpoint, in open_clip's local-dir format")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="override: key=value, e.g. contrastive.epochs=5"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's seed")] = None,
    threads: Annotated[int, typer.Option(help="torch threads")] = 2,
    resume: Annotated[bool, typer.Option(help="go on where a stopped run was")] = False,
    force: Annotated[bool, typer.Option(help="replace the checkpoint in --out")] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be done")] = False,
) -> dict[str, Any]:
    """Train a foundation model: masked latent prediction, then contrastive, on the train split only."""
    from .recipe import load_recipe

    overrides = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    plan = load_recipe(recipe, overrides)
    if out.exists() and any(out.iterdir()) and not force:
        raise UserInputError(
            f"{out} already holds a checkpoint", "use --force to replace it, or another --out"
        )
    from dermaudit.data import Manifest

    manifest = Manifest.load(data)
    if dry_run:
        n = sum(split == "train" for split in manifest.splits)
        return {"recipe": plan.model_dump(mode="json"), "n_train": n, "out": str(out)}
    from .build import build_and_train

    work = out.with_name(f".{out.name}.training")
    if not resume:
        shutil.rmtree(work, ignore_errors=True)
    return build_and_train(plan, manifest, out, work, threads=threads, resume=resume)
