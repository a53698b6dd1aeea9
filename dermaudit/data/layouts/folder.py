"""A plain folder of images: subfolders are classes; train/, val/, test/ above them are splits.

Archives put derived files into the folders of the photographs: masks, superpixels, thumbnails. They are left out and
listed as skipped; the layout `folder-all` takes every image file.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

import pyarrow as pa

from dermaudit.errors import UserInputError

from ..manifest.tables import IMAGE_SUFFIXES, RawTable, SkippedRow
from ..splits import SPLITS
from .image_names import walk_images
from .registry import Layout

_SPLIT_FOLDERS = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}


#: What follows the stem of the original image in the stem of a derived file.
_DERIVED = re.compile(
    r"[ _.-]*(mask|masks|seg|segmentation|superpixels?|attribute[\w-]*|lesion|contour|heatmap|overlay|"
    r"thumb|thumbnail|small|preview)s?\d*",
    re.IGNORECASE,
)


def derived_from(images: list[PurePosixPath]) -> dict[PurePosixPath, PurePosixPath]:
    """Return {derived file: its image}.

    A derived file has the stem of an image of the same folder, followed by the name of a derived product
    such as `_segmentation`.
    """
    stems = {(image.parent, image.stem.casefold()): image for image in images}
    found = {}
    for image in images:
        stem = image.stem.casefold()
        for end in range(len(stem) - 1, 0, -1):
            original = stems.get((image.parent, stem[:end]))
            if original is not None and _DERIVED.fullmatch(stem[end:]):
                found[image] = original
                break
    return found


def matches(path: Path) -> bool:
    """Return whether `path` is a folder with an image in it."""
    return path.is_dir() and next(walk_images(path, path), None) is not None


def read(path: Path) -> RawTable:
    """Read a folder without derived files. UserInputError if it holds no image."""
    return _read(path, take_derived=False)


def read_all(path: Path) -> RawTable:
    """Read a folder with every image file in it. UserInputError if it holds none."""
    return _read(path, take_derived=True)


def _read(path: Path, *, take_derived: bool) -> RawTable:
    if not path.is_dir():
        raise UserInputError(f"{path} is not a folder", "name the folder that holds the images")
    images = sorted(map(PurePosixPath, walk_images(path, path)))
    if not images:
        raise UserInputError(
            f"{path} holds no image", f"names must end in {', '.join(IMAGE_SUFFIXES)}"
        )
    derived = {} if take_derived else derived_from(images)
    images = [image for image in images if image not in derived]
    folders = [image.parts[:-1] for image in images]
    # These names mean splits only if every image is below one of them.
    split = all(parts and parts[0].lower() in _SPLIT_FOLDERS for parts in folders)
    columns: dict[str, list[str | None]] = {"image": [str(image) for image in images]}
    if split:
        columns["split"] = [_SPLIT_FOLDERS[parts[0].lower()] for parts in folders]
        folders = [parts[1:] for parts in folders]
    if any(folders):
        columns["label"] = [parts[0] if parts else None for parts in folders]
    table = pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})
    skipped = tuple(
        SkippedRow(
            "derived_file",
            f"{image} was made from {original.name} (a mask, thumbnail or the like)",
            image=str(image),
            hint="take it all the same: --layout folder-all",
        )
        for image, original in derived.items()
    )
    return RawTable(table, path, path, "folder", skipped=skipped)


LAYOUT = Layout("folder", "a folder of images; subfolders are labels", matches, read, order=2)
