"""An audit: every stage of a run, one after the other, each with the options that the audit gives it."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.concepts.bottlenecks.stage import CompareOptions
from dermaudit.concepts.naming.stage import NameOptions
from dermaudit.concepts.suppression.options import RecipeOptions
from dermaudit.concepts.verdict.stage import VerdictOptions
from dermaudit.console import say
from dermaudit.dashboards.report.stage import ReportOptions
from dermaudit.options import Options, option, required
from dermaudit.run.directory import open_run
from dermaudit.run.stages import Stage, StageOptions, stages
from dermaudit.sae.embed.options import EmbedOptions
from dermaudit.sae.training.options import FitOptions
from dermaudit.sae.training.sweep import parse_seeds

from .summary import audit_result, print_summary

SEEDS_HELP = (
    "of single SAEs, e.g. 0, or 0,1,2 and how stable each latent is (default: at the pooled site the consensus of "
    "many fits, elsewhere one SAE)"
)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Options):
    """What an audit does."""

    data: Path = required("a data set, a manifest, or a folder of images", positional=True)
    model: str = required("model name (dermaudit models list)")
    run: Path | None = option(None, "folder of the run (default: runs/<name of the data>)", "--run")
    concept: tuple[str, ...] = option(
        (),
        "suppress these (default: every artifact that is labelled, taught or named)",
        "--concept",
    )
    target: str = option("mel", "the label whose prediction is audited")
    where: str | None = option(None, "SQL condition on the manifest's columns")
    vocabulary: str = option("dermoscopy", "a bundled vocabulary, or a TOML / JSON file")
    strict: bool = option(False, "a bad image is fatal")
    seed: int = option(0, "of every random choice", minimum=0)
    seeds: tuple[int, ...] = option((), SEEDS_HELP, parse=lambda text: tuple(parse_seeds(text)))
    sae: str = option(
        "auto",
        "own: fitted on the images; reference: the dictionary of a bundled model, with its names and recipes; auto: "
        "the reference where fewer than 1024 train images lie near its own",
        choices=("auto", "own", "reference"),
    )
    threads: int = option(1, "torch threads", minimum=1)
    force: bool = option(False, "make every stage again")
    dry_run: bool = option(False, "print the stages, and which of them are done")

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        name = self.data.stem if self.data.suffix else self.data.resolve().name
        return self.run or Path("runs") / name

    def stage_options(self) -> dict[str, StageOptions]:
        """Return the options of every stage by its command; a stage that is not here has none."""
        seed: dict[str, Any] = {"seed": self.seed, "force": self.force}
        threads: dict[str, Any] = {**seed, "threads": self.threads}
        words: dict[str, Any] = {**threads, "vocabulary": self.vocabulary}
        return {
            "embed": EmbedOptions(
                data=self.data, model=self.model, where=self.where, strict=self.strict, **threads
            ),
            # Its figures, and how well two halves of the groups agree: `dermaudit fit --consensus`, `sae measure`.
            "fit": FitOptions(
                seeds=self.seeds,
                consensus=not self.seeds and self.sae != "reference",
                consensus_at="pooled",
                halves="none",
                sae=self.sae,
                metrics=False,
                **threads,
            ),
            "name": NameOptions(**words),
            "compare": CompareOptions(task=self.target, **words),
            "recipe make": RecipeOptions(
                concept=self.concept, target=self.target, refuse=False, **words
            ),
            "verdict": VerdictOptions(target=self.target, **threads),
            "report": ReportOptions(force=True),
        }


def audit_stages() -> list[Stage[Any]]:
    """Return the stages of an audit, in their order."""
    return [stage for stage in stages() if stage.in_audit]


def perform_audit(config: AuditConfig, seconds: dict[str, float] | None = None) -> dict[str, Any]:
    """Make every stage of the run, print the summary, and return the object of `--json`.

    `seconds`: what was done before, by name; its total is the total of the audit.
    """
    seconds = dict(seconds or {})
    require_enough_images(config)
    options = config.stage_options()
    default = StageOptions(seed=config.seed, force=config.force)
    results: dict[str, dict[str, Any]] = {}
    for stage in audit_stages():
        title = "suppress" if stage.command == "recipe make" else stage.command
        say(f"{title} …")
        started = time.monotonic()
        target = config.folder if stage.opens == "path" else open_run(config.folder)
        results[stage.command] = stage.run(target, options.get(stage.command, default))
        seconds[title] = round(time.monotonic() - started, 2)
    seconds["total"] = round(sum(seconds.values()), 2)
    result = audit_result(config.folder, config.target, results, seconds)
    print_summary(result)
    say(f"\nnext: dermaudit explore --run {shlex.quote(str(config.folder))}")
    return result


def require_enough_images(config: AuditConfig) -> None:
    """Refuse a data set that is too small for an SAE before its images are embedded, unless the model has a reference
    dictionary; an unknown model is refused first.
    """
    from dermaudit.data import Manifest
    from dermaudit.sae.training.site_rows import require_enough_images
    from dermaudit.towers import resolve
    from dermaudit.towers.loading.reference import ReferenceFiles

    resolve(config.model)
    if config.sae != "own" and ReferenceFiles.of_model(config.model) is not None:
        return
    manifest = Manifest.load(config.data)
    if config.where:
        manifest = manifest.where(config.where)
    counts = {name: manifest.splits.count(name) for name in ("train", "val", "test")}
    if manifest.n:  # `embed` names the condition that left no image
        require_enough_images(counts, manifest.n)
