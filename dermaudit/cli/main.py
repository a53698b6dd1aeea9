"""Run one command: parse, call, print, exit.

Results go to stdout (`--json`: exactly one object), messages for people go to stderr.
`--json` and `--quiet` are removed from the arguments here, so that every command has them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from dermaudit.errors import DermauditError, UserInputError, unknown

from .commands import function_of, named_commands, sections

SCHEMA_VERSION = 1
_EPILOG = "Every command also takes --json (one object on stdout) and --quiet."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (design §5)."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = _take(args, "--json")
    if _take(args, "--quiet"):
        os.environ["DERMAUDIT_QUIET"] = "1"
    from dermaudit.run.records import COMMAND

    COMMAND.set(tuple(args))
    try:
        result = _run(args)
        if isinstance(result, int):
            # typer turns Ctrl-C into an exit code; it is printed like any other error.
            return _fail(_Interrupted(), as_json) if result == _Interrupted.exit_code else result
        # Under torchrun only the first process prints the result.
        if as_json and os.environ.get("RANK", "0") == "0":
            print(json.dumps({"schema_version": SCHEMA_VERSION, **result}, allow_nan=False))
        return 0
    except DermauditError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        return _fail(_Interrupted(), as_json)
    except BrokenPipeError:
        return 0
    except Exception as error:
        # typer's usage errors carry their own message; its base class is not a public name.
        if (usage := getattr(error, "format_message", None)) is not None:
            return _fail(UserInputError(usage(), "see --help"), as_json)
        if isinstance(error, MemoryError):
            return _fail(UserInputError("not enough memory", "use fewer images at once"), as_json)
        traceback.print_exc()
        return _fail(
            DermauditError(
                f"internal error: {type(error).__name__}: {error}",
                "please report the lines above with the output of `dermaudit doctor`",
            ),
            as_json,
        )


class _Interrupted(DermauditError):
    exit_code = 130
    code = "interrupted"

    def __init__(self) -> None:
        super().__init__("interrupted: what was finished is kept")


def _take(args: list[str], flag: str) -> bool:
    found = flag in args
    while flag in args:
        args.remove(flag)
    return found


def _run(args: list[str]) -> dict[str, Any] | int:
    if not args or args[0] in ("--help", "-h", "help"):
        _print_help(sections())
        return 0
    if args[0] in ("--version", "version"):
        from dermaudit import __version__

        print(f"dermaudit {__version__}")
        return 0
    commands = named_commands(args)
    group = {name: text for name, text in commands.items() if name.startswith(args[0] + " ")}
    if args[0] not in commands and group and args[1:] in (["--help"], ["-h"]):
        _print_help({"": group})
        return 0
    command, rest = _split(args, commands, group)
    import typer

    function = function_of(command)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=function.__doc__, epilog=_EPILOG)(function)
    return typer.main.get_command(app).main(
        rest, prog_name=f"dermaudit {command}", standalone_mode=False
    )


def _split(
    args: list[str], commands: dict[str, str], group: dict[str, str]
) -> tuple[str, list[str]]:
    """Return the command that the arguments start with, of one word or two, and the other arguments."""
    if len(args) > 1 and f"{args[0]} {args[1]}" in commands:
        return f"{args[0]} {args[1]}", args[2:]
    if args[0] in commands:
        return args[0], args[1:]
    members = [name.split()[1] for name in group]
    if len(args) == 1 and "list" in members:
        return f"{args[0]} list", []
    if members and len(args) > 1 and args[1] not in ("--help", "-h"):
        raise unknown(f"command of {args[0]}", args[1], members)
    if members:
        raise UserInputError(
            f"'{args[0]}' needs one of: {', '.join(members)}",
            f"for example: dermaudit {args[0]} {members[0]}",
        )
    raise unknown("command", args[0], commands)


def _print_help(shown: dict[str, dict[str, str]]) -> None:
    width = max(len(command) for section in shown.values() for command in section)
    lines = []
    for title, section in shown.items():
        lines += ["", f"{title or 'Commands'}:"]
        lines += [f"  {command:<{width}}  {text}" for command, text in section.items()]
    print(
        "Usage: dermaudit COMMAND [OPTIONS]\n\n"
        "Opens dermatology vision-language models and shows what they look at.\n"
        + "\n".join(lines)
        + f"\n\n{_EPILOG}\n`dermaudit COMMAND --help` says more. Research use, not a medical device."
    )


def _fail(error: DermauditError, as_json: bool) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    if as_json:
        print(json.dumps({"schema_version": SCHEMA_VERSION, "error": error.as_json()}))
    return error.exit_code
