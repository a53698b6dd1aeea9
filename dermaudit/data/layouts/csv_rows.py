"""CSV files read as text, row by row: each row knows its line, and one that cannot be read is skipped.

Captions hold commas, quotes, line ends and other encodings. A row that cannot be read is skipped with
a reason; a quote that never ends is an error, because the rest of the file cannot be trusted.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.missing_path import missing
from ..manifest.tables import RawTable, SkippedRow, is_text_column

_BLANK = {"", "NA", "N/A", "NaN", "nan", "NULL", "null"}
_FIELD_LIMIT = 1 << 24  # characters in a cell; the default of 131,072 is too short for a forum post
_PROBED = 200  # rows that are used to find the folder of the images
_DROPPED = 12  # leading folders of an absolute path that may be dropped
_IMAGE_FOLDERS = ("", "images", "final_images", "imgs", "img")
Column = list[str | None]


@dataclass(frozen=True)
class CsvRows:
    """A table as text: `columns` {name: n stripped cells, None where blank}, `lines` (n,) of its rows."""

    file: Path
    columns: dict[str, Column]
    lines: list[int]
    skipped: list[SkippedRow]

    @property
    def n(self) -> int:
        """The number of rows."""
        return len(self.lines)

    def get(self, name: str) -> Column:
        """Return the cells of a column, all None if it is absent."""
        return self.columns.get(name) or [None] * self.n

    def skip(
        self, row: int, kind: str, reason: str, column: str, hint: str, image: str | None = None
    ) -> SkippedRow:
        """Return the record of a row that cannot be used."""
        return SkippedRow(kind, reason, self.lines[row], image, column, hint)

    def need(self, names: Iterable[str], layout: str) -> None:
        """Raise UserInputError for all columns that do not exist, each once."""
        absent = [name for name in dict.fromkeys(names) if name not in self.columns]
        if absent:
            raise UserInputError(
                f"{self.file} has no column{'s' if absent[1:] else ''} "
                + ", ".join(f"'{name}'" for name in absent)
                + f", which the layout '{layout}' needs",
                columns_hint(self.columns),
            )


def columns_hint(names: Iterable[str]) -> str:
    """Return the hint for a missing column: lists the columns that exist."""
    listed = ", ".join(list(names)[:12]) or "none"
    return f"its columns: {listed}; `dermaudit data convert --help` lists what each layout needs"


def header_of(path: Path) -> list[str]:
    """Return the names in the first line of a CSV, [] if there is no such file or line."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        return []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        line = handle.readline(1 << 16)
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)), [])]
    except csv.Error:
        return []


