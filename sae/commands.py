"""The verb `fit`. Input is validated before anything heavy is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError

RunOption = Annotated[Path, typer.Option("--run", help="folder of the run")]


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
