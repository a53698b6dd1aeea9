"""DermFM-Zero's tables of benchmarks: `image_path`, `label` (a number), `diag` (its name)."""

from __future__ import annotations

from pathlib import Path

from ..manifest.tables import RawTable, SkippedRow
from .csv_rows import header_of, one_file, raw_table, read_rows
from .registry import Layout

NAME = "dermfm-zeroshot"
NEEDS = "image_path, label (a number), diag (its name)"
_NEEDED = ("image_path", "label", "diag")


def matches(path: Path) -> bool:
    """Return whether `path` is such a table."""
    header = set(header_of(path))
    return header >= set(_NEEDED) and "image" not in header


def read(path: Path) -> RawTable:
    """Read the table: `diag` becomes the label, the number `class_index`.

    Rows whose number and name do not belong together are skipped. Errors: UserInputError for a file
    that is missing, unreadable or lacks a column.
    """
    file = one_file(path, matches, NAME, "test.csv")
    rows = read_rows(file)
    rows.need(_NEEDED, NAME)
    images, numbers, names = (rows.get(name) for name in _NEEDED)
    bad: dict[int, SkippedRow] = {}
    first: dict[str, int] = {}  # the row in which each number gets its name
    for row, (image, number, name) in enumerate(zip(images, numbers, names, strict=True)):
        if image is None:
            reason, hint = (
                "column 'image_path' is blank",
                "write the path of the image, or remove the row",
            )
            bad[row] = rows.skip(row, "blank_image", reason, "image_path", hint)
        elif number is not None and not number.isdecimal():
            reason = f"column 'label' says '{number}', not the number of a class"
            hint = "write 0, 1, … and the class's name in 'diag'"
            bad[row] = rows.skip(row, "bad_value", reason, "label", hint, image)
        elif number is not None and name != names[first.setdefault(number, row)]:
            before = first[number]
            reason = (
                f"class {number} is called '{name or ''}' here and '{names[before] or ''}' at line "
                f"{rows.lines[before]}"
            )
            bad[row] = rows.skip(row, "class_disagrees", reason, "diag", "one name a number", image)
    columns = {"image": images, "label": names, "class_index": numbers}
    return raw_table(rows, NAME, columns, _NEEDED, bad)


LAYOUT = Layout(NAME, NEEDS, matches, read, order=50)
