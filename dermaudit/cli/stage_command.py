"""The command of a stage, generated from its declaration: every option becomes a flag.

typer reads the signature of a function; the signature is built here from the options dataclass.
"""

from __future__ import annotations

import inspect
import shlex
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.run.stages import Flag, Stage, flags_of

_NO_DEFAULT = inspect.Parameter.empty
_RUN_HELP = {
    "run": "folder of the run",
    "newest": "folder of the run (default: the newest)",
    "path": "folder of the run",
}


def command_of(stage: Stage[Any]) -> Callable[..., dict[str, Any]]:
    """Return the function of the command of a stage, with a typer parameter for each option."""

    def command(run: Path | None = None, **values: Any) -> dict[str, Any]:
        for field, flag in flags_of(stage.options):
            value = values[field.name]
            if flag.parse is not None and isinstance(value, str):
                values[field.name] = flag.parse(value)
            elif field.default == ():
                values[field.name] = tuple(value or ())
        result = stage.run(_opened(stage, run), stage.options(**values))
        if run is not None and not values.get("dry_run"):
            _print_next(run)
        return result

    hints = typing.get_type_hints(stage.options)
    parameters = [
        _parameter(field, flag, hints[field.name]) for field, flag in flags_of(stage.options)
    ]
    command.__doc__ = stage.run.__doc__
    parameters.append(_run_parameter(stage))
    signature = inspect.Signature(sorted(parameters, key=lambda p: p.default is not _NO_DEFAULT))
    setattr(command, "__signature__", signature)  # noqa: B010  (no attribute of the function type)
    return command


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
        default=_NO_DEFAULT if must else None,
        annotation=Annotated[Path if must else Path | None, info],
    )


def _parameter(field: Field[Any], flag: Flag, hint: Any) -> inspect.Parameter:
    names = (flag.name,) if flag.name else ()
    text = flag.help + (f": {', '.join(flag.choices)}" if flag.choices else "")
    if flag.positional:
        info = typer.Argument(help=text)
    else:
        info = typer.Option(*names, help=text, min=flag.minimum, max=flag.maximum)
    default = _NO_DEFAULT if field.default is MISSING else field.default
    annotation = _command_line_type(hint, flag)
    if typing.get_origin(annotation) is list and default == ():
        default, annotation = None, annotation | None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None if flag.parse is not None and default == () else default,
        annotation=Annotated[annotation, info],
    )


def _command_line_type(hint: Any, flag: Flag) -> Any:
    """Return the type in which typer parses an option: text that has its own parser, a list for a tuple."""
    if flag.parse is not None:
        return str | None
    return list[typing.get_args(hint)[0]] if typing.get_origin(hint) is tuple else hint
