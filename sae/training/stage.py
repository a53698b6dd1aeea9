"""The stages `fit:<site>`, `seeds:<site>` and `sweep:<site>`: SAEs on the stored activations."""

from __future__ import annotations

import os
from typing import Any

from dermaudit.console import say, table
from dermaudit.run.directory import Run
from dermaudit.run.stages import stage

from .options import FIT, SEEDS, SWEEP, FitOptions

_GB = 10**9
_COLUMNS = ("d_in", "d_sae", "architecture", "L0", "FVU (95 %)", "cosine", "dead", "n")


@stage("fit", FitOptions, FIT, SEEDS, SWEEP)
def fit(run: Run, options: FitOptions) -> dict[str, Any]:
    """Fit a sparse autoencoder on each stored site.

    It is fitted on train rows and measured on test rows: reconstruction, monosemanticity, stability
    over seeds, what the zero-shot classifier keeps, probes, and the labels as truth, each with its
    interval, n and control.

    Over several processes: torchrun --nproc-per-node N -m dermaudit -- fit --run … (without the --
    torchrun takes --run for its own)
    """
    run.require("embed")
    import torch

    from dermaudit.distributed import join_world

    from ..run_data import RunData
    from .fit import FitPlan, fit_run

    torch.set_num_threads(options.threads)
    seed = run.seed(options.seed)
    grid = options.sweep
    seeds = options.seeds or (() if grid else (seed, seed + 1, seed + 2))
    with join_world(options.device) as world:
        if not world.leads:
            os.environ["DERMAUDIT_QUIET"] = "1"
        plan = FitPlan(
            seed=seed,
            overrides=options.settings(),
            preset=options.preset or "",
            seeds=seeds,
            grid=grid,
            drop_bad=options.bad_rows == "drop",
            memory=round(options.memory * _GB),
            resume=options.resume,
            world=world,
        )
        found = fit_run(run, RunData(run).splits, plan, force=options.force)
        leads = world.leads
    result: dict[str, Any] = {"run": str(run.path), "sweep" if grid else "sae": found}
    if leads:  # the first process measures, the others may end
        _print_sweep(found) if grid else _print_fits(found)
        if options.metrics and not grid:
            from ..evaluation.measure_run import measure_run
            from ..evaluation.options import MeasureOptions

            result["measured"] = measure_run(
                run,
                MeasureOptions(
                    site=tuple(found), seed=seed, threads=options.threads, force=options.force
                ),
            )
    return result


def _print_sweep(found: dict[str, Any]) -> None:
    table(
        "a sweep, measured on val: fit what you choose, and it is measured on test",
        ("site", "recipe", *_COLUMNS),
        [
            (site, member["name"], *_cells(member))
            for site, sweep in found.items()
            for member in sweep["members"]
        ],
    )


def _print_fits(found: dict[str, Any]) -> None:
    table(
        "sparse autoencoders (held-out test rows)",
        ("site", *_COLUMNS),
        [(site, *_cells(metrics)) for site, metrics in found.items()],
    )
    for site, metrics in found.items():
        report = metrics.get("stability", {})
        if "stable" in report:
            stable, chance = report["stable"], report["shared"]["control"] or 0
            say(
                f"  {site}: {stable['value']:.0%} of {stable['n']} live latents are found by every "
                f"other seed too (by chance {chance:.0%} of them match one)"
            )


def _cells(metrics: dict[str, Any]) -> tuple[object, ...]:
    fvu, cosine = metrics["held_out"]["fvu"], metrics["held_out"]["cosine"]
    interval = "" if fvu["low"] is None else f" ({fvu['low']:.3f} … {fvu['high']:.3f})"
    return (
        metrics["d_in"],
        metrics["d_sae"],
        metrics["architecture"],
        f"{metrics['l0']:.2f}",
        f"{metrics['fvu']:.3f}{interval}",
        f"{cosine['value'] or 0:.3f}",
        f"{metrics['dead']:.1%}",
        fvu["n"],
    )
