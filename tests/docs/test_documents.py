"""The documents: figures come from the files of results, commands and flags exist."""

from __future__ import annotations

import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from dermaudit.cli.commands import all_commands, function_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMON = {"--json", "--quiet", "--help"}


def script(name: str, *argv: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "docs" / "scripts" / name), *argv]
    return subprocess.run(command, capture_output=True, text=True)


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", ["results.py", "architecture.py"])
def test_generated_pages_are_up_to_date(name):
    done = script(name, "--check")
    assert done.returncode == 0, done.stderr


def test_everything_that_the_python_reference_names_exists():
    names = re.findall(
        r"^::: (\S+)$",
        "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md")),
        flags=re.M,
    )
    assert len(names) > 20
    missing = []
    for name in names:
        try:
            pkgutil.resolve_name(name)
        except (AttributeError, ImportError):
            missing.append(name)
    assert missing == []


def test_a_typed_figure_is_reported(tmp_path):
    for name in ("README.md", "docs/scripts", "docs/results"):
        source, target = ROOT / name, tmp_path / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
    readme = tmp_path / "README.md"
    text = readme.read_text(encoding="utf-8")
    typed = re.sub(r"\| 0\.\d\d → 0\.\d\d ", "| 0.11 → 0.22 ", text, count=1)
    readme.write_text(typed, encoding="utf-8")
    assert readme.read_text(encoding="utf-8") != text
    done = script("results.py", "--check", root=tmp_path)
    assert done.returncode == 1 and "README.md differs" in done.stderr


def command_lines() -> list[tuple[str, str]]:
    """(document, line) of every line of a code block that calls dermaudit."""
    found = []
    for document in DOCUMENTS:
        blocks = re.findall(r"```\w*\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S)
        for line in "\n".join(blocks).splitlines():
            line = line.removeprefix("$ ").split("  #")[0].strip()
            line = re.sub(r"^torchrun .*? -m ", "", line).replace("dermaudit -- ", "dermaudit ")
            if line.startswith("dermaudit "):
                found.append((document.name, line))
    return found


def flags_of(command: str) -> set[str]:
    """The flags of a command, as typer derives them from its function."""
    app = typer.Typer()
    app.command()(function_of(command))
    options = (
        flag for p in typer.main.get_command(app).params for flag in [*p.opts, *p.secondary_opts]
    )
    return set(COMMON) | {flag for flag in options if flag.startswith("-")}


def test_some_commands_are_documented():
    assert len(command_lines()) > 20


@pytest.mark.parametrize(("document", "line"), command_lines())
def test_documented_commands_and_flags_exist(document, line):
    words = shlex.split(line)[1:]
    command = " ".join(words[:2]) if " ".join(words[:2]) in all_commands() else words[0]
    assert command in all_commands(), f"{document}: {line}"
    flags = {word.split("=")[0] for word in words if word.startswith("--") and len(word) > 2}
    assert flags <= flags_of(command), f"{document}: {line}: {sorted(flags - flags_of(command))}"
