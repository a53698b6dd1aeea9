"""Concept tables of MONET's kind: `meta.csv` with `ImageID` and a 0/1 column a concept.

Images are in `final_images/` beside it. They are found by name, with any suffix and letter case, and
concepts stay with theirs: the published code pairs both by position.
"""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.splits import SPLITS

from ..tables import RawTable, Skipped
from .find import ImageNames
from .rows import Column, Rows, header_of, one_file, raw_table, read_rows

NAME = "concept-meta"
_ZERO_ONE = {"0", "1", "0.0", "1.0"}
_NEARLY = 0.95  # of a column's cells: below it, the column is none of zeros and ones
_PLAIN = {"image_id", "label", "group", "split", "caption", "ontology", "skin_tone"}


def _is_it(path: Path) -> bool:
    header = header_of(path)
    return "ImageID" in header and "image" not in header and len(header) > 1


def matches(path: Path) -> bool:
    return _is_it(path)


def read(path: Path) -> RawTable:
    """Errors: UserInputError for a file that is missing, unreadable or without `ImageID`, and when
    there is no folder of images. Rows without an image are set aside."""
    file = path / "meta.csv" if (path / "meta.csv").is_file() else one_file(
        path, _is_it, NAME, "meta.csv"
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
    concepts = {
        f"concept:{'_'.join(name.lower().split())}": cells
        for name, cells in rows.columns.items()
        if name not in ("ImageID", *_PLAIN) and _is_truth(cells)
    }
    columns: dict[str, Column] = {"image": images, "image_id": list(rows.get("ImageID"))}
    columns |= {name: rows.get(name) for name in ("label", "group") if name in rows.columns}
    used = {"ImageID", *(n for n in rows.columns if f"concept:{'_'.join(n.lower().split())}" in concepts)}
    if not {cell for cell in rows.get("split") if cell} <= set(SPLITS):
        used.add("split")  # a split of other names is not ours; it is made by group
    return raw_table(rows, NAME, {**columns, **concepts}, used, bad, file.parent)


def _is_truth(cells: Column) -> bool:
    said = [cell for cell in cells if cell is not None]
    # A few other cells are slips of the pen, which the check of the table will name.
    return bool(said) and sum(cell in _ZERO_ONE for cell in said) >= _NEARLY * len(said)


def images_of(rows: Rows, column: str, names: ImageNames) -> tuple[Column, dict[int, Skipped]]:
    """The path of the image of each id, and the rows that have none, or have another row's."""
    images: Column = []
    bad: dict[int, Skipped] = {}
    first: dict[str, int] = {}
    for row, name in enumerate(rows.get(column)):
        line = rows.lines[row]
        image, why = names.find(name) if name else (None, f"column '{column}' is blank")
        if image in first:
            why = f"its image {image} belongs to line {first[image]} already"
            image = None
        if image is None:
            bad[row] = Skipped(
                "no_image" if name else "blank_image", why, line, name, column,
                "put the image there, or remove the row",
            )
        else:
            first[image] = line
        images.append(image)
    return images, bad
