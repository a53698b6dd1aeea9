"""The command `pretrain`. Input is validated before anything heavy is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError
from dermaudit.options import Options, option, required
from dermaudit.towers.loading.names import CONFIG_FILE

if TYPE_CHECKING:
    from dermaudit.data import Manifest

    from .recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(Options):
    """What is trained, on what, and how."""

    recipe: str = required(
        "a bundled recipe (phantom, dermoscopy-small, dermoscopy-from-scratch, dermfm-zero, make, "
        "dermlip-vit-b-16, dermlip-panderm) or a TOML file",
        positional=True,
    )
    data: Path = required("data set with a split (data convert | phantom), or its shards")
    out: Path = required("folder for the checkpoint, in open_clip's local-dir format")
    set_: tuple[str, ...] = option((), "override: key=value, e.g. contrastive.epochs=5", "--set")
    seed: int | None = option(None, "instead of the recipe's seed")
    test: Path | None = option(None, "data set whose test split is measured (default: --data)")
    device: str = option("cpu", "cpu or cuda; under torchrun each process its own")
    threads: int = option(2, "torch threads, and images read at once", minimum=1)
    resume: bool = option(False, "continue a stopped training")
    skip_lost: bool = option(
        False, "continue without shards that are missing or cut off", "--skip-lost"
    )
    force: bool = option(False, "replace the checkpoint in --out")
    dry_run: bool = option(False, "print what would be done")


def pretrain(options: PretrainOptions) -> dict[str, Any]:
    """Train a foundation model: masked latent modelling, then contrastive, on the train split only.

    On several GPUs: torchrun --nproc-per-node N -m dermaudit pretrain …
    """
    from .recipe import load_recipe

    overrides = [*options.set_, *([f"seed={options.seed}"] if options.seed is not None else [])]
    recipe = load_recipe(options.recipe, overrides)
    _check_out(options.out, options.resume, options.force)
    if recipe.precision == "bf16" and not options.device.startswith("cuda"):
        raise UserInputError(
            f"the recipe {recipe.name} computes in bf16, which is very slow on a CPU",
            "use --device cuda, or --set precision=float32",
        )
    from dermaudit.data import Manifest

    manifest, shards = open_data(options.data, strict=not options.skip_lost)
    test = Manifest.load(options.test) if options.test is not None else None
    if options.dry_run:
        return _dry_run(recipe, manifest, options.data, options.out)
    from dermaudit.distributed import join_world

    from .training.build import TrainingJob, build_and_train

    work = _work_folder(options.out, options.resume, options.force)
    command = [options.recipe, "--seed", str(recipe.seed), "--threads", str(options.threads)]
    command += ["--device", options.device]
    command += [word for text in options.set_ for word in ("--set", text)]
    with join_world(options.device) as world:
        if not world.leads:
            os.environ["DERMAUDIT_QUIET"] = "1"
        return build_and_train(
            TrainingJob(
                recipe,
                manifest,
                options.out,
                work,
                threads=options.threads,
                resume=options.resume,
                shards=shards,
                test=test,
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
