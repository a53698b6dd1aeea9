"""Errors for a path that does not exist, and for a table in a format that is not read."""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import UserInputError, closest

# A spreadsheet program, or a text editor, has "save as CSV" for these.
_AS_CSV = (".xlsx", ".xls", ".ods", ".tsv", ".tab", ".txt")


def missing(path: Path, what: str = "") -> UserInputError:
    """Return the error for a path that does not exist; `what` comes before it in the message.

    The hint is the nearest name in the same folder, or the first folder above it that is missing too.
    """
    name = f"{what} {path}".lstrip()
    absent = path
    while not absent.parent.exists() and absent.parent != absent:
        absent = absent.parent
    if absent != path:
        return UserInputError(
            f"{name} does not exist", f"there is no {absent} either: check the spelling"
        )
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        names = []
    near = closest(path.name, names)
    if near:
        return UserInputError(f"{name} does not exist", f"did you mean {path.parent / near}?")
    where = "the working folder" if path.parent == Path() else str(path.parent)
    return UserInputError(
        f"{name} does not exist", f"{where} has no such file or folder: check the spelling"
    )


def no_table(path: Path) -> UserInputError:
    """Return the error for a file whose suffix is not that of a table."""
    hint = "save it as .csv" if path.suffix.lower() in _AS_CSV else "use .csv, .parquet or .jsonl"
    return UserInputError(f"{path} is not a table that can be read", hint)
