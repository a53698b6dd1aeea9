"""Our own layout: manifest.parquet, .csv or .jsonl with image paths relative to it."""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import UserInputError

from ..manifest.tables import TABLE_SUFFIXES, RawTable, read_table
from . import dermoscopy
from .registry import Layout


def _file(path: Path) -> Path | None:
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return path
    # Parquet first: it is what `data convert` writes; a CSV beside it is for people.
    candidates = (path / f"manifest{suffix}" for suffix in TABLE_SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def matches(path: Path) -> bool:
    file = _file(path)
    return file is not None and not (file == path and dermoscopy.matches(path))


def read(path: Path) -> RawTable:
    """Errors: UserInputError when there is no such table or it cannot be parsed."""
    file = _file(path)
    if file is None:
        raise UserInputError(
            f"{path} holds no manifest.parquet, manifest.csv or manifest.jsonl",
            "write one with an `image` column, or use --layout folder",
        )
    table, first_line = read_table(file)
    return RawTable(table, file.parent, file, "native", first_line)


LAYOUT = Layout("native", "image", matches, read, order=0)
