"""DermFM-Zero's tables of benchmarks: `image_path`, `label` (a number), `diag` (its name)."""

from __future__ import annotations

from pathlib import Path

from ..manifest.tables import RawTable, SkippedRow
from .csv_rows import header_of, one_file, raw_table, read_rows
from .registry import Layout

NAME = "dermfm-zeroshot"
NEEDS = "image_path, label (a number), diag (its name)"
_NEEDED = ("image_path", "label", "diag")


def _is_it(path: Path) -> bool:
    header = set(header_of(path))
    return header >= set(_NEEDED) and "image" not in header


def matches(path: Path) -> bool:
    return _is_it(path)


def read(path: Path) -> RawTable:
    """`diag` becomes the label, the number `class_index`. Errors: UserInputError for a file that is
    missing, unreadable or lacks a column. Rows whose number and name do not belong together are set
    aside."""
    file = one_file(path, _is_it, NAME, "test.csv")
    rows = read_rows(file)
    rows.need(_NEEDED, NAME)
    images, numbers, names = (rows.get(name) for name in _NEEDED)
    bad: dict[int, SkippedRow] = {}
    first: dict[str, int] = {}  # of each number, the row that gave it its name
    for row, (image, number, name) in enumerate(zip(images, numbers, names, strict=True)):
        where = {"line": rows.lines[row], "image": image}
        if image is None:
            bad[row] = SkippedRow(
                "blank_image",
                "column 'image_path' is blank",
                column="image_path",
                hint="write the path of the image, or remove the row",
                **where,
            )
            continue
        if number is None:
            continue
        if not number.isdecimal():
            bad[row] = SkippedRow(
                "bad_value",
                f"column 'label' says '{number}', not the number of a class",
                column="label",
                hint="write 0, 1, … and the class's name in 'diag'",
                **where,
            )
            continue
        before = first.setdefault(number, row)
        if name != names[before]:
            bad[row] = SkippedRow(
                "class_disagrees",
                f"class {number} is called '{name or ''}' here and '{names[before] or ''}' at line "
                f"{rows.lines[before]}",
                column="diag",
                hint="one name a number",
                **where,
            )
    columns = {"image": images, "label": names, "class_index": numbers}
    return raw_table(rows, NAME, columns, _NEEDED, bad)


LAYOUT = Layout(NAME, NEEDS, matches, read, order=50)
