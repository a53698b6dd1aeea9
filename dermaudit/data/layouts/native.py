"""The native layout: manifest.parquet, .csv or .jsonl with image paths relative to it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.image_paths import local_image
from ..manifest.tables import TABLE_SUFFIXES, RawTable, read_table
from ..manifest.validate import near_columns, put
from . import dermoscopy
from .registry import Layout


def _file(path: Path) -> Path | None:
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return path
    # Parquet first: it is what `data convert` writes; a CSV in the same folder is for people.
    candidates = (path / f"manifest{suffix}" for suffix in TABLE_SUFFIXES)
    return next((file for file in candidates if file.is_file()), None)


def matches(path: Path) -> bool:
    """Return whether `path` is in this layout."""
    file = _file(path)
    return file is not None and not (file == path and dermoscopy.matches(path))


def read(path: Path) -> RawTable:
    """Read the table. Errors: UserInputError when there is no such table or it cannot be parsed."""
    file = _file(path)
    if file is None:
        raise UserInputError(
            f"{path} holds no manifest.parquet, manifest.csv or manifest.jsonl",
            "write one with an `image` column, or use --layout folder",
        )
    table, first_line = read_table(file)
    if "image" in table.column_names and table.schema.field("image").type == pa.string():
        images = [
            None if image is None else local_image(file.parent, image.strip())
            for image in table.column("image").to_pylist()
        ]
        table = put(table, "image", pa.array(images, pa.string()))
    raw = RawTable(table, file.parent, file, "native", first_line)
    for wanted, name in near_columns(table.column_names).items():
        raw.remark(
            f"{file} has no column '{wanted}'; if '{name}' is meant, rename it to '{wanted}'"
        )
    return raw


LAYOUT = Layout("native", "image", matches, read, order=0)
