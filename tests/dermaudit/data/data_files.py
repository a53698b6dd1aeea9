"""Files that several tests of data sets write or read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def write_csv(file: Path, rows: Sequence[dict]) -> Path:
    """Write rows with the columns of the first one; return the file."""
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_rows(file: Path, header: str, *rows: Sequence[str]) -> Path:
    """Write rows as tuples below the names in `header` (separated by blanks); return the file."""
    return write_csv(file, [dict(zip(header.split(), row, strict=True)) for row in rows])


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder by its relative path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
