"""Run one verb: parse, call, print, exit.

Results go to stdout (`--json`: exactly one object), everything said to people goes to stderr.
`--json` and `--quiet` are taken off the line here, so that every verb has them.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from dermaudit.errors import DermauditError, UserInputError, unknown

from .commands import VERBS, load

SCHEMA_VERSION = 1
_EPILOG = "Every command also takes --json (one object on stdout) and --quiet."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (design §5)."""
    args = list(sys.argv[1:] if argv is None else argv)
    as_json = _take(args, "--json")
    if _take(args, "--quiet"):
        os.environ["DERMAUDIT_QUIET"] = "1"
    from dermaudit.run.directory import COMMAND

    COMMAND.set(tuple(args))
    try:
        result = _run(args)
        if isinstance(result, int):
            # typer turns Ctrl-C into the plain exit code; it is told and printed as any error.
            return _fail(_Interrupted(), as_json) if result == _Interrupted.exit_code else result
        # Under torchrun one process speaks for all.
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
        if hasattr(error, "format_message"):
            return _fail(UserInputError(error.format_message(), "see --help"), as_json)
        if isinstance(error, MemoryError):
            return _fail(UserInputError("not enough memory", "use fewer images at once"), as_json)
        traceback.print_exc()
        return _fail(
            DermauditError(
                f"a fault of ours: {type(error).__name__}: {error}",
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
        _print_help(VERBS)
        return 0
    members = {verb: said for verb, said in VERBS.items() if verb.split()[0] == args[0]}
    if args[0] not in VERBS and members and args[1:] in (["--help"], ["-h"]):
        _print_help(members)
        return 0
    if args[0] in ("--version", "version"):
        from dermaudit import __version__

        print(f"dermaudit {__version__}")
        return 0
    verb, rest = _split_verb(args)
    import typer

    function = load(verb)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(help=function.__doc__, epilog=_EPILOG)(function)
    return typer.main.get_command(app).main(
        rest, prog_name=f"dermaudit {verb}", standalone_mode=False
    )


def _split_verb(args: list[str]) -> tuple[str, list[str]]:
    if len(args) > 1 and f"{args[0]} {args[1]}" in VERBS:
        return f"{args[0]} {args[1]}", args[2:]
    if args[0] in VERBS:
        return args[0], args[1:]
    members = [verb.split()[1] for verb in VERBS if verb.startswith(args[0] + " ")]
    if members and len(args) > 1 and args[1] not in ("--help", "-h"):
        raise unknown(f"command of {args[0]}", args[1], members)
    if members:
        raise UserInputError(
            f"'{args[0]}' needs one of: {', '.join(members)}",
            f"for example: dermaudit {args[0]} {members[0]}",
        )
    raise unknown("command", args[0], VERBS)


def _print_help(verbs: dict[str, tuple[str, str]]) -> None:
    width = max(map(len, verbs))
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in verbs.items()]
    print(
        "Usage: dermaudit COMMAND [OPTIONS]\n\n"
        "Opens dermatology vision-language models and shows what they look at.\n\nCommands:\n"
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
