"""Concept tables of MONET's kind: `meta.csv` with `ImageID` and a 0/1 column a concept.

Images are in `final_images/` beside it. They are found by name, with any suffix and letter case, and
concepts stay with theirs: the published code pairs both by position. Columns that name one of the
seven known artifacts become artifacts.
"""

from __future__ import annotations

import re
from pathlib import Path

from dermaudit.errors import UserInputError

from ..manifest.tables import TRUTH_PREFIXES, RawTable, SkippedRow
from ..splits import SPLITS
from .csv_rows import Column, CsvRows, header_of, one_file, raw_table, read_rows
from .image_names import ImageNames
from .registry import Layout

NAME = "concept-meta"
NEEDS = "ImageID, a 0/1 column a concept (images in final_images/)"
_ZERO_ONE = {"0", "1", "0.0", "1.0"}
_NEARLY = 0.95  # of a column's cells: below it, the column is none of zeros and ones
_PLAIN = {"image_id", "label", "group", "split", "caption", "ontology", "skin_tone"}
# As artifacts are called in such tables; "purple pen" is MONET's word (Kim et al., 2024).
ARTIFACTS = {
    "ruler": "ruler",
    "rulers": "ruler",
    "hair": "hair",
    "hairs": "hair",
    "ink": "ink",
    "purple_pen": "ink",
    "pen_mark": "ink",
    "pen_marks": "ink",
    "ink_mark": "ink",
    "ink_marks": "ink",
    "gel_bubble": "gel_bubble",
    "gel_bubbles": "gel_bubble",
    "gel_border": "gel_border",
    "gel_borders": "gel_border",
    "dark_corner": "dark_corner",
    "dark_corners": "dark_corner",
    "patch": "patch",
    "patches": "patch",
}


def _is_it(path: Path) -> bool:
    header = header_of(path)
    return "ImageID" in header and "image" not in header and len(header) > 1


def matches(path: Path) -> bool:
    return _is_it(path)


def read(path: Path) -> RawTable:
    """Errors: UserInputError for a file that is missing, unreadable or without `ImageID`, and when
    there is no folder of images. Rows without an image are set aside."""
    file = (
        path / "meta.csv"
        if (path / "meta.csv").is_file()
        else one_file(path, _is_it, NAME, "meta.csv")
    )
    rows = read_rows(file)
    rows.need(["ImageID"], NAME)
    folder = next(
        (f for f in (file.parent / "final_images", file.parent / "images") if f.is_dir()), None
    )
    if folder is None:
        raise UserInputError(
            f"{file.parent} holds no folder final_images", "put the images there, beside meta.csv"
        )
    images, bad = images_of(rows, "ImageID", ImageNames(folder, file.parent))
    names = [
        name
        for name, cells in rows.columns.items()
        if name not in ("ImageID", *_PLAIN) and _is_truth(cells)
    ]
    called = _called(names)
    truth: dict[str, Column] = {}
    for name, column in called.items():
        cells = rows.columns[name]
        truth[column] = cells if column not in truth else _either(truth[column], cells)
    columns: dict[str, Column] = {"image": images, "image_id": list(rows.get("ImageID"))}
    columns |= {name: rows.get(name) for name in ("label", "group") if name in rows.columns}
    used = {"ImageID", *called}
    if not {cell for cell in rows.get("split") if cell} <= set(SPLITS):
        used.add("split")  # a split of other names is not ours; it is made by group
    raw = raw_table(rows, NAME, {**columns, **truth}, used, bad, file.parent)
    artifacts = [f"'{n}' as {c}" for n, c in called.items() if c.startswith("artifact:") and n != c]
    if artifacts:
        raw.remark(f"columns that name an artifact: {', '.join(artifacts)}")
    if "concept:patch" in truth:
        raw.remark(
            "column 'patch' is taken for the kind of lesion (concept:patch), since no other column "
            "names an artifact; if it is one, call it artifact:patch"
        )
    return raw


def _called(names: list[str]) -> dict[str, str]:
    """{name of a column: what it is called here}, an artifact where it is one of the seven.

    A patch is a lesion to a dermatologist (a flat one, in SkinCon's words), and a sticker beside
    other artifacts only."""
    found = {name: ARTIFACTS.get("_".join(re.split(r"[\s_-]+", name.lower()))) for name in names}
    patch_alone = {word for word in found.values() if word} == {"patch"}
    called = {}
    for name, word in found.items():
        if name.startswith(TRUTH_PREFIXES):
            called[name] = name
        elif word and not patch_alone:
            called[name] = f"artifact:{word}"
        else:
            called[name] = f"concept:{'_'.join(name.lower().split())}"
    return called


def _either(left: Column, right: Column) -> Column:
    """Two columns of one artifact (ink, purple pen): present where either says so, absent where both
    do, else unknown. A slip of the pen stays, to be named."""
    both: Column = []
    for cells in zip(left, right, strict=True):
        slips = [cell for cell in cells if cell is not None and cell not in _ZERO_ONE]
        present = next((cell for cell in cells if cell in ("1", "1.0")), None)
        both.append(slips[0] if slips else present or (None if None in cells else cells[0]))
    return both


def _is_truth(cells: Column) -> bool:
    said = [cell for cell in cells if cell is not None]
    # A few other cells are slips of the pen, which the check of the table will name.
    return bool(said) and sum(cell in _ZERO_ONE for cell in said) >= _NEARLY * len(said)


def images_of(
    rows: CsvRows, column: str, names: ImageNames
) -> tuple[Column, dict[int, SkippedRow]]:
    """The path of the image of each id, and the rows that have none, or have another row's."""
    images: Column = []
    bad: dict[int, SkippedRow] = {}
    first: dict[str, int] = {}
    for row, name in enumerate(rows.get(column)):
        line = rows.lines[row]
        image, why = names.find(name) if name else (None, f"column '{column}' is blank")
        if image in first:
            why = f"its image {image} belongs to line {first[image]} already"
            image = None
        if image is None:
            bad[row] = SkippedRow(
                "no_image" if name else "blank_image",
                why,
                line,
                name,
                column,
                "put the image there, or remove the row",
            )
        else:
            first[image] = line
        images.append(image)
    return images, bad


LAYOUT = Layout(NAME, NEEDS, matches, read, order=60)
