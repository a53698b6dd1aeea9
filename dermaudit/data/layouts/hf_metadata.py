"""Hugging Face image folders: metadata.jsonl or metadata.csv with `file_name` and a caption."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.blank_cells import known
from ..manifest.tables import RawTable, read_table
from ..manifest.validate import texts
from ..splits import SPLITS
from .csv_rows import columns_hint, header_of, raw_table, read_rows
from .registry import Layout

NAME = "hf-metadata"
NEEDS = "file_name, and a caption or text"
_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_CAPTIONS = ("caption", "text", "caption_zh_polish_en", "description")


def _names(path: Path) -> set[str]:
    if path.suffix.lower() == ".csv":
        return set(header_of(path))
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return set()
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        try:
            row = json.loads(handle.readline(1 << 20))
        except (json.JSONDecodeError, RecursionError):
            return set()
    return set(row) if isinstance(row, dict) else set()


def matches(path: Path) -> bool:
    """Return whether `path` is in this layout."""
    names = _names(path)
    return "file_name" in names and "image" not in names


def read(path: Path) -> RawTable:
    """Read the table: `file_name` becomes the image, `text` the caption if there is no `caption`.

    Errors: UserInputError for a file that is missing or unreadable, and for one without `file_name`.
    """
    file = path
    if path.is_dir():
        file = next((path / name for name in _FILES if (path / name).is_file()), None)
        if file is None:
            raise UserInputError(
                f"{path} holds no metadata.jsonl and no metadata.csv",
                "name the folder that holds it (of one split: train/)",
            )
    if file.suffix.lower() == ".csv":
        rows = read_rows(file)
        rows.need(["file_name"], NAME)
        captions = next((name for name in _CAPTIONS if name in rows.columns), "")
        columns = {"image": rows.get("file_name")}
        if captions:
            columns["caption"] = [known(cell) for cell in rows.get(captions)]
        used = {"file_name", captions, *_foreign_split(rows.get("split"))}
        return raw_table(rows, NAME, columns, used, {}, file.parent)
    table, first_line = read_table(file)
    if "file_name" not in table.column_names:
        raise UserInputError(
            f"{file} has no column 'file_name', which the layout '{NAME}' needs",
            columns_hint(table.column_names),
        )
    captions = next((name for name in _CAPTIONS if name in table.column_names), "")
    columns = {"image": texts(table, "file_name")}
    if captions:
        columns["caption"] = [known(cell) for cell in texts(table, captions)]
    made = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    left_out = {"file_name", "image", captions, *_foreign_split(texts(table, "split"))}
    for name in table.column_names:
        if name not in left_out:
            made = made.append_column(name, table.column(name))
    return RawTable(made, file.parent, file, NAME, first_line)


def _foreign_split(splits: list[str | None]) -> set[str]:
    """Return {"split"} if the column has other values than ours; the split is then made by group."""
    return set() if {split for split in splits if split} <= set(SPLITS) else {"split"}


LAYOUT = Layout(NAME, NEEDS, matches, read, order=50)
