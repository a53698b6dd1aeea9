"""SCIN (Ward et al., arXiv 2402.18545): one case has up to three photographs.

`scin_labels.csv` in the folder of `scin_cases.csv` gives the diagnoses; the one with the largest weight is the
label. Every photograph of a case is one row, and the case is the group.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

from ..manifest.tables import RawTable
from .csv_rows import Column, CsvRows, header_of, one_file, raw_table, read_rows
from .image_names import ImageNames, images_of
from .public_table import Columns, indicator
from .registry import Layout

NAME = "scin"
_IMAGES = ("image_1_path", "image_2_path", "image_3_path")
_TONES = ("fitzpatrick_skin_type", "dermatologist_fitzpatrick_skin_type_label_1")


def matches(path: Path) -> bool:
    """Return whether `path` is the table of cases."""
    return set(header_of(path)) >= {"case_id", "image_1_path"}


def read(path: Path) -> RawTable:
    """Read the cases and their labels.

    Errors: UserInputError for a file that is missing, unreadable or lacks a column.
    """
    file = one_file(path, matches, NAME, "scin_cases.csv")
    cases = read_rows(file)
    cases.need(["case_id", "image_1_path"], NAME)
    for name, cells in _labels(file, cases).items():
        cases.columns.setdefault(name, cells)
    rows = _one_row_an_image(cases)
    images, bad = images_of(rows, "image_path", ImageNames(file.parent, file.parent))
    columns: Columns = {
        "image": images,
        "image_id": list(images),
        "label": [_heaviest(cell) for cell in rows.get("weighted_skin_condition_label")],
        "group": rows.get("case_id"),
        "skin_tone": _first_known(rows, _TONES),
        "site": _sites(rows),
        "age": rows.get("age_group"),
        "sex": rows.get("sex_at_birth"),
    }
    textures = [name for name in rows.columns if name.startswith("textures_")]
    for name in textures:
        short = name.removeprefix("textures_")
        if short != "unspecified":
            columns[f"concept:{short}"] = indicator(rows.get(name), lambda cell: cell == "yes")
    used = {"image_path", *textures, "age_group", "sex_at_birth"}
    return raw_table(rows, NAME, columns, used, bad, file.parent)


def _labels(file: Path, cases: CsvRows) -> Columns:
    labels_file = file.with_name(file.name.replace("cases", "labels"))
    if labels_file == file or not labels_file.is_file():
        return {}
    labels = read_rows(labels_file)
    row_of = {case: row for row, case in enumerate(labels.get("case_id"))}
    rows = [row_of.get(case) for case in cases.get("case_id")]
    return {
        name: [None if row is None else cells[row] for row in rows]
        for name, cells in labels.columns.items()
    }


def _one_row_an_image(cases: CsvRows) -> CsvRows:
    """Return the table with one row per photograph; a case without any keeps one blank row."""
    at = [
        (row, cases.get(name)[row])
        for row in range(cases.n)
        for name in _IMAGES
        if cases.get(name)[row] or name == _IMAGES[0]
    ]
    columns = {
        name: [cells[row] for row, _ in at]
        for name, cells in cases.columns.items()
        if name not in _IMAGES
    }
    columns["image_path"] = [image for _, image in at]
    return replace(cases, columns=columns, lines=[cases.lines[row] for row, _ in at])


def _heaviest(cell: str | None) -> str | None:
    """Return the key with the largest weight of a cell such as "{'Eczema': 0.6, 'Acne': 0.4}"."""
    try:
        weights = ast.literal_eval(cell or "{}")
        return max(weights, key=weights.__getitem__) if weights else None
    except (ValueError, SyntaxError, TypeError, AttributeError):
        return None


def _first_known(rows: CsvRows, names: tuple[str, ...]) -> Column:
    unknown = (None, "NONE_SELECTED", "NONE_IDENTIFIED")
    both = zip(*(rows.get(name) for name in names), strict=True)
    return [next((cell for cell in cells if cell not in unknown), None) for cells in both]


def _sites(rows: CsvRows) -> Column:
    names = [name for name in rows.columns if name.startswith("body_parts_")]
    parts = (
        [n.removeprefix("body_parts_") for n in names if rows.get(n)[row] == "YES"]
        for row in range(rows.n)
    )
    return [", ".join(one) or None for one in parts]


LAYOUT = Layout(NAME, "case_id, image_1_path … image_3_path (and scin_labels.csv)", matches, read)