def one_file(path: Path, is_it: Callable[[Path], bool], layout: str, usual: str) -> Path:
    """Return `path` itself, or the only CSV in that folder for which `is_it(file)` holds.

    Errors: UserInputError when there is none, or more than one.
    """
    if not path.is_dir():
        return path
    found = sorted(file for file in files_of(path) if is_it(file))
    if len(found) == 1:
        return found[0]
    if found:
        raise UserInputError(
            f"{path} holds {len(found)} tables in the layout '{layout}': "
            + ", ".join(file.name for file in found[:4]),
            f"name the one to read: {found[0]}",
        )
    raise UserInputError(f"{path} holds no table in the layout '{layout}'", f"usual name: {usual}")


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and of its subfolder `meta`, where some sets keep their tables."""
    for place in (folder, folder / "meta"):
        if place.is_dir():
            yield from (file for file in sorted(place.iterdir()) if file.is_file())


def read_rows(path: Path) -> CsvRows:
    """Read a CSV as text.

    Errors: UserInputError for a missing or empty file, UTF-16 text, a header that names a column
    twice, and a quote that is never closed.
    """
    if not path.is_file():
        raise missing(path)
    with path.open("rb") as handle:
        if handle.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise UserInputError(f"{path} is UTF-16 text", "save it again as UTF-8")
    csv.field_size_limit(_FIELD_LIMIT)
    # Bytes that are not UTF-8 become lone surrogates, and their row is skipped.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
        delimiter = _delimiter(handle.readline())
        handle.seek(0)
        reader = csv.reader(handle, delimiter=delimiter, strict=True)
        return _rows(path, reader)


def raw_table(
    rows: CsvRows,
    layout: str,
    columns: dict[str, Column],
    used: Iterable[str],
    bad: dict[int, SkippedRow],
    root: Path | None = None,
    left_out: Container[int] = (),
) -> RawTable:
    """Return a table of the native `columns`, then the columns of the source that are not in `used`.

    Rows in `bad` are skipped; rows in `left_out` have been merged into other rows.
    """
    keep = [row for row in range(rows.n) if row not in bad and row not in left_out]
    if root is None:
        root, columns["image"] = locate_images(rows.file, columns["image"])
    left = {name: cells for name, cells in rows.columns.items() if name not in set(used)}
    table = pa.table(
        {
            name: _array(name, [cells[row] for row in keep], text=name in columns and name != "age")
            for name, cells in {**left, **columns}.items()
        }
    )
    order = [*columns, *(name for name in left if name not in columns)]
    skipped = sorted([*rows.skipped, *bad.values()], key=lambda one: one.line or 0)
    lines = [rows.lines[row] for row in keep]
    return RawTable(
        table.select(order), root, rows.file, layout, lines=lines, skipped=tuple(skipped)
    )


def locate_images(file: Path, images: Column) -> tuple[Path, Column]:
    """Return the folder in which most images of the first rows exist, and the paths below it.

    Absolute paths of another machine (/data/derm/edu/a.png) lose their leading folders (edu/a.png);
    paths stay as they are if no image is found.
    """
    probed = [image for image in images if image and "\0" not in image][:_PROBED]
    best = (0, 0, file.parent)
    for folder in (file.parent / name for name in _IMAGE_FOLDERS):
        foreign = any(_is_absolute(image) for image in probed)
        for dropped in range(_DROPPED if foreign else 1):
            short = [_drop(image, dropped) for image in probed]
            hits = sum(bool(image) and (folder / image).is_file() for image in short)
            if hits > best[0]:
                best = (hits, dropped, folder)
    hits, dropped, folder = best
    if not hits:
        return folder, images
    return folder, [None if image is None else _drop(image, dropped) or image for image in images]


def _is_absolute(image: str) -> bool:
    return PurePosixPath(image).is_absolute() or PureWindowsPath(image).is_absolute()


def _drop(image: str, n: int) -> str:
    """Return an absolute path without its root and first n folders; a relative path as it is."""
    if not _is_absolute(image):
        return image
    pure = PurePosixPath(image) if image.startswith("/") else PureWindowsPath(image)
    return "/".join(pure.parts[1 + n :])


def _rows(path: Path, reader: Any) -> CsvRows:
    names: list[str] | None = None
    table: list[Column] = []
    lines: list[int] = []
    skipped: list[SkippedRow] = []
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserInputError(
                    f"{path}, line {line}: a quote is opened here and never closed",
                    "close it, or write a quote inside a cell as two",
                ) from error
            skipped.append(
                SkippedRow(
                    "bad_row",
                    f"a quote is where none may be ({error})",
                    line,
                    hint="write a quote inside a cell as two",
                )
            )
            continue
        if not record:
            continue
        if names is None:
            names = _header(path, record)
            table = [[] for _ in names]
            continue
        problem = _problem(names, record, line)
        if problem:
            skipped.append(problem)
            continue
        lines.append(line)
        for cells, cell in zip(table, record, strict=True):
            cell = cell.strip()
            cells.append(None if cell in _BLANK else cell)
    if names is None:
        raise UserInputError(f"{path} is empty", "write a header line and one row an image")
    return CsvRows(path, dict(zip(names, table, strict=True)), lines, skipped)


def _header(path: Path, record: list[str]) -> list[str]:
    names = [name.strip() for name in record]
    # pandas writes its index without a name.
    names = [name or f"unnamed_{i}" for i, name in enumerate(names)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UserInputError(f"{path} has two columns called '{twice}'", "rename one of them")
    return names


def _problem(names: list[str], record: list[str], line: int) -> SkippedRow | None:
    if len(record) != len(names):
        return SkippedRow(
            "bad_row",
            f"{len(record)} cells, but the header names {len(names)} columns",
            line,
            hint="put cells with commas or line ends in quotes",
        )
    for name, cell in zip(names, record, strict=True):
        at = (
            -1
            if cell.isascii()
            else next((i for i, letter in enumerate(cell) if "\ud800" <= letter <= "\udfff"), -1)
        )
        if at >= 0:
            byte = ord(cell[at]) & 0xFF
            return SkippedRow(
                "bad_encoding",
                f"column '{name}' is not UTF-8 text (byte {byte:02x} at character {at + 1})",
                line,
                column=name,
                hint="save the file again as UTF-8",
            )
    return None


def _delimiter(line: str) -> str:
    # Excel writes semicolons in half of Europe.
    return max(",;\t", key=line.count)


def _array(name: str, cells: Column, *, text: bool) -> pa.Array:
    """Return numbers if every cell is one, so that `--where "age > 40"` works, else text."""
    padded = any(cell and len(cell) > 1 and cell[0] == "0" and cell[1].isdigit() for cell in cells)
    if not text and not padded and not is_text_column(name):  # "0012" is not 12
        for number in (int, float):
            try:
                return pa.array([None if cell is None else number(cell) for cell in cells])
            except (ValueError, OverflowError, pa.ArrowException):
                continue
    return pa.array(cells, pa.string())
