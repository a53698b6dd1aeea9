"""ISIC: ground truth of the challenges (a column a diagnosis), or an id and a diagnosis.

A further CSV in the same folder with the same ids (lesion, patient, age, site …) is joined; the patient, else
the lesion, is the group. Images are found by name below the table's folder.
"""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import UserInputError

from ..manifest.blank_cells import known
from ..manifest.tables import IMAGE_SUFFIXES, RawTable, SkippedRow
from .csv_rows import Column, CsvRows, columns_hint, header_of, one_file, raw_table, read_rows
from .image_names import ImageNames, images_of
from .registry import Layout

NAME = "isic"
NEEDS = (
    "image (or image_id, image_name, isic_id), and MEL, NV, … of 0/1 or diagnosis (or dx, "
    "diagnosis_1 … diagnosis_3)"
)
_IDS = ("image", "image_id", "image_name", "isic_id")
_CODES = ("MEL", "NV", "BCC", "AK", "AKIEC", "BKL", "DF", "VASC", "SCC", "UNK")
# From the finest to the coarsest, as in the archive's metadata (benign or malignant last).
_DIAGNOSES = ("diagnosis_3", "diagnosis", "dx", "diagnosis_2", "diagnosis_1")
_LICENCES = ("copyright_license", "license")
_GROUPS = ("patient_id", "lesion_id")


def _id_column(header: list[str]) -> str | None:
    return next((name for name in _IDS if name in header), None)


def matches(path: Path) -> bool:
    """Return whether `path` is such a table."""
    header = header_of(path)
    id_ = _id_column(header)
    if id_ is None or "has_artifact_annotation" in header:
        return False
    if sum(code in header for code in _CODES) < 2 and not set(_DIAGNOSES) & set(header):
        return False
    # A table whose images have suffixes is native.
    return id_ != "image" or not _first(path, header.index("image")).endswith(IMAGE_SUFFIXES)


def _first(path: Path, at: int) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as handle:
        header = handle.readline()
        cells = handle.readline(1 << 16).split(max(",;\t", key=header.count))
    return cells[at].strip().strip('"').lower() if len(cells) > at else ""


def read(path: Path) -> RawTable:
    """Read the table; `label` is the diagnosis in lower case (`mel`, `nv`, …; UNK is unknown).

    Rows without an image, or with no or several diagnoses, are skipped. Errors: UserInputError for a
    file that is missing, unreadable or has neither form.
    """
    file = one_file(path, matches, NAME, "ISIC_2019_Training_GroundTruth.csv")
    rows = read_rows(file)
    id_ = _id_column(list(rows.columns))
    codes = [name for name in rows.columns if name in _CODES]
    diagnoses = [name for name in _DIAGNOSES if name in rows.columns]
    if id_ is None or (len(codes) < 2 and not diagnoses):
        lacking = [] if id_ else ["'image' (image_id, image_name and isic_id serve too)"]
        if len(codes) < 2 and not diagnoses:
            lacking.append(
                "'diagnosis' (dx, diagnosis_1 … diagnosis_3, or MEL, NV, … of 0/1 serve too)"
            )
        raise UserInputError(
            f"{file} has no column {' and no '.join(lacking)}, which the layout '{NAME}' needs",
            columns_hint(rows.columns),
        )
    n_by_column: dict[str, int] = {}
    images, bad = images_of(rows, id_, ImageNames(file.parent, file.parent))
    if len(codes) > 1:
        labels: Column = []
        for row in range(rows.n):
            label, problem = _one_hot(rows, id_, codes, row)
            labels.append(label)
            if problem:
                bad.setdefault(row, problem)
        used = {id_, *codes}
    else:
        labels, n_by_column = _finest(rows, diagnoses)
        # The coarser ones stay as columns, for `--where`.
        used = {id_, *diagnoses} if len(diagnoses) == 1 else {id_}
    joined = _beside(file, id_, rows)
    for name, cells in joined.items():
        rows.columns.setdefault(name, cells)
    groups = [
        next((cell for cell in both if cell), None)
        for both in zip(*(rows.get(name) for name in _GROUPS), strict=True)
    ]
    columns = {"image": images, "image_id": list(rows.get(id_)), "label": labels}
    if any(groups):
        columns["group"] = groups
    licence = next((name for name in _LICENCES if name in rows.columns), None)
    if licence and "licence" not in rows.columns:
        columns["licence"] = rows.get(licence)
        used.add(licence)
    raw = raw_table(rows, NAME, columns, used, bad, file.parent)
    if n_by_column:
        listed = ", ".join(f"'{name}' ({n} rows)" for name, n in n_by_column.items())
        raw.remark(f"the label is the finest diagnosis that is filled in: column {listed}")
    return raw


def _finest(rows: CsvRows, names: list[str]) -> tuple[Column, dict[str, int]]:
    """Return the first known cell of the columns `names` of each row, and the rows that each gave."""
    labels: Column = []
    n_by_column = dict.fromkeys(names, 0)
    for cells in zip(*(rows.get(name) for name in names), strict=True):
        at, label = next(
            ((k, value) for k, cell in enumerate(cells) if (value := known(cell))), (None, None)
        )
        labels.append(label)
        if at is not None:
            n_by_column[names[at]] += 1
    return labels, {name: n for name, n in n_by_column.items() if n}


def _one_hot(
    rows: CsvRows, id_: str, codes: list[str], row: int
) -> tuple[str | None, SkippedRow | None]:
    """Return the one code that is 1; None for UNK, and for a row in which no code is filled in."""
    hint, image = "write 1 for the diagnosis, 0 for the others", rows.get(id_)[row]
    cells = {code: rows.get(code)[row] for code in codes}
    for code, cell in cells.items():
        if cell not in (None, "0", "1", "0.0", "1.0"):
            reason = f"column '{code}' says '{cell}'"
            return None, rows.skip(row, "bad_value", reason, code, hint, image)
    on = [code for code, cell in cells.items() if cell in ("1", "1.0")]
    if len(on) == 1 or not any(cells.values()):
        return (on[0].lower() if on and on[0] != "UNK" else None), None
    what = f"{len(on)} diagnoses ({', '.join(on)})" if on else "no diagnosis"
    column = on[0] if on else codes[0]
    return None, rows.skip(row, "not_one_hot", f"the row has {what}", column, hint, image)


def _beside(file: Path, id_: str, rows: CsvRows) -> dict[str, Column]:
    """Return the columns of other CSVs in the folder that have these ids, in the order of `rows`."""
    found: dict[str, Column] = {}
    ids = rows.get(id_)
    for other in sorted(file.parent.glob("*.csv")):
        header = header_of(other)
        their_id = _id_column(header)
        if other == file or their_id is None or not set(header) & {*_GROUPS, "age_approx"}:
            continue
        theirs = read_rows(other)
        row_of = {name: row for row, name in enumerate(theirs.get(their_id)) if name}
        if not any(name in row_of for name in ids):
            continue
        for name, cells in theirs.columns.items():
            if name != their_id:
                found.setdefault(name, [cells[row_of[i]] if i in row_of else None for i in ids])
    return found


LAYOUT = Layout(NAME, NEEDS, matches, read, order=60)
