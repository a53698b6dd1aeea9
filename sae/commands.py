"""The verbs `embed`, `fit` and `sae show`. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError

RunOption = Annotated[Path, typer.Option("--run", help="folder of the run")]


def embed(
    data: Annotated[Path, typer.Argument(help="a data set, a manifest, or a folder of images")],
    model: Annotated[str, typer.Option(help="model name (dermaudit models)")],
    run: RunOption,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="hook points instead of the default two")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition on the manifest's columns")
    ] = None,
    strict: Annotated[bool, typer.Option(help="a bad image is fatal")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
    resume: Annotated[
        bool, typer.Option(help="go on where a stopped run was (always done)")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be done")] = False,
) -> dict[str, Any]:
    """Decode the images and store their activations at the run's sites."""
    from dermaudit.data import Manifest

    manifest = Manifest.load(data)
    if where:
        manifest = manifest.where(where)
    if not manifest.n:
        raise UserInputError(f"{data}: no image is left after --where {where!r}")
    from dermaudit.rundir import Run

    if dry_run:
        return {"n_images": manifest.n, "model": model, "run": str(run)}
    import torch

    from dermaudit.towers import load_model

    torch.set_num_threads(threads)
    tower = load_model(model)
    target = Run.create(run, seed=seed, threads=threads, force=force)
    if not force:
        target.check_model(tower.fingerprint)
    from dermaudit.ingest import ingest

    from .embed import default_sites, embed_run

    sites = site or default_sites(tower)
    for name in sites:
        tower.check_site(name)
    summary = ingest(target, manifest, tower, strict=strict, force=force)
    import pyarrow.parquet as pq

    kept = pq.read_table(target.file("images.parquet"))
    root = Path(target.meta["data"]["root"])
    paths = [root / image for image in kept["image"].to_pylist()]
    groups = (
        kept["group"].to_pylist() if "group" in kept.column_names else kept["image"].to_pylist()
    )
    done = embed_run(target, tower, paths, [str(g) for g in groups], sites, force=force)
    return {
        "run": str(run),
        "n_images": summary["n"],
        "n_skipped": summary["n_skipped"],
        "sites": done["sites"],
    }


def fit(
    run: RunOption,
    d_sae: Annotated[int | None, typer.Option(help="latents (default by site)", min=2)] = None,
    k: Annotated[float | None, typer.Option(help="mean active latents a row", min=0.5)] = None,
    samples: Annotated[int | None, typer.Option(help="rows seen in training", min=1)] = None,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="fit again")] = False,
    resume: Annotated[
        bool, typer.Option(help="go on where a stopped run was (always done)")
    ] = False,
) -> dict[str, Any]:
    """Fit a BatchTopK sparse autoencoder on each stored site (train rows), measured on test rows."""
    from dermaudit.console import table
    from dermaudit.rundir import open_run

    target = open_run(run)
    if d_sae is not None and k is not None and k > d_sae:
        raise UserInputError(
            f"--k {k:g} is larger than --d-sae {d_sae}", "choose k well below d-sae"
        )
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from .fit import fit_run

    torch.set_num_threads(threads)
    target.require("embed", "embed")
    splits = np.array(
        pq.read_table(target.file("images.parquet"))["split"].to_pylist(), dtype=object
    )
    overrides = {
        name: value
        for name, value in (("d_sae", d_sae), ("k", k), ("samples", samples))
        if value is not None
    }
    metrics = fit_run(target, splits, seed=seed, overrides=overrides, force=force)
    table(
        "sparse autoencoders (held-out test rows)",
        ("site", "d_in", "d_sae", "L0", "FVU", "dead"),
        [
            (site, m["d_in"], m["d_sae"], f"{m['l0']:.2f}", f"{m['fvu']:.3f}", f"{m['dead']:.1%}")
            for site, m in metrics.items()
        ],
    )
    return {"run": str(run), "sae": metrics}


def show(
    folder: Annotated[
        Path, typer.Argument(help="folder with cfg.json and sae_weights.safetensors")
    ],
) -> dict[str, Any]:
    """Say what a sparse autoencoder on disk is."""
    if not folder.is_dir():
        raise UserInputError(f"{folder} is not a folder", "give the folder that holds cfg.json")
    from dermaudit.console import say

    from .model import ThresholdSAE

    sae = ThresholdSAE.load(folder)
    facts = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "hook_name": sae.hook_name,
        "threshold": round(float(sae.threshold.mean()), 6),
        "decoder_norm": round(float(sae.W_dec.norm(dim=1).mean()), 6),
        "metadata": sae.metadata,
    }
    for name, value in facts.items():
        say(f"  {name}: {value}")
    return facts
