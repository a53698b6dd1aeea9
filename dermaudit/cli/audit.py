"""The commands `audit` and `demo`: every stage of a run, one after the other.

The stages lie in higher layers, so they are called through the command registry.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say
from dermaudit.run.directory import open_run

from .audit_summary import (
    bottleneck_summary,
    concept_summary,
    naming_summary,
    peak_rss_gb,
    print_summary,
    suppression_summary,
)
from .commands import load, load_function

DEMO_IMAGES = 2000
DEMO_SEED = 1000
STAGES = ("embed", "fit", "annotate", "name", "heads", "compare", "recipe make", "report")


@dataclass(frozen=True)
class AuditConfig:
    """What an audit does: `concepts` to suppress (empty: every artifact that is labelled or named),
    `target` the label whose prediction is audited, `where` an SQL condition on the manifest."""

    data: Path
    model: str
    run: Path
    concepts: tuple[str, ...] = ()
    target: str = "mel"
    where: str | None = None
    vocabulary: str = "dermoscopy"
    strict: bool = False
    seed: int = 0
    seeds: str | None = None
    threads: int = 1
    force: bool = False


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
    vocabulary: Annotated[str, typer.Option()] = "dermoscopy",
    strict: Annotated[bool, typer.Option(help="a bad image is fatal")] = False,
    seed: Annotated[int, typer.Option()] = 0,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="of the SAEs, e.g. 0,1,2: also how stable each latent is (default: --seed alone)"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be done")] = False,
) -> dict[str, Any]:
    """The whole chain: embed, fit, annotate, name, heads, compare, suppress each artifact, report."""
    run = run or Path("runs") / (data.stem if data.suffix else data.resolve().name)
    config = AuditConfig(
        data=data,
        model=model,
        run=run,
        concepts=tuple(concept or ()),
        target=target,
        where=where,
        vocabulary=vocabulary,
        strict=strict,
        seed=seed,
        seeds=seeds,
        threads=threads,
        force=force,
    )
    if dry_run:
        return {"run": str(run), "model": model, "stages": list(STAGES)}
    return Audit(config).perform()


def demo(
    run: Annotated[Path, typer.Option("--run", help="folder of the run")] = Path("runs/demo"),
    n: Annotated[int, typer.Option(help="phantoms to render", min=400)] = DEMO_IMAGES,
    model: Annotated[str, typer.Option(help="model name")] = "phantom-vit",
    seed: Annotated[
        int, typer.Option(help="of the phantoms (1000 and up) and of every choice", min=1000)
    ] = DEMO_SEED,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="of the SAEs, e.g. 0,1,2: also how stable each latent is (default: --seed alone)"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(help="torch threads")] = 1,
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
) -> dict[str, Any]:
    """Render phantoms, audit the shipped model on them, suppress each artifact, write the report."""
    data = run.parent / f"{run.name}-data"
    config = AuditConfig(
        data=data, model=model, run=run, seed=seed, seeds=seeds, threads=threads, force=force
    )
    audit = Audit(config)
    if not _is_rendered(data, n, seed):
        bias = Path(__file__).parent / "demo_bias.toml"
        options = {"out": data, "n": n, "seed": seed, "bias_table": bias, "force": True}
        audit.step("phantoms", "data phantom", **options)
    result = audit.perform()
    say(f"\nopen the explorer: dermaudit explore --run {run}")
    return result


def _is_rendered(data: Path, n: int, seed: int) -> bool:
    from dermaudit.files import read_json

    if not (data / "manifest.parquet").is_file() or not (data / "data.json").is_file():
        return False
    known = read_json(data / "data.json")
    return known.get("n_images") == n and known.get("phantom_seed") == seed


class Audit:
    """One audit: it calls the commands of the stages one after the other and measures their time."""

    def __init__(self, config: AuditConfig) -> None:
        self.config = config
        self.seconds: dict[str, float] = {}
        self.started = time.monotonic()

    def step(self, name: str, command: str, **options: Any) -> dict[str, Any]:
        """Call the function of a command, which lies in a higher layer and is loaded by name."""
        say(f"{name} …")
        started = time.monotonic()
        result = load(command)(**options)
        self.seconds[name] = round(time.monotonic() - started, 2)
        return result

    def perform(self) -> dict[str, Any]:
        """Make every stage of the run, print the short table, and return the object of --json."""
        c = self.config
        common: dict[str, Any] = {"run": c.run, "seed": c.seed, "force": c.force}
        model = {"vocabulary": c.vocabulary, "threads": c.threads, **common}
        _require_enough_images(c.data, c.where, c.model)
        embedded = self.step(
            "embed",
            "embed",
            data=c.data,
            model=c.model,
            where=c.where,
            strict=c.strict,
            threads=c.threads,
            **common,
        )
        # One SAE a site unless more are asked for; every figure of it: `dermaudit sae measure`.
        seeds = c.seeds or str(c.seed)
        fitted = self.step("fit", "fit", threads=c.threads, seeds=seeds, metrics=False, **common)
        labels = self.step("annotate", "annotate", **common)["labels"]
        names = self.step("name", "name", **model)
        self.step("heads", "heads", **common)
        compared = self.step("compare", "compare", task=c.target, **model)
        suppressed = {}
        if wanted := list(c.concepts or _artifacts_of(c.run, c.vocabulary)):
            options = {"concept": wanted, "refuse": False, "target": c.target, **model}
            suppressed = self.step("suppress", "recipe make", **options)["suppression"]
        report = self.step("report", "report", run=c.run, force=True)
        self.seconds["total"] = round(time.monotonic() - self.started, 2)
        result = {
            "run": str(c.run),
            "n_images": embedded["n_images"],
            "n_skipped": embedded["n_skipped"],
            "peak_rss_gb": peak_rss_gb(),
            "seconds": self.seconds,
            "sae": {
                site: {k: m[k] for k in ("d_in", "d_sae", "l0", "fvu", "dead")}
                for site, m in fitted["sae"].items()
            },
            "concepts": concept_summary(labels),
            "naming": naming_summary(names),
            "bottleneck": bottleneck_summary(compared, c.target),
            "suppression": {name: suppression_summary(f) for name, f in suppressed.items()},
            "report": str(report.get("report", "")),
        }
        if not labels:
            result["concepts_reason"] = "no labels: not measured"
        print_summary(result)
        return result


def _require_enough_images(data: Path, where: str | None, model: str) -> None:
    """Refuse a data set that is too small for an SAE before its images are embedded; a model that is
    not known is refused first."""
    from dermaudit.data import Manifest
    from dermaudit.towers import resolve

    resolve(model)

    manifest = Manifest.load(data)
    if where:
        manifest = manifest.where(where)
    counts = {name: manifest.splits.count(name) for name in ("train", "val", "test")}
    check = load_function("dermaudit.sae.training.fit:require_enough_images")
    if manifest.n:  # `embed` says which condition left no image
        check(counts, manifest.n)


def _artifacts_of(run: Path, vocabulary: str) -> list[str]:
    """Return the artifacts to suppress. The function lies in a higher layer, so it is loaded by name."""
    opened = open_run(run)
    words = load_function("dermaudit.concepts.inputs:vocabulary_of")(opened, vocabulary)
    return load_function("dermaudit.concepts.inputs:artifacts_of")(opened, words)
