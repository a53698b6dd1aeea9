"""Images by name: ids in a table, files in a folder with any suffix, letter case and Unicode form."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from ..manifest.tables import IMAGE_SUFFIXES, SkippedRow
from .csv_rows import Column, CsvRows


def walk_images(folder: Path, root: Path) -> Iterator[str]:
    """Yield the images below `folder` as paths relative to `root`, sorted within each folder.

    Hidden files and folders are left out. Links to folders are followed, each folder once.
    """
    seen: set[str] = set()
    for where, subfolders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES):
                yield Path(where, name).relative_to(root).as_posix()


def _nfc(name: str) -> str:
    """Return a name in one Unicode normal form: macOS writes the accents of file names in NFD."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


class ImageNames:
    """The images below `folder`; `find("IMG_1")` is "a/img_1.JPG" (relative to `root`)."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._exact: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        for path in walk_images(folder, root):
            file = path.rpartition("/")[2]
            for name in (file, file.rpartition(".")[0]):
                self._exact.setdefault(_nfc(name), []).append(path)
                self._folded.setdefault(_nfc(name).lower(), []).append(path)

    def find(self, name: str) -> tuple[str | None, str]:
        """Return (path, "") or (None, why there is none).

        The exact name is preferred to other letter cases, and a folder in the name is respected.
        """
        name = _nfc(name.replace("\\", "/"))
        folder, _, base = name.rpartition("/")
        for found in (self._exact.get(base, []), self._folded.get(base.lower(), [])):
            if folder:
                within = [path for path in found if _nfc(path.rpartition("/")[0]).endswith(folder)]
                found = within or found
            if len(found) == 1:
                return found[0], ""
            if found:
                return None, f"{len(found)} images have this name: {', '.join(found[:3])}"
        return None, f"no image of this name is in {self.folder.name or self.folder}/"


def images_of(
    rows: CsvRows, column: str, names: ImageNames
) -> tuple[Column, dict[int, SkippedRow]]:
    """Return the image of each id, and the rows that have none, or that of another row."""
    images: Column = []
    bad: dict[int, SkippedRow] = {}
    first: dict[str, int] = {}
    for row, name in enumerate(rows.get(column)):
        line = rows.lines[row]
        image, reason = names.find(name) if name else (None, f"column '{column}' is blank")
        if image in first:
            reason = f"its image {image} belongs to line {first[image]} already"
            image = None
        if image is None:
            kind, hint = (
                ("no_image" if name else "blank_image"),
                "put the image there, or remove the row",
            )
            bad[row] = rows.skip(row, kind, reason, column, hint, name)
        else:
            first[image] = line
        images.append(image)
    return images, bad
