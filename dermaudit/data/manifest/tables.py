"""Tables from files: CSV, Parquet and JSONL as pyarrow, with a clear sentence when they fail.

Names and ids stay text ("0012" is not 12); truth columns are left as they are written, for
`validate` to check cell by cell. Rows count from 0 everywhere in the toolkit; for text files the
messages name the line, as an editor shows it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from dermaudit.errors import UserInputError

from .missing_path import missing, no_table

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
TABLE_SUFFIXES = (".parquet", ".csv", ".jsonl")
TRUTH_PREFIXES = ("concept:", "artifact:")
SHARDS_FILE = "shards.json"  # describes a folder of webdataset shards
INDEX_FILE = "index.parquet"
UNFINISHED_SHARDS = "unfinished-shards.json"
UNFINISHED = "unfinished.json"  # what a stopped conversion leaves in its folder
#: columns with one plain value per image; a list or an object in them is an error.
PLAIN_COLUMNS = ("image", "image_id", "label", "group", "split")
NESTED_HINT = "write one value per image; for several findings use columns such as concept:scale"
_TEXT = {
    *PLAIN_COLUMNS, "caption", "ontology", "skin_tone", "ontology_caption", "concept_caption",
    "truncated_caption", "lesion_id", "patient_id", "group_id", "licence", "license", "sha256",
}  # fmt: skip
_BLANK = ["", "NA", "N/A", "NaN", "nan", "NULL", "null"]


@dataclass(frozen=True)
class SkippedRow:
    """A row of the source that cannot be used and is in no table.

    `reason` is the end of a sentence that begins with the file and the line.
    """

    kind: str
    reason: str
    line: int | None = None
    image: str | None = None
    column: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class RawTable:
    """A table as a layout read it. `image` is a path below `root`; `file` is what messages name.

    `first_line` is the line of row 0 in a text file with one line per row, else None; `lines` are those of
    every row where they do not follow each other. `skipped` are further rows of the source.
    """

    table: pa.Table
    root: Path
    file: Path
    layout: str
    first_line: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    lines: Sequence[int] | None = None
    skipped: tuple[SkippedRow, ...] = ()

    def at(self, row: int) -> str:
        """Return the name of a row in messages: `line 4` of a text file, otherwise `row 2`."""
        line = self.line(row)
        return f"row {row}" if line is None else f"line {line}"

    def place(self, row: int, image: str | None) -> str:
        """Return the begin of a message about a row: the table and the row, or the file of a folder."""
        if self.layout == "folder":
            return f"{self.root / (image or '')}"
        return f"{self.file}, {self.at(row)}" + (f": {image}" if image else "")

    def describe(self, skipped: SkippedRow) -> str:
        """Return the whole sentence about a row that cannot be used."""
        line = "" if skipped.line is None else f", line {skipped.line}"
        image = f": {skipped.image}" if skipped.image else ""
        return f"{self.file}{line}{image}: {skipped.reason}"

    def remark(self, sentence: str) -> None:
        """Add something that users should know about how the table was read."""
        self.notes.setdefault("remarks", []).append(sentence)

    @property
    def remarks(self) -> list[str]:
        """What users should know about how the table was read."""
        return self.notes.get("remarks", [])

    def line(self, row: int) -> int | None:
        """Return the line of a row in a text file, None without one."""
        if self.lines is not None:
            return self.lines[row]
        return None if self.first_line is None else row + self.first_line


def is_text_column(name: str) -> bool:
    """Return whether a column is read as text whatever it contains."""
    return name in _TEXT or name.startswith(("subcaption_", *TRUTH_PREFIXES))


def read_table(path: Path) -> tuple[pa.Table, int | None]:
    """Read a CSV, Parquet or JSONL file: (table, line of row 0 or None).

    Errors: UserInputError for a missing, empty, unreadable or unparsable file.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise no_table(path)
    if not path.is_file():
        raise missing(path)
    if path.stat().st_size == 0:
        raise UserInputError(f"{path} is empty", "write a table with an `image` column")
    try:
        table, first_line = reader(path)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserInputError(
            f"{path} cannot be read as {path.suffix[1:].upper()}: {text}",
            "save it again as UTF-8 text with one header line"
            if path.suffix.lower() != ".parquet"
            else "write it again; it may be cut off",
        ) from error
    names = table.column_names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserInputError(f"{path} has two columns called '{twice[0]}'", "rename one of them")
    return table, first_line


def _read_parquet(path: Path) -> tuple[pa.Table, None]:
    # ParquetFile, not read_table: it would read `split=train` in a folder name as a column.
    return pq.ParquetFile(path).read(), None


def _read_csv(path: Path) -> tuple[pa.Table, int | None]:
    with path.open(encoding="utf-8-sig", newline=None) as handle:
        header = handle.readline()
        n_lines = 1 + sum(1 for _ in handle)
    # Excel writes semicolons in half of Europe.
    delimiter = max(",;\t", key=header.count)
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    names = [cell.strip().strip('"') for cell in header.rstrip("\n").split(delimiter)]
    convert = pa_csv.ConvertOptions(
        column_types={name: pa.string() for name in names if is_text_column(name)},
        null_values=_BLANK,
        strings_can_be_null=True,
        quoted_strings_can_be_null=True,
    )
    try:
        table = pa_csv.read_csv(path, parse_options=parse, convert_options=convert)
    except pa.ArrowInvalid as error:
        raise (_ragged(path, delimiter) or error) from error
    table = table.rename_columns([name.strip() for name in table.column_names])
    return table, 2 if n_lines == table.num_rows + 1 else None


def _ragged(path: Path, delimiter: str) -> UserInputError | None:
    """Return the error for the first row with more or fewer fields than the header, None if all agree.

    pyarrow reports neither its line nor the numbers.
    """
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        reader = csv.reader(handle, delimiter=delimiter)
        header, line = next(reader, []), 2
        try:
            for record in reader:
                if record and len(record) != len(header):
                    return UserInputError(
                        f"{path}, line {line}: the row has {len(record)} fields, the header {len(header)}",
                        'put a field with commas or line ends in quotes: "red, scaly"',
                    )
                line = reader.line_num + 1
        except csv.Error:
            return None
    return None


def _read_jsonl(path: Path) -> tuple[pa.Table, int | None]:
    rows: list[dict[str, Any]] = []
    n_lines = 0
    with path.open(encoding="utf-8-sig") as handle:
        for n_lines, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserInputError(
                    f"{path}, line {n_lines}: not JSON ({error.msg} at character {error.pos + 1})",
                    "write one JSON object a line",
                ) from error
            if not isinstance(row, dict):
                raise UserInputError(
                    f"{path}, line {n_lines}: a {type(row).__name__}, not an object",
                    'write one JSON object a line, such as {"image": "a.jpg"}',
                )
            nested = next((n for n in PLAIN_COLUMNS if isinstance(row.get(n), dict | list)), None)
            if nested:
                raise UserInputError(
                    f"{path}, line {n_lines}: column '{nested}' holds {json.dumps(row[nested])}, not "
                    "one value",
                    NESTED_HINT,
                )
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = {name: _column(name, [row.get(name) for row in rows]) for name in names}
    return pa.table(columns), 1 if n_lines == len(rows) else None


def _column(name: str, values: list[Any]) -> pa.Array:
    if is_text_column(name):
        return pa.array([_as_text(value) for value in values], pa.string())
    try:
        return pa.array(values)
    except pa.ArrowException:
        # Mixed types are kept, as text.
        return pa.array([_as_text(value) for value in values], pa.string())


def _as_text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)
