"""Every command line that a message of the package contains can be pasted: command, flags, arguments."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import dermaudit
from dermaudit.cli.commands import all_commands, function_of

PACKAGE = Path(dermaudit.__file__).parent
COMMON = {"--json", "--quiet", "--help"}
GROUPS = {"data", "bench", "sae", "recipe", "vocabulary"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string that is part of a call; a formatted value becomes `x`."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        for node in [*call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "x" for p in node.values)
                yield node.lineno, "".join(map(str, parts))


def hints() -> list[tuple[str, str]]:
    """Every `dermaudit …` of a message: (file and line, command line up to the end of its sentence)."""
    found = []
    folders = [PACKAGE, *(p for p in PACKAGE.iterdir() if p.is_symlink())]
    for path in sorted(p for folder in folders for p in folder.rglob("*.py")):
        if "checkpoints" in path.parts:
            continue
        for line, text in texts(path):
            for match in re.finditer(r"dermaudit ((?:[a-z]+)(?: [^`;,()\n…]*)?)", text):
                words = match[1].split()
                if words[0] in all_commands() or words[0] in GROUPS:
                    found.append((f"{path.relative_to(PACKAGE)}:{line}", match[1].strip()))
    return sorted(set(found))


@cache
def command(name: str) -> typer.core.TyperCommand:
    app = typer.Typer()
    app.command()(function_of(name))
    return typer.main.get_command(app)


HINTS = hints()


def test_messages_have_hints():
    assert len(HINTS) > 30


@pytest.mark.parametrize(
    ("place", "line"), HINTS, ids=[f"{p} {i}" for i, (p, _) in enumerate(HINTS)]
)
def test_hint_is_a_command_with_flags_that_exist(place: str, line: str):
    words = shlex.split(line)
    name = " ".join(words[:2]) if " ".join(words[:2]) in all_commands() else words[0]
    assert name in all_commands(), f"{place}: {line}"
    parameters = command(name).params
    flags = {flag for p in parameters for flag in [*p.opts, *p.secondary_opts]} | COMMON
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used <= flags, f"{place}: {line}: {sorted(used - flags)}"
    rest = words[len(name.split()) :]
    if not rest:
        return  # the name of a command in a sentence
    for parameter in parameters:
        if parameter.required and parameter.param_type_name == "option":
            given = set(parameter.opts) & used
            assert given, f"{place}: {line}: {parameter.opts[0]} is required"
