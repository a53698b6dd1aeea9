"""The stages `fit:<site>`, `seeds:<site>` and `sweep:<site>`: SAEs on the stored activations."""

from __future__ import annotations

import os
from typing import Any

from dermaudit.console import say, table
from dermaudit.run.directory import Run
from dermaudit.run.stages import stage

from .options import FIT, N_TOKEN_FITS, SEEDS, SWEEP, FitOptions

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
    with join_world(options.device) as world:
        if not world.leads:
            os.environ["DERMAUDIT_QUIET"] = "1"
        plan = FitPlan(
            seed=seed,
            overrides=options.settings(),
            preset=options.preset or "",
            seeds=options.all_seeds(seed),
            consensus=options.consensus,
            consensus_at=options.consensus_at,
            token_seeds=options.all_seeds(seed, N_TOKEN_FITS),
            halves=options.halves,
            sae=options.sae,
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
        _print_sweep(found, options.by) if grid else _print_fits(found)
        if options.metrics and not grid and not any("reference" in m for m in found.values()):
            from ..evaluation.measure_run import measure_run
            from ..evaluation.options import MeasureOptions

            result["measured"] = measure_run(
                run,
                MeasureOptions(
                    site=tuple(found), seed=seed, threads=options.threads, force=options.force
                ),
            )
    return result


def _print_sweep(found: dict[str, Any], by: str) -> None:
    table(
        "a sweep, measured on val: fit what you choose, and it is measured on test",
        ("site", "recipe", *_COLUMNS),
        [
            (site, member["name"], *_cells(member))
            for site, sweep in found.items()
            for member in sweep["members"]
        ],
    )
    agreed = [(site, one) for site, sweep in found.items() for one in sweep.get("agreement", [])]
    if by == "stability":
        agreed.sort(key=lambda pair: (pair[0], -pair[1]["latents"], pair[1]["fvu"]))
    if agreed:
        table(
            "directions on which the seeds of a recipe agree, and the mean of their figures on val",
            ("site", "recipe", "directions", "mean cosine", "L0", "FVU"),
            [
                (
                    site,
                    one["name"],
                    one["latents"],
                    f"{one['agreement'] or 0:.2f}",
                    f"{one['l0']:.2f}",
                    f"{one['fvu']:.3f}",
                )
                for site, one in agreed
            ],
        )


def _print_fits(found: dict[str, Any]) -> None:
    from .reference import print_reference

    table(
        "sparse autoencoders (test rows; a reference dictionary: all rows)",
        ("site", *_COLUMNS),
        [(site, *_cells(metrics)) for site, metrics in found.items()],
    )
    for site, metrics in found.items():
        if "reference" in metrics:
            print_reference(site, metrics)
        elif agreed := metrics.get("consensus"):
            say(
                f"  {site}: {agreed['fits']} fits agree on {agreed['latents']} directions (mean cosine "
                f"{agreed['agreement'] or 0:.2f}); the other {metrics['d_sae'] - agreed['latents']} latents are "
                f"residual; agreed on at each k: "
                + ", ".join(f"{k}: {n}" for k, n in agreed["agreed_at_k"].items())
            )
        report = metrics.get("stability", {})
        if "pw_mcc" in report:
            print_halves(site, report)
        elif "stable" in report:
            stable, chance = report["stable"], report["shared"]["control"] or 0
            say(
                f"  {site}: {stable['value']:.0%} of {stable['n']} live latents are found by every "
                f"other seed too (by chance {chance:.0%} of them match one)"
            )


def print_halves(site: str, report: dict[str, Any]) -> None:
    """Print how alike the dictionaries of two halves of the groups are."""

    def shown(name: str) -> str:
        entry = report[name]
        if entry["value"] is None:
            return "–"
        interval = "" if entry["low"] is None else f" [{entry['low']:.2f}, {entry['high']:.2f}]"
        return f"{entry['value']:.2f}{interval}"

    say(
        f"  {site}: two halves of the groups agree with a mean matched cosine of {shown('pw_mcc')} (by chance "
        f"{report['pw_mcc']['control']:.2f}); {shown('share_above_0.9')} of {report['pw_mcc']['n']} pairs are above "
        f".9; rank correlation of activations {shown('rank_correlation')} of {report['rank_correlation']['n']}"
    )


def _cells(metrics: dict[str, Any]) -> tuple[object, ...]:
    fvu, cosine = metrics["held_out"]["fvu"], metrics["held_out"]["cosine"]
    interval = "" if fvu["low"] is None else f" ({fvu['low']:.3f} … {fvu['high']:.3f})"
    return (
        metrics["d_in"],
        metrics["d_sae"],
        metrics["architecture"],
        f"{metrics['l0']:.2f}",
        "–" if metrics["fvu"] is None else f"{metrics['fvu']:.3f}{interval}",
        f"{cosine['value'] or 0:.3f}",
        f"{metrics['dead']:.1%}",
        fvu["n"],
    )
