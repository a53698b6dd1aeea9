"""Options of commands: frozen dataclasses whose fields are the flags of the command line.

A command is a function of one such object. The command line builds the object from the flags
(dermaudit/cli/flags.py); Python code makes it by its constructor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import UserInputError, unknown


@dataclass(frozen=True)
class Flag:
    """How an option is given on the command line."""

    help: str
    name: str | None = None  # e.g. "--set"; None: from the name of the field
    positional: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None  # from the text on the command line to the value


def option(
    default: Any,
    help: str,
    name: str | None = None,
    *,
    positional: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declare an option, as a field of its options dataclass."""
    flag = Flag(help, name, positional, minimum, maximum, tuple(choices), parse)
    return dataclasses.field(default=default, metadata={"flag": flag})


def required(help: str, name: str | None = None, *, positional: bool = False) -> Any:
    """Declare an option without a default."""
    return dataclasses.field(metadata={"flag": Flag(help, name, positional)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a command; subclasses add their own. UserInputError for a value out of range."""

    def __post_init__(self) -> None:
        for field, flag in flags_of(type(self)):
            value = getattr(self, field.name)
            if value is None:
                continue
            shown = flag.name or f"--{field.name.replace('_', '-')}"
            if flag.choices and value not in flag.choices:
                raise unknown(shown, str(value), flag.choices)
            if flag.minimum is not None and value < flag.minimum:
                raise UserInputError(f"{shown} {value:g} is below {flag.minimum:g}")
            if flag.maximum is not None and value > flag.maximum:
                raise UserInputError(f"{shown} {value:g} is above {flag.maximum:g}")


def flags_of(options: type[Options]) -> list[tuple[dataclasses.Field[Any], Flag]]:
    """Return the fields of an options dataclass, each with its flag."""
    return [(field, field.metadata["flag"]) for field in dataclasses.fields(options)]
