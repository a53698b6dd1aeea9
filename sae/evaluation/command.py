"""The verb `sae measure`: all figures of a run's SAEs on its test images, without fitting again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.errors import UserInputError, unknown

if TYPE_CHECKING:
    from dermaudit.run.directory import Run


def measure(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")],
    site: Annotated[
        list[str] | None, typer.Option("--site", help="sites instead of all that were fitted")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="folder of an SAE of the same site and another seed, or a run with one"),
    ] = None,
    embeddings_of: Annotated[
        str | None,
        typer.Option(help="an independent model, by whose embeddings monosemanticity is judged"),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option(help="also what the zero-shot classifier keeps, where labels allow")
    ] = True,
    draws: Annotated[int, typer.Option(help="bootstrap draws over groups", min=20)] = 1000,
    seed: Annotated[int | None, typer.Option(help="of every draw (default: the run's)")] = None,
    threads: Annotated[int, typer.Option(help="torch threads", min=1)] = 1,
    force: Annotated[bool, typer.Option(help="measure again")] = False,
) -> dict[str, Any]:
    """Measure the sparse autoencoders of a run on its test images; writes sae/<site>/measured.json."""
    for folder in against or []:
        if not folder.is_dir():
            raise UserInputError(
                f"--against {folder} is not a folder", "give the folder with cfg.json, or a run"
            )
    from dermaudit.run.directory import open_run

    target = open_run(run)
    sites = _sites(target, site)
    if against and len(sites) > 1 and any((folder / "cfg.json").is_file() for folder in against):
        raise UserInputError(
            f"--against names one SAE, and the run has {len(sites)} sites", f"add --site {sites[0]}"
        )
    import torch

    from .measure_run import measure_run

    torch.set_num_threads(threads)
    found = measure_run(
        target,
        sites,
        against=against or [],
        embeddings_of=embeddings_of,
        zero_shot=zero_shot,
        draws=draws,
        seed=int(target.meta.get("seed", 0)) if seed is None else seed,
        force=force,
    )
    return {"run": str(run), "sites": found}


def _sites(run: Run, asked: list[str] | None) -> list[str]:
    fitted = sorted(path.parent.name for path in run.path.glob("sae/*/cfg.json"))
    if not fitted:
        raise UserInputError(
            f"the run {run.path} has no sparse autoencoder yet",
            f"run: dermaudit fit --run {run.path}",
        )
    for name in asked or []:
        if name not in fitted:
            raise unknown("site", name, fitted)
    sites = list(dict.fromkeys(asked or fitted))
    for name in sites:
        run.require(f"fit:{name}", "fit")
    return sites
