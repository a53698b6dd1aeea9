"""The commands `audit` and `demo`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.console import say
from dermaudit.options import Options, option
from dermaudit.sae.training.sweep import parse_seeds

from .audit import SEEDS_HELP, AuditConfig, perform_audit

_BIAS_TABLE = Path(__file__).parent / "demo_bias.toml"


@dataclass(frozen=True, kw_only=True)
class DemoOptions(Options):
    """The phantoms of the demo, and the run that audits them."""

    run: Path = option(Path("runs/demo"), "folder of the run", "--run")
    n: int = option(2000, "phantoms to render", minimum=400)
    model: str = option("phantom-vit", "model name")
    seed: int = option(1000, "of the phantoms (1000 and up) and of every choice", minimum=1000)
    seeds: tuple[int, ...] = option((), SEEDS_HELP, parse=lambda text: tuple(parse_seeds(text)))
    threads: int = option(1, "torch threads", minimum=1)
    force: bool = option(False, "make every stage again")


def audit(options: AuditConfig) -> dict[str, Any]:
    """The whole chain: embed, fit, annotate, name, heads, compare, suppress each artifact, verdict, report."""
    return _dry_run(options.folder, options.model) if options.dry_run else perform_audit(options)


def demo(options: DemoOptions) -> dict[str, Any]:
    """Render phantoms, audit the shipped model on them, suppress each artifact, write the report."""
    run = options.run
    data = run.parent / f"{run.name}-data"
    seconds = {}
    if not _is_rendered(data, options.n, options.seed):
        from dermaudit.phantom.commands import PhantomOptions, phantom

        say("phantoms …")
        started = time.monotonic()
        phantom(
            PhantomOptions(
                out=data, n=options.n, seed=options.seed, bias_table=_BIAS_TABLE, force=True
            )
        )
        seconds["phantoms"] = round(time.monotonic() - started, 2)
    config = AuditConfig(
        data=data,
        model=options.model,
        run=run,
        seed=options.seed,
        seeds=options.seeds,
        sae="own",
        threads=options.threads,
        force=options.force,
    )
    return perform_audit(config, seconds)


def _dry_run(run: Path, model: str) -> dict[str, Any]:
    """Print the stages of an audit, what they read and write, and which of them the run has."""
    from dermaudit.console import table
    from dermaudit.run.directory import open_run

    from .audit import audit_stages

    opened = open_run(run) if (run / "run.json").is_file() else None
    table(
        f"an audit with {model} in {run}",
        ("stage", "state", "reads", "writes"),
        [
            (
                stage.command,
                "to do" if opened is None else opened.state_of(stage),
                ", ".join(dict.fromkeys(name for r in stage.records for name in r.reads)),
                ", ".join(name for record in stage.records for name in record.writes),
            )
            for stage in audit_stages()
        ],
    )
    return {"run": str(run), "model": model, "stages": [s.command for s in audit_stages()]}


def _is_rendered(data: Path, n: int, seed: int) -> bool:
    from dermaudit.files import read_json

    if not (data / "manifest.parquet").is_file() or not (data / "data.json").is_file():
        return False
    known = read_json(data / "data.json")
    return known.get("n_images") == n and known.get("phantom_seed") == seed
