"""derm7pt (Kawahara et al., JBHI 2019): dermoscopic images with the seven-point checklist.

The dermoscopic image of each case is read; the path of the clinical photograph stays in `clinic`. The
attributes become concepts: presence of the structure, and its atypical form. The published split is
taken from `train_indexes.csv`, `valid_indexes.csv` and `test_indexes.csv` in the folder of `meta.csv`.
"""

from __future__ import annotations

from .csv_rows import CsvRows, read_rows
from .public_table import Columns, PublicTable, indicator

_STRUCTURES = (
    "pigment_network",
    "streaks",
    "pigmentation",
    "regression_structures",
    "dots_and_globules",
    "blue_whitish_veil",
    "vascular_structures",
)
# The values for which the seven-point checklist gives points.
_ATYPICAL = {
    "atypical_pigment_network": ("pigment_network", ("atypical",)),
    "irregular_streaks": ("streaks", ("irregular",)),
    "irregular_pigmentation": ("pigmentation", ("diffuse irregular", "localized irregular")),
    "irregular_dots_and_globules": ("dots_and_globules", ("irregular",)),
    "irregular_vascular_structures": ("vascular_structures", ("linear irregular", "dotted")),
}
_SPLIT_FILES = {"train": "train_indexes", "val": "valid_indexes", "test": "test_indexes"}


def _derived(rows: CsvRows) -> Columns:
    columns: Columns = {
        f"concept:{name}": indicator(rows.get(name), lambda cell: cell != "absent")
        for name in _STRUCTURES
        if name in rows.columns
    }
    for name, (source, values) in _ATYPICAL.items():
        if source in rows.columns:
            columns[f"concept:{name}"] = indicator(rows.get(source), values.__contains__)
    split = _published_split(rows)
    # A row in none of the files, or lines that could not be read: the split is then made by group.
    if all(split):
        columns["split"] = split
    return columns


def _published_split(rows: CsvRows) -> list[str | None]:
    """Return the split of each row; an index counts the rows of `meta.csv` from 0."""
    split_of: dict[str, str] = {}
    for split, stem in _SPLIT_FILES.items():
        file = rows.file.with_name(f"{stem}.csv")
        if not file.is_file() or rows.skipped:
            return [None] * rows.n
        split_of |= {index: split for index in read_rows(file).get("indexes") if index}
    return [split_of.get(str(row)) for row in range(rows.n)]


LAYOUT = PublicTable(
    name="derm7pt",
    description="derm, case_num, diagnosis and the attributes of the seven-point checklist",
    usual_file="meta.csv",
    image="derm",
    needed=("case_num", "diagnosis", "pigment_network"),
    columns={"label": "diagnosis", "group": "case_num", "site": "location", "sex": "sex"},
    derive=_derived,
)
