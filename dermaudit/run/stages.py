"""The registry of stages: what each stage is called, reads and writes, and its options.

A stage is declared in the file that implements it. The command line, `audit`, `--dry-run`, `doctor`,
the explorer and the hints of messages read this registry. The modules below import nothing heavy
before a stage runs, so that the registry is cheap to read.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from dermaudit.options import Options, option

#: In the order in which the stages of a run are made.
STAGE_MODULES = (
    "dermaudit.sae.embed.stage",
    "dermaudit.sae.training.stage",
    "dermaudit.sae.evaluation.stage",
    "dermaudit.concepts.annotation.stage",
    "dermaudit.concepts.naming.stage",
    "dermaudit.concepts.heads",
    "dermaudit.concepts.bottlenecks.stage",
    "dermaudit.concepts.teaching.stage",
    "dermaudit.concepts.suppression.stage",
    "dermaudit.concepts.verdict.stage",
    "dermaudit.dashboards.report.stage",
)


@dataclass(frozen=True)
class Record:
    """One kind of record in `run.json`: what it is made from, and which files it writes.

    `reads` names records: "fit:*" means every one of that kind, "fit:{key}" the one with the same key
    (a site or a concept), and a final "?" one that is read if the run has it. `columns` are patterns
    of columns of images.parquet, `writes` patterns of paths relative to the run.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    columns: tuple[str, ...] = ()

    def key(self, key: str) -> str:
        """Return the key of the record in run.json: "annotate", "fit:visual.pooled"."""
        return f"{self.name}:{key}" if key else self.name


@dataclass(frozen=True, kw_only=True)
class StageOptions(Options):
    """The options that every stage has; subclasses add their own."""

    seed: int | None = option(
        None, "of every random choice (default: the seed of the run)", minimum=0
    )
    force: bool = option(False, "make it again")


OptionsT = TypeVar("OptionsT", bound=StageOptions)


@dataclass(frozen=True)
class Stage(Generic[OptionsT]):
    """A stage: the command that makes it, its options, its records in run.json, and its function.

    `opens` says what the function takes: "run" a run that exists, "newest" the same and by default the
    newest, "path" the path of a run that may not exist yet. `key_flag` is the flag that names the key
    of a record, "" where it is an argument. `in_audit`: whether `audit` makes the stage.
    """

    command: str
    options: type[OptionsT]
    records: tuple[Record, ...]
    run: Callable[[Any, OptionsT], dict[str, Any]]
    opens: Literal["run", "newest", "path"]
    key_flag: str | None
    in_audit: bool

    @property
    def help(self) -> str:
        """The first line of the docstring of the function, as the list of commands shows it."""
        line = (self.run.__doc__ or "").split("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]


_declared: dict[str, Stage[Any]] = {}


def stage(
    command: str,
    options: type[OptionsT],
    *records: Record,
    opens: Literal["run", "newest", "path"] = "run",
    key_flag: str | None = None,
    in_audit: bool = True,
) -> Callable[
    [Callable[[Any, OptionsT], dict[str, Any]]], Callable[[Any, OptionsT], dict[str, Any]]
]:
    """Register the function below as the stage that `dermaudit COMMAND` makes."""

    def register(
        function: Callable[[Any, OptionsT], dict[str, Any]],
    ) -> Callable[[Any, OptionsT], dict[str, Any]]:
        _declared[command] = Stage(command, options, records, function, opens, key_flag, in_audit)
        return function

    return register


@functools.cache
def stages() -> tuple[Stage[Any], ...]:
    """Return every stage, upstream first."""
    for module in STAGE_MODULES:
        importlib.import_module(module)
    place = {module: i for i, module in enumerate(STAGE_MODULES)}
    return tuple(sorted(_declared.values(), key=lambda s: place.get(s.run.__module__, len(place))))


def stage_of(record: str) -> Stage[Any]:
    """Return the stage that makes a record of run.json, e.g. "fit:visual.pooled". KeyError if none does."""
    kind = record.partition(":")[0]
    for one in stages():
        if any(made.name == kind for made in one.records):
            return one
    raise KeyError(record)
