"""From an options dataclass to flags and back: typer reads the signature of a function, which is built here."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field
from typing import Annotated, Any

import typer

from dermaudit.options import Flag, Options, flags_of

NO_DEFAULT = inspect.Parameter.empty


def command_of_options(function: Callable[[Any], dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return the command of a function of one options object, with a parameter for each of its fields.

    A function with other parameters has them annotated for typer itself, and is returned as it is.
    """
    hint = typing.get_type_hints(function).get("options")
    if not (isinstance(hint, type) and issubclass(hint, Options)):
        return function
    options = hint

    def command(**values: Any) -> dict[str, Any]:
        return function(made(options, values))

    return with_signature(command, parameters_of(options), function.__doc__)


def with_signature(
    command: Callable[..., dict[str, Any]], parameters: list[inspect.Parameter], doc: str | None
) -> Callable[..., dict[str, Any]]:
    """Give `command` a docstring and a signature, parameters without a default first."""
    command.__doc__ = doc
    signature = inspect.Signature(sorted(parameters, key=lambda p: p.default is not NO_DEFAULT))
    setattr(command, "__signature__", signature)  # noqa: B010  (no attribute of the function type)
    return command


def made(options: type[Options], values: dict[str, Any]) -> Any:
    """Return the options object of the values that typer parsed. Errors: those of the options."""
    for field, flag in flags_of(options):
        value = values[field.name]
        if flag.parse is not None and isinstance(value, str):
            values[field.name] = flag.parse(value)
        elif isinstance(value, list) or field.default == ():
            values[field.name] = tuple(value or ())
    return options(**values)


def parameters_of(options: type[Options]) -> list[inspect.Parameter]:
    """Return a typer parameter for each field of an options dataclass."""
    hints = typing.get_type_hints(options)
    return [_parameter(field, flag, hints[field.name]) for field, flag in flags_of(options)]


def _parameter(field: Field[Any], flag: Flag, hint: Any) -> inspect.Parameter:
    names = (flag.name,) if flag.name else ()
    text = flag.help + (f": {', '.join(flag.choices)}" if flag.choices else "")
    if flag.positional:
        info = typer.Argument(help=text)
    else:
        info = typer.Option(*names, help=text, min=flag.minimum, max=flag.maximum)
    default = NO_DEFAULT if field.default is MISSING else field.default
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
