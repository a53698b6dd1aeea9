"""The command `pretrain`. Input is validated before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.errors import UserInputError
from dermaudit.towers.loading.names import CONFIG_FILE

if TYPE_CHECKING:
    from dermaudit.data import Manifest

    from .recipe import TrainingRecipe


def pretrain(
    recipe: Annotated[
        str,
        typer.Argument(
            help="a bundled recipe (phantom, dermoscopy-small, dermfm-zero, make, dermlip-vit-b-16, "
            "dermlip-panderm) or a TOML file"
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="data set with a split (data convert | phantom), or its shards")
    ],
    out: Annotated[
        Path, typer.Option(help="folder for the checkpoint, in open_clip's local-dir format")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="override: key=value, e.g. contrastive.epochs=5"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="instead of the recipe's seed")] = None,
    test: Annotated[
        Path | None, typer.Option(help="data set whose test split is measured (default: --data)")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; under torchrun each process its own")
    ] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="torch threads, and images read at once")] = 2,
    resume: Annotated[bool, typer.Option(help="go on where a stopped run was")] = False,
    skip_lost: Annotated[
        bool, typer.Option("--skip-lost", help="go on without shards that are missing or cut off")
    ] = False,
    force: Annotated[bool, typer.Option(help="replace the checkpoint in --out")] = False,
    dry_run: Annotated[bool, typer.Option(help="print what would be done")] = False,
) -> dict[str, Any]:
    """Train a foundation model: masked latent modelling, then contrastive, on the train split only.

    On several GPUs: torchrun --nproc-per-node N -m dermaudit pretrain …
    """
    from .recipe import load_recipe

    overrides = [*(set_ or []), *([f"seed={seed}"] if seed is not None else [])]
    loaded = load_recipe(recipe, overrides)
    _check_out(out, resume, force)
    if loaded.precision == "bf16" and not device.startswith("cuda"):
        raise UserInputError(
            f"the recipe {loaded.name} computes in bf16, which is very slow on a CPU",
            "use --device cuda, or --set precision=float32",
        )
    from dermaudit.data import Manifest

    manifest, shards = open_data(data, strict=not skip_lost)
    test_manifest = Manifest.load(test) if test is not None else None
    if dry_run:
        return _dry_run(loaded, manifest, data, out)
    from dermaudit.distributed import join_world

    from .training.build import TrainingJob, build_and_train

    work = _work_folder(out, resume, force)
    command = [recipe, "--seed", str(loaded.seed), "--threads", str(threads), "--device", device]
    command += [word for text in set_ or [] for word in ("--set", text)]
    with join_world(device) as world:
        if not world.leads:
            os.environ["DERMAUDIT_QUIET"] = "1"
        return build_and_train(
            TrainingJob(
                loaded,
                manifest,
                out,
                work,
                threads=threads,
                resume=resume,
                shards=shards,
                test=test_manifest,
                command=command,
                world=world,
            )
        )


def _dry_run(recipe: TrainingRecipe, manifest: Manifest, data: Path, out: Path) -> dict[str, Any]:
    from dermaudit.console import say

    n = sum(split == "train" for split in manifest.splits)
    epochs = {"masked": recipe.masked.epochs, "contrastive": recipe.contrastive.epochs}
    stages = ", ".join(
        f"{n_epochs:g} epochs {name}" for name, n_epochs in epochs.items() if n_epochs
    )
    say(
        f"{out}: would be trained by {recipe.name} on {n} images of {data}: {stages}, "
        f"batch {recipe.batch}"
    )
    return {"recipe": recipe.model_dump(mode="json"), "n_train": n, "out": str(out)}


def _check_out(out: Path, resume: bool, force: bool) -> None:
    """Raise UserInputError unless `out` can become a checkpoint without losing other files."""
    if not out.name:
        raise UserInputError(f"--out {out} has no name", "name the checkpoint's folder")
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out {out} is a file", "choose a folder")
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if not held:
        return
    if CONFIG_FILE not in held:
        raise UserInputError(
            f"--out {out} holds files that are no checkpoint ({held[0]})", "choose another --out"
        )
    if resume and not out.with_name(f".{out.name}.training").is_dir():
        raise UserInputError(
            f"{out} is finished: there is nothing to resume", "use --force to train it again"
        )
    if not force:
        raise UserInputError(
            f"{out} already holds a checkpoint", "use --force to replace it, or another --out"
        )


def _work_folder(out: Path, resume: bool, force: bool) -> Path:
    """Make the folder of the unfinished training. UserInputError if it holds one that is not resumed."""
    from .training.state import STATE_FILE

    work = out.with_name(f".{out.name}.training")
    if (work / STATE_FILE).is_file() and not resume and not force:
        raise UserInputError(
            f"{work} holds an unfinished training",
            "continue it: --resume, or begin again: --force",
        )
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(
            f"--out: the folder {work} cannot be made: {error.strerror}", "choose another --out"
        ) from error
    return work


def open_data(path: Path, *, strict: bool = True) -> tuple[Any, Any]:
    """Return the manifest, and the shards or None, of a data set or of a folder of shards."""
    from dermaudit.data import Manifest
    from dermaudit.data.manifest.tables import SHARDS_FILE

    if not (path / SHARDS_FILE).is_file():
        return Manifest.load(path), None
    from dermaudit.console import say
    from dermaudit.data.shards.read import Shards

    shards = Shards.load(path, strict=strict)
    for lost in shards.lost:
        say(f"  {lost['file']}: {lost['reason']}; {lost['n']} images are left out")
    return shards.manifest, shards
