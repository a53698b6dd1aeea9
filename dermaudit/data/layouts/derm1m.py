"""Derm1M (arXiv 2503.14911): pairs of an image and a caption, with a disease and its path.

`No … information`, `no definitive diagnosis` and similar cells become blank. An image may be in many
rows (1,029,761 pairs of 403,563 images): the first one's columns are taken, further captions go as a
JSON list into `more_captions`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..captions.ontology import SEPARATOR
from ..manifest.blank_cells import known
from ..manifest.tables import RawTable, SkippedRow
from .csv_rows import Column, CsvRows, header_of, one_file, raw_table, read_rows
from .registry import Layout

NAME = "derm1m"
NEEDS = "filename, caption, disease_label"
_NEEDED = {"filename", "caption", "disease_label"}
_USED = {"filename", "caption", "truncated_caption", "disease_label", "hierarchical_disease_label"}
# Special tokens of a language model.
_STRAY = re.compile(r"<\s*/?\s*s\s*>|<\|endoftext\|>|<pad>", re.IGNORECASE)


def matches(path: Path) -> bool:
    """Return whether `path` is such a table."""
    header = set(header_of(path))
    return header >= _NEEDED and "image" not in header


def read(path: Path) -> RawTable:
    """Read the table. Rows without a file name or caption are skipped.

    Errors: UserInputError for a file that is missing, unreadable or lacks a column.
    """
    file = one_file(path, matches, NAME, "Derm1M_v2_pretrain.csv")
    rows = read_rows(file)
    rows.need(sorted(_NEEDED), NAME)
    for name in set(rows.columns) - {"filename"}:
        rows.columns[name] = clean(rows.columns[name])
    images, captions = rows.get("filename"), rows.get("caption")
    first: dict[str, int] = {}
    more: dict[int, list[str]] = {}
    bad: dict[int, SkippedRow] = {}
    again: set[int] = set()
    for row, (image, caption) in enumerate(zip(images, captions, strict=True)):
        problem = empty_problem(rows, row, image, caption)
        if problem:
            bad[row] = problem
            continue
        assert image is not None
        assert caption is not None  # empty_problem refuses blank cells
        if image in first:
            again.add(row)
            further = more.setdefault(first[image], [])
            if caption not in (captions[first[image]], *further):
                further.append(caption)
        else:
            first[image] = row
    columns = {
        "image": images,
        "label": rows.get("disease_label"),
        "caption": captions,
        "truncated_caption": rows.get("truncated_caption"),
        "ontology": [joined(path) for path in rows.get("hierarchical_disease_label")],
    }
    if any(more.values()):
        columns["more_captions"] = [
            json.dumps(more[row], ensure_ascii=False) if more.get(row) else None
            for row in range(rows.n)
        ]
    return raw_table(rows, NAME, columns, _USED, bad, left_out=again)


def clean(cells: Column) -> Column:
    """Return the cells without stray tokens and double spaces; placeholders become blank."""
    return [None if cell is None else known(_STRAY.sub(" ", cell)) for cell in cells]


def joined(path: str | None) -> str | None:
    """Return "root, …, disease" as "root > … > disease"; a name repeated in a row appears once."""
    if path is None:
        return None
    parts = [part for part in (known(part) for part in path.split(",")) if part]
    parts = [part for i, part in enumerate(parts) if not i or part.lower() != parts[i - 1].lower()]
    return SEPARATOR.join(parts) or None


def empty_problem(
    rows: CsvRows, row: int, image: str | None, caption: str | None
) -> SkippedRow | None:
    """Return what is wrong with a row that lacks its image's name or its caption."""
    if image is None:
        hint = "write the path of the image, or remove the row"
        return rows.skip(row, "blank_image", "column 'filename' is blank", "filename", hint)
    if caption is None:
        reason = "the caption is empty or a placeholder"
        hint = "write what is seen, or remove the row"
        return rows.skip(row, "empty_caption", reason, "caption", hint, image)
    return None


LAYOUT = Layout(NAME, NEEDS, matches, read, order=50)
