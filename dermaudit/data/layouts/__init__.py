"""The layouts that people have, one module each: `matches(path)` and `read(path) -> RawTable`.

A layout only says where the columns come from; validation and the split are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dermaudit.errors import UserInputError, unknown

from ..tables import SHARDS_FILE, UNFINISHED, UNFINISHED_SHARDS, RawTable
from . import concept_meta, derm1m, dermoscopy, folder, hf_metadata, isic, make, native, zeroshot

# Tables of the published systems: told by the columns of a file that is named. A folder of images
# with such a table in it stays a folder until --layout says otherwise.
FOREIGN = {
    layout.NAME: layout for layout in (make, derm1m, zeroshot, concept_meta, hf_metadata, isic)
}
# In the order in which they are tried.
LAYOUTS = {"native": native, "dermoscopy": dermoscopy, "folder": folder, **FOREIGN}


def detect(path: Path) -> str:
    """The name of the first layout that `path` looks like. UserInputError when there is none."""
    if not path.exists():
        raise UserInputError(f"{path} does not exist")
    if (path / UNFINISHED).is_file():
        raise UserInputError(
            f"{path} is an unfinished conversion: {UNFINISHED} is in it",
            "run the same `dermaudit data convert` again; it goes on where it stopped",
        )
    if (path / SHARDS_FILE).is_file() or (path / UNFINISHED_SHARDS).is_file():
        raise UserInputError(
            f"{path} holds webdataset shards, not a manifest with image files",
            "training reads them; other commands take the data set they were made of",
        )
    # By their columns, before `native` takes every table for its own.
    tried = {"dermoscopy": dermoscopy, **FOREIGN, **LAYOUTS} if path.is_file() else LAYOUTS
    for name, layout in tried.items():
        if layout.matches(path):
            return name
    if path.is_dir():
        # No image below it: perhaps its images are elsewhere, but the table says what it is.
        for name, _ in foreign_tables(path):
            return name
    raise UserInputError(
        f"{path} holds no manifest and no image",
        "give a folder with manifest.csv (.parquet, .jsonl), such a file, or a folder of images",
    )


def foreign_tables(folder: Path) -> Iterator[tuple[str, Path]]:
    """(layout, file) of the tables in a folder that are in a layout of the published systems."""
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in (".csv", ".jsonl") and file.is_file():
            name = next((name for name, layout in FOREIGN.items() if layout.matches(file)), None)
            if name and not dermoscopy.matches(file):
                yield name, file


def read_layout(path: Path, layout: str = "auto") -> RawTable:
    """Read `path` in a layout by name (`auto`: the first that fits)."""
    if layout not in ("auto", *LAYOUTS):
        raise unknown("layout", layout, ["auto", *LAYOUTS])
    name = detect(path) if layout == "auto" else layout
    if not path.exists():
        raise UserInputError(f"{path} does not exist")
    return LAYOUTS[name].read(path)


def read_for_use(path: Path) -> RawTable:
    """Read a data set that can be used as it is: native, or a plain folder of images.

    Other layouts need `data convert` first, which makes their split; masks beside the images of
    such a folder would otherwise be taken for images.
    """
    name = detect(path)
    if name not in ("native", "folder"):
        raise UserInputError(
            f"{path} is in the layout '{name}', which must be converted first",
            f"run: dermaudit data convert {path} --layout {name} --out data/{path.name}",
        )
    return LAYOUTS[name].read(path)
