"""The layouts that people have, one module each: `matches(path)` and `read(path) -> RawTable`.

A layout only says where the columns come from; validation and the split are the same for all.
"""

from __future__ import annotations

from pathlib import Path

from dermaudit.errors import UserInputError, unknown

from ..tables import SHARDS_FILE, UNFINISHED, UNFINISHED_SHARDS, RawTable
from . import dermoscopy, folder, native

# In the order in which they are tried.
LAYOUTS = {"native": native, "dermoscopy": dermoscopy, "folder": folder}


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
    for name, layout in LAYOUTS.items():
        if layout.matches(path):
            return name
    raise UserInputError(
        f"{path} holds no manifest and no image",
        "give a folder with manifest.csv (.parquet, .jsonl), such a file, or a folder of images",
    )


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
