"""Concept tables of MONET's kind: `meta.csv` with `ImageID` and a 0/1 column a concept.

Images are in `final_images/` in the same folder. They are found by name, with any suffix and letter case, and
concepts stay with theirs: the published code pairs both by position. Columns that name one of the
seven known artifacts become artifacts.
"""

from __future__ import annotations

import re
from pathlib import Path

from dermaudit.errors import UserInputError

from ..manifest.tables import TRUTH_PREFIXES, RawTable
from ..splits import SPLITS
from .csv_rows import Column, header_of, one_file, raw_table, read_rows
from .image_names import ImageNames, images_of
from .registry import Layout

NAME = "concept-meta"
NEEDS = "ImageID, a 0/1 column a concept (images in final_images/)"
_ZERO_ONE = {"0", "1", "0.0", "1.0"}
_NEARLY = 0.95  # share of 0/1 cells from which a column is a concept
_PLAIN = {"image_id", "label", "group", "split", "caption", "ontology", "skin_tone"}
# The seven known artifacts by their names in such tables, in the singular; "purple pen" is MONET's term
# (Kim et al., 2024).
_ARTIFACTS = {
    **{name: name for name in ("ruler", "hair", "ink", "gel_bubble", "gel_border", "dark_corner")},
    **{name: "ink" for name in ("purple_pen", "pen_mark", "ink_mark")},
    "patch": "patch",
}


def matches(path: Path) -> bool:
    """Return whether `path` is such a table."""
    header = header_of(path)
    return "ImageID" in header and "image" not in header and len(header) > 1


def read(path: Path) -> RawTable:
    """Read the table. Rows without an image are skipped.

    Errors: UserInputError for a file that is missing, unreadable or without `ImageID`, and when there
    is no folder of images.
    """
    file = (
        path / "meta.csv"
        if (path / "meta.csv").is_file()
        else one_file(path, matches, NAME, "meta.csv")
    )
    rows = read_rows(file)
    rows.need(["ImageID"], NAME)
    folder = next(
        (f for f in (file.parent / "final_images", file.parent / "images") if f.is_dir()), None
    )
    if folder is None:
        raise UserInputError(
            f"{file.parent} holds no folder final_images",
            "put the images there, in the folder of meta.csv",
        )
    images, bad = images_of(rows, "ImageID", ImageNames(folder, file.parent))
    names = [
        name
        for name, cells in rows.columns.items()
        if name not in ("ImageID", *_PLAIN) and _is_truth(cells)
    ]
    names_by_column = _manifest_names(names)
    truth: dict[str, Column] = {}
    for name, column in names_by_column.items():
        cells = rows.columns[name]
        truth[column] = cells if column not in truth else _either(truth[column], cells)
    columns: dict[str, Column] = {"image": images, "image_id": list(rows.get("ImageID"))}
    columns |= {name: rows.get(name) for name in ("label", "group") if name in rows.columns}
    used = {"ImageID", *names_by_column}
    if not {cell for cell in rows.get("split") if cell} <= set(SPLITS):
        used.add("split")  # other values than train, val, test: the split is made by group
    raw = raw_table(rows, NAME, {**columns, **truth}, used, bad, file.parent)
    artifacts = [
        f"'{n}' as {c}" for n, c in names_by_column.items() if c.startswith("artifact:") and n != c
    ]
    if artifacts:
        raw.remark(f"columns that name an artifact: {', '.join(artifacts)}")
    if "concept:patch" in truth:
        raw.remark(
            "column 'patch' is taken for the kind of lesion (concept:patch), since no other column "
            "names an artifact; if it is one, call it artifact:patch"
        )
    return raw


def _manifest_names(names: list[str]) -> dict[str, str]:
    """Return {column: its name in the manifest}, an artifact if it is one of the seven.

    A patch is a flat lesion in SkinCon's vocabulary, and a sticker if other artifacts are columns too.
    """
    found = {name: _artifact(name) for name in names}
    patch_alone = {word for word in found.values() if word} == {"patch"}
    names_by_column = {}
    for name, word in found.items():
        if name.startswith(TRUTH_PREFIXES):
            names_by_column[name] = name
        elif word and not patch_alone:
            names_by_column[name] = f"artifact:{word}"
        else:
            names_by_column[name] = f"concept:{'_'.join(name.lower().split())}"
    return names_by_column


def _artifact(column: str) -> str | None:
    """Return the artifact that a column names, in the singular or plural, None without one."""
    name = "_".join(re.split(r"[\s_-]+", column.lower()))
    candidates = (name, name.removesuffix("s"), name.removesuffix("es"))
    return next((_ARTIFACTS[one] for one in candidates if one in _ARTIFACTS), None)


def _either(left: Column, right: Column) -> Column:
    """Join two columns of one artifact (ink, purple pen): present if either is 1, absent if both are 0.

    Anything else is unknown; a cell that is neither 0 nor 1 stays, to be reported.
    """
    both: Column = []
    for cells in zip(left, right, strict=True):
        others = [cell for cell in cells if cell is not None and cell not in _ZERO_ONE]
        present = next((cell for cell in cells if cell in ("1", "1.0")), None)
        both.append(others[0] if others else present or (None if None in cells else cells[0]))
    return both


def _is_truth(cells: Column) -> bool:
    filled = [cell for cell in cells if cell is not None]
    # A few other cells are typing errors, which the check of the table reports.
    return bool(filled) and sum(cell in _ZERO_ONE for cell in filled) >= _NEARLY * len(filled)


LAYOUT = Layout(NAME, NEEDS, matches, read, order=60)
