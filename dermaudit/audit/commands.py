"""The commands `audit` and `demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say

DEMO_IMAGES = 2000
DEMO_SEED = 1000
_BIAS_TABLE = Path(__file__).parent / "demo_bias.toml"
_SEEDS_HELP = "of the SAEs, e.g. 0,1,2: also how stable each latent is (default: --seed alone)"

Seeds = Annotated[str | None, typer.Option(help=_SEEDS_HELP)]
Threads = Annotated[int, typer.Option(help="torch threads", min=1)]
Force = Annotated[bool, typer.Option(help="make every stage again")]
DryRun = Annotated[bool, typer.Option(help="print the stages, and which of them are done")]


def audit(
    data: Annotated[Path, typer.Argument(help="a data set, a manifest, or a folder of images")],
    model: Annotated[str, typer.Option(help="model name (dermaudit models)")],
    run: Annotated[
        Path | None,
        typer.Option("--run", help="folder of the run (default: runs/<name of the data>)"),
    ] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            "--concept", help="suppress these (default: every artifact that is labelled or named)"
        ),
    ] = None,
    target: Annotated[str, typer.Option(help="the label whose prediction is audited")] = "mel",
    where: Annotated[
        str | None, typer.Option(help="SQL condition on the manifest's columns")
    ] = None,
    vocabulary: Annotated[
        str, typer.Option(help="a bundled vocabulary, or a TOML / JSON file")
    ] = "dermoscopy",
    strict: Annotated[bool, typer.Option(help="a bad image is fatal")] = False,
    seed: Annotated[int, typer.Option(help="of every random choice", min=0)] = 0,
    seeds: Seeds = None,
    threads: Threads = 1,
    force: Force = False,
    dry_run: DryRun = False,
) -> dict[str, Any]:
    """The whole chain: embed, fit, annotate, name, heads, compare, suppress each artifact, report."""
    from .audit import AuditConfig, perform_audit

    config = AuditConfig(
        data=data,
        model=model,
        run=run or Path("runs") / (data.stem if data.suffix else data.resolve().name),
        concepts=tuple(concept or ()),
        target=target,
        where=where,
        vocabulary=vocabulary,
        strict=strict,
        seed=seed,
        seeds=_seeds(seeds),
        threads=threads,
        force=force,
    )
    return _dry_run(config.run, model) if dry_run else perform_audit(config)


def demo(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")] = Path("runs/demo"),
    n: Annotated[int, typer.Option(help="phantoms to render", min=400)] = DEMO_IMAGES,
    model: Annotated[str, typer.Option(help="model name")] = "phantom-vit",
    seed: Annotated[
        int, typer.Option(help="of the phantoms (1000 and up) and of every choice", min=1000)
    ] = DEMO_SEED,
    seeds: Seeds = None,
    threads: Threads = 1,
    force: Force = False,
) -> dict[str, Any]:
    """Render phantoms, audit the shipped model on them, suppress each artifact, write the report."""
    from dermaudit.phantom.commands import phantom

    from .audit import AuditConfig, perform_audit

    data = run.parent / f"{run.name}-data"
    seconds = {}
    if not _is_rendered(data, n, seed):
        say("phantoms …")
        started = time.monotonic()
        phantom(out=data, n=n, seed=seed, bias_table=_BIAS_TABLE, force=True)
        seconds["phantoms"] = round(time.monotonic() - started, 2)
    config = AuditConfig(
        data=data,
        model=model,
        run=run,
        seed=seed,
        seeds=_seeds(seeds),
        threads=threads,
        force=force,
    )
    return perform_audit(config, seconds)


def _seeds(text: str | None) -> tuple[int, ...]:
    from dermaudit.sae.training.sweep import parse_seeds

    return tuple(parse_seeds(text)) if text is not None else ()


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
