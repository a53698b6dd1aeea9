"""The command of a stage: the flags of its options and `--run`; afterwards it prints the next command."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.run.stages import Stage

from .flags import NO_DEFAULT, made, parameters_of, with_signature

_RUN_HELP = {
    "run": "folder of the run",
    "newest": "folder of the run (default: the newest)",
    "path": "folder of the run",
}


def command_of(stage: Stage[Any]) -> Callable[..., dict[str, Any]]:
    """Return the function of the command of a stage, with a typer parameter for each option."""

    def command(run: Path | None = None, **values: Any) -> dict[str, Any]:
        options = made(stage.options, values)
        result = stage.run(_opened(stage, run), options)
        if run is not None and not values.get("dry_run"):
            _print_next(run)
        return result

    parameters = [*parameters_of(stage.options), _run_parameter(stage)]
    return with_signature(command, parameters, stage.run.__doc__)


def _opened(stage: Stage[Any], path: Path | None) -> Any:
    from dermaudit.run.directory import newest_run, open_run

    if stage.opens == "path":
        return path
    return open_run(path or newest_run())


def _print_next(path: Path) -> None:
    """Print the command of the next stage that the run lacks, or how to look at a complete run."""
    from dermaudit.console import say
    from dermaudit.run.directory import open_run

    run = open_run(path)
    missing = [stage for stage in run.missing_stages() if stage.in_audit]
    where = shlex.quote(str(path))
    command = missing[0].command if missing else "explore"
    say(f"\nnext: dermaudit {command} --run {where}")


def _run_parameter(stage: Stage[Any]) -> inspect.Parameter:
    info = typer.Option("--run", help=_RUN_HELP[stage.opens])
    must = stage.opens == "run"
    return inspect.Parameter(
        "run",
        inspect.Parameter.KEYWORD_ONLY,
        default=NO_DEFAULT if must else None,
        annotation=Annotated[Path if must else Path | None, info],
    )
