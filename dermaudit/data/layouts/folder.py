"""A plain folder of images: subfolders are classes; train/, val/, test/ above them are splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.tables import IMAGE_SUFFIXES, RawTable
from ..splits import SPLITS
from .registry import Layout

_SPLIT_FOLDERS = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}


def _images(root: Path) -> Iterator[PurePosixPath]:
    """Paths below `root` of files named as images, hidden ones left out, sorted within folders."""
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield PurePosixPath(Path(folder, name).relative_to(root).as_posix())


def matches(path: Path) -> bool:
    return path.is_dir() and next(_images(path), None) is not None


def read(path: Path) -> RawTable:
    """Errors: UserInputError when the folder holds no image."""
    if not path.is_dir():
        raise UserInputError(f"{path} is not a folder", "name the folder that holds the images")
    images = sorted(_images(path))
    if not images:
        raise UserInputError(
            f"{path} holds no image", f"names must end in {', '.join(IMAGE_SUFFIXES)}"
        )
    folders = [image.parts[:-1] for image in images]
    # Only when every image is below a split's folder do these words mean splits.
    split = all(parts and parts[0].lower() in _SPLIT_FOLDERS for parts in folders)
    columns = {"image": [str(image) for image in images]}
    if split:
        columns["split"] = [_SPLIT_FOLDERS[parts[0].lower()] for parts in folders]
        folders = [parts[1:] for parts in folders]
    if any(folders):
        columns["label"] = [parts[0] if parts else None for parts in folders]
    table = pa.table({name: pa.array(v, pa.string()) for name, v in columns.items()})
    return RawTable(table, path, path, "folder")


LAYOUT = Layout("folder", "a folder of images; subfolders are labels", matches, read, order=2)
