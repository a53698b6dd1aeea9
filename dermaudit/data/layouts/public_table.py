"""A layout that is described by the columns of one CSV with images anywhere below its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..manifest.tables import RawTable
from .csv_rows import Column, CsvRows, header_of, one_file, raw_table, read_rows
from .image_names import ImageNames, images_of

Columns = dict[str, Column]
UNKNOWN = {"-1", "-1.0", "UNK", "unk", "unknown", "Unknown"}


@dataclass(frozen=True)
class PublicTable:
    """A `DatasetLayout` for a published table.

    `needed` are the columns by which the table is recognised, `image` the one with the image's name.
    `columns` is {manifest column: column of the table}, and `derive` returns further manifest columns
    from the rows. Columns that are not mapped are kept under their own names.
    """

    name: str
    description: str
    usual_file: str
    image: str
    needed: tuple[str, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    derive: Callable[[CsvRows], Columns] | None = None
    order: int = 50

    def matches(self, path: Path) -> bool:
        """Return whether `path` is a CSV with all needed columns."""
        return set(header_of(path)) >= {self.image, *self.needed}

    def read(self, path: Path) -> RawTable:
        """Read the table at `path`, or the only one in that folder. Rows without an image are skipped.

        Errors: UserInputError for a file that is missing, unreadable or lacks a column.
        """
        file = one_file(path, self.matches, self.name, self.usual_file)
        rows = read_rows(file)
        rows.need([self.image, *self.needed], self.name)
        root = _images_root(file)
        images, bad = images_of(rows, self.image, ImageNames(root, root))
        columns: Columns = {"image": images, "image_id": list(images)}
        for name, source in self.columns.items():
            if source in rows.columns:
                columns[name] = [None if c in UNKNOWN else c for c in rows.get(source)]
        columns |= self.derive(rows) if self.derive else {}
        used = {
            self.image,
            *self.columns.values(),
            *(n for n in rows.columns if n.startswith("unnamed_")),
        }
        if "split" not in columns and not set(rows.get("split")) >= {"train", "test"}:
            used.add("split")  # such as "train" in every row: the split is then made by group
        return raw_table(rows, self.name, columns, used, bad, root)


def _images_root(file: Path) -> Path:
    """Return the folder that holds the images: that of the table, or the one above `meta/`.

    derm7pt has release_v0/meta/meta.csv and release_v0/images.
    """
    folder = file.absolute().parent
    above = folder.parent / "images"
    return folder.parent if folder.name == "meta" and above.is_dir() else file.parent


def indicator(cells: Column, present: Callable[[str], bool]) -> Column:
    """Return "1" where `present(cell)`, "0" where not, None where the cell is blank."""
    return [None if cell is None else str(int(present(cell.lower()))) for cell in cells]


def binary(cells: Column, yes: tuple[str, ...]) -> Column:
    """Return "malignant" or "benign" for a column whose malignant values are `yes`."""
    return [None if c is None else "malignant" if c.lower() in yes else "benign" for c in cells]
