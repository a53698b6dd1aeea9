"""Paths of images in a table: which may be used, and which file on this disk they mean."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PurePosixPath, PureWindowsPath

from .tables import IMAGE_SUFFIXES

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def path_problem(image: str) -> str | None:
    """Return why a path may not be used, None if it may: it must stay below the data folder."""
    pure = PurePosixPath(image)
    if _URL.match(image):
        return "a URL, not a path"
    if pure.is_absolute() or PureWindowsPath(image).is_absolute():
        return "an absolute path"
    if ".." in pure.parts or ".." in PureWindowsPath(image).parts:
        return "a path outside the data folder"
    if "\0" in image:
        return "not a path"
    if pure.suffix.lower() not in IMAGE_SUFFIXES:
        return f"not the name of an image ({' '.join(s[1:] for s in IMAGE_SUFFIXES)})"
    return None


def path_hint(image: str, root: Path) -> str:
    """Return how to fix a path that has a problem."""
    where = "the working folder" if root == Path() else root
    if _URL.match(image):
        return f"download the images, and write their paths relative to {where}"
    return f"paths are relative to {where} and stay inside it"


def local_image(root: Path, image: str) -> str:
    """Return `image` as the file system below `root` spells it.

    Tables that were written elsewhere may have Windows separators, or accents in another Unicode
    normal form (macOS writes NFD) than the file names. A path that exists as it is written, or in no
    spelling, is returned unchanged.
    """
    if ("\\" not in image and image.isascii()) or path_problem(image):
        return image
    plain = image.replace("\\", "/")
    spellings = [image, plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))]
    return next((path for path in spellings if (root / path).is_file()), image)
