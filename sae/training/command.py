"""The verb `fit`. Input is validated before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError, unknown

from .recipe import ARCHITECTURES, SAERecipe, settings_from
from .sweep import parse_grid, parse_seeds

_PRESETS = ("dermfm-zero",)
_GB = 10**9


def fit(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")],
    arch: Annotated[
        str | None, typer.Option(help=f"{', '.join(ARCHITECTURES)} (default batchtopk)")
    ] = None,
    d_sae: Annotated[int | None, typer.Option(help="latents (default by site)", min=2)] = None,
    k: Annotated[float | None, typer.Option(help="mean active latents a row", min=0.5)] = None,
    samples: Annotated[int | None, typer.Option(help="rows seen in training", min=1)] = None,
    epochs: Annotated[float | None, typer.Option(help="instead: passes over the rows")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="any setting: key=value, e.g. lr=3e-4")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="dermfm-zero: its published ReLU-L1 recipe")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="of the order, and the first weights (default: the run's)"),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="first weights: the run's own SAE, then others that say which of its latents they find "
            "too (default: three, from --seed on; one is quicker and says nothing of stability)"
        ),
    ] = None,
    metrics: Annotated[
        bool, typer.Option(help="print every held-out figure (as sae measure does)")
    ] = True,
    sweep: Annotated[
        str | None,
        typer.Option(help="several recipes in one pass, measured on val: 'd_sae=256,512;k=8,16'"),
    ] = None,
    bad_rows: Annotated[
        str, typer.Option("--bad-rows", help="rows with NaN or infinity: drop or fatal")
    ] = "drop",
    memory: Annotated[
        float, typer.Option(help="GB: rows that take more are shuffled in chunks", min=0.001)
    ] = 2.147483648,
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun each its own")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="fit again, from the start")] = False,
    resume: Annotated[
        bool,
        typer.Option(
            help="continue a stopped fit, or end with the reason why it cannot be continued"
        ),
    ] = False,
) -> dict[str, Any]:
    """Fit a sparse autoencoder on each stored site (train rows), measured on test rows: reconstruction,
    monosemanticity, stability over seeds, what the zero-shot classifier keeps, probes, and the labels as
    truth, each with its interval, n and control.

    Over several processes: torchrun --nproc-per-node N -m dermaudit -- fit --run … (without the --
    torchrun takes --run for its own)
    """
    from dermaudit.run.directory import open_run

    target = open_run(run)
    overrides = _overrides(arch, d_sae, k, samples, epochs, set_)
    if preset is not None and preset not in _PRESETS:
        raise unknown("preset", preset, _PRESETS)
    if bad_rows not in ("drop", "fatal"):
        raise UserInputError(f"--bad-rows {bad_rows} is neither drop nor fatal")
    if resume and force:
        raise UserInputError("--resume and --force contradict each other", "give one of them")
    grid = parse_grid(sweep) if sweep is not None else []
    seed = int(target.meta.get("seed", 0)) if seed is None else seed
    given = parse_seeds(seeds) if seeds is not None else []
    several = given or ([] if grid else [seed, seed + 1, seed + 2])
    if preset is None:
        for one in grid or [{}]:
            SAERecipe().replaced(overrides | one)
    target.require("embed", "embed")
    import numpy as np
    import pyarrow.parquet as pq
    import torch

    from dermaudit.distributed import join_world

    from .fit import FitPlan, fit_run

    torch.set_num_threads(threads)
    splits = np.array(
        pq.read_table(target.file("images.parquet"))["split"].to_pylist(), dtype=object
    )
    with join_world(device) as world:
        if not world.leads:
            os.environ["DERMAUDIT_QUIET"] = "1"
        plan = FitPlan(
            seed,
            overrides,
            preset or "",
            tuple(several),
            tuple(grid),
            bad_rows == "drop",
            round(memory * _GB),
            resume,
            world,
        )
        found = fit_run(target, splits, plan, force=force)
        leads = world.leads
    result: dict[str, Any] = {"run": str(run), "sweep" if grid else "sae": found}
    if leads:  # measured by one, while the others may go
        _print(found, bool(grid))
        if metrics and not grid:
            from ..evaluation.measure_run import measure_run

            result["measured"] = measure_run(target, list(found), seed=seed, force=force)
    return result


def _overrides(
    arch: str | None,
    d_sae: int | None,
    k: float | None,
    samples: int | None,
    epochs: float | None,
    set_: list[str] | None,
) -> dict[str, Any]:
    """The settings that were given, each once."""
    if arch is not None and arch not in ARCHITECTURES:
        raise unknown("architecture", arch, ARCHITECTURES)
    if d_sae is not None and k is not None and k > d_sae:
        raise UserInputError(
            f"--k {k:g} is larger than --d-sae {d_sae}", "choose k well below d-sae"
        )
    if samples is not None and epochs is not None:
        raise UserInputError(
            "--samples and --epochs both say how long to train", "give one of them"
        )
    if k is not None and arch == "relu_l1":
        raise UserInputError(
            f"--k {k:g} says nothing to relu_l1: its penalty decides how many latents are active",
            "use --set l1_coefficient=…",
        )
    flags = {"architecture": arch, "d_sae": d_sae, "k": k, "samples": samples, "epochs": epochs}
    given = {name: value for name, value in flags.items() if value is not None}
    more = settings_from(set_ or [])
    if twice := sorted(given.keys() & more.keys()):
        raise UserInputError(f"{twice[0]} is given twice, by its own flag and by --set")
    return given | more


def _print(found: dict[str, Any], swept: bool) -> None:
    from dermaudit.console import say, table

    def cells(m: dict[str, Any]) -> tuple[object, ...]:
        fvu, cosine = m["held_out"]["fvu"], m["held_out"]["cosine"]
        span = "" if fvu["low"] is None else f" ({fvu['low']:.3f} … {fvu['high']:.3f})"
        return (
            m["d_in"],
            m["d_sae"],
            m["architecture"],
            f"{m['l0']:.2f}",
            f"{m['fvu']:.3f}{span}",
            f"{cosine['value'] or 0:.3f}",
            f"{m['dead']:.1%}",
            fvu["n"],
        )

    columns = ("d_in", "d_sae", "architecture", "L0", "FVU (95 %)", "cosine", "dead", "n")
    if swept:
        table(
            "a sweep, measured on val: fit what you choose, and it is measured on test",
            ("site", "recipe", *columns),
            [
                (site, m["name"], *cells(m))
                for site, swept_site in found.items()
                for m in swept_site["members"]
            ],
        )
        return
    table(
        "sparse autoencoders (held-out test rows)",
        ("site", *columns),
        [(site, *cells(m)) for site, m in found.items()],
    )
    for site, m in found.items():
        report = m.get("stability", {})
        if "stable" in report:
            stable, chance = report["stable"], report["shared"]["control"] or 0
            say(
                f"  {site}: {stable['value']:.0%} of {stable['n']} live latents are found by every "
                f"other seed too (by chance {chance:.0%} of them match one)"
            )
