"""Dataset layouts, one module each; every module that defines `LAYOUT` is discovered (`registry.py`).

A layout only maps columns and files; validation and the split are the same for all layouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dermaudit.errors import UserInputError, unknown

from ..manifest.missing_path import missing, no_table
from ..manifest.tables import SHARDS_FILE, TABLE_SUFFIXES, UNFINISHED, UNFINISHED_SHARDS, RawTable
from . import dermoscopy
from .csv_rows import files_of
from .registry import DatasetLayout as DatasetLayout
from .registry import Layout as Layout
from .registry import layouts

_PROBED = 200  # rows of a table whose images are searched
LAYOUTS = layouts()  # in the order in which they are tried
# Layouts that are recognised by the columns of a table.
FOREIGN = {
    name: one
    for name, one in LAYOUTS.items()
    if name not in ("native", "dermoscopy", "folder", "folder-all")
}


def detect(path: Path) -> str:
    """Return the name of the first layout that `path` matches. Errors: UserInputError without one."""
    if not path.exists():
        raise missing(path)
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise no_table(path)
    if (path / UNFINISHED).is_file():
        raise UserInputError(
            f"{path} is an unfinished conversion: {UNFINISHED} is in it",
            "run the same `dermaudit data convert` again; it continues where it stopped",
        )
    if (path / SHARDS_FILE).is_file() or (path / UNFINISHED_SHARDS).is_file():
        raise UserInputError(
            f"{path} holds webdataset shards, not a manifest with image files",
            "training reads them; other commands take the data set they were made of",
        )
    # Tables are recognised by their columns first: `native` matches every table.
    tried = {"dermoscopy": dermoscopy, **FOREIGN, **LAYOUTS} if path.is_file() else LAYOUTS
    for name, layout in tried.items():
        if layout.matches(path):
            return name
    if path.is_dir():
        # No image below it: its images may be elsewhere, but its table identifies the layout.
        tables = list(foreign_tables(path))
        if len(tables) > 1:
            raise _several(path, tables)
        if tables:
            return tables[0][0]
    raise UserInputError(
        f"{path} holds no manifest and no image",
        "give a folder with manifest.csv (.parquet, .jsonl), such a file, or a folder of images",
    )


def foreign_tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (layout, file) of the tables in a folder that are in a published layout."""
    for file in files_of(folder):
        if file.suffix.lower() in (".csv", ".jsonl"):
            name = next((name for name, layout in FOREIGN.items() if layout.matches(file)), None)
            if name and not dermoscopy.matches(file):
                yield name, file


def read_layout(path: Path, layout: str = "auto") -> RawTable:
    """Read `path` in a layout by name (`auto`: the first that matches).

    With `auto`, a folder of images with one published table is read by that table if its images exist;
    several such tables are refused, because subfolders would otherwise be taken for labels.
    """
    if layout not in ("auto", *LAYOUTS):
        error = unknown("layout", layout, ["auto", *LAYOUTS])
        needs = "; ".join(f"{name}: {one.description}" for name, one in FOREIGN.items())
        raise UserInputError(error.message, f"{error.hint}. Columns they need: {needs}")
    name = detect(path) if layout == "auto" else layout
    if not path.exists():
        raise missing(path)
    if path.is_file() and path.suffix.lower() not in TABLE_SUFFIXES:
        raise no_table(path)
    if (layout, name) == ("auto", "folder"):
        return _by_table(path)
    return LAYOUTS[name].read(path)


def _by_table(folder: Path) -> RawTable:
    """Read a folder of images by the one published table in it, if there is one."""
    tables = list(foreign_tables(folder))
    if len(tables) > 1:
        raise _several(folder, tables)
    if not tables:
        return LAYOUTS["folder"].read(folder)
    name, file = tables[0]
    try:
        raw = LAYOUTS[name].read(file)
    except UserInputError as error:
        raise UserInputError(
            error.message,
            f"{file.name} looks like the layout '{name}'; to leave it and take the subfolders for "
            "labels: --layout folder" + (f" ({error.hint})" if error.hint else ""),
        ) from error
    images = raw.table.column("image").slice(0, _PROBED).to_pylist()
    if any(image and "\0" not in image and (raw.root / image).is_file() for image in images):
        raw.remark(
            f"{file} was read, in the layout '{name}'; to leave it and take the subfolders for "
            "labels: --layout folder"
        )
        return raw
    plain = LAYOUTS["folder"].read(folder)
    plain.remark(
        f"{file} was not read: it looks like the layout '{name}', but the images that it names are "
        f"not there; use it with --layout {name}"
    )
    return plain


def _several(folder: Path, tables: list[tuple[str, Path]]) -> UserInputError:
    listed = ", ".join(f"{file.name} ({name})" for name, file in tables[:6])
    name, file = tables[0]
    return UserInputError(
        f"{folder} holds {len(tables)} tables that could be meant: {listed}",
        f"name one of them: {file} --layout {name}; to take the subfolders for labels: --layout folder",
    )


def read_for_use(path: Path) -> RawTable:
    """Read a data set that can be used without conversion: native, or a plain folder of images.

    Other layouts need `data convert` first, which makes their split; masks in their folders would
    otherwise be taken for images.
    """
    name = detect(path)
    if name not in ("native", "folder"):
        raise UserInputError(
            f"{path} is in the layout '{name}', which must be converted first",
            f"run: dermaudit data convert {path} --layout {name} --out data/{path.name}",
        )
    if name == "folder" and (tables := list(foreign_tables(path))):
        name, file = tables[0]
        raise UserInputError(
            f"{path} holds {file.name} in the layout '{name}', which must be converted first",
            f"run: dermaudit data convert {path} --out data/{path.name} (with --layout folder to take "
            "the subfolders for labels)",
        )
    return LAYOUTS[name].read(path)
