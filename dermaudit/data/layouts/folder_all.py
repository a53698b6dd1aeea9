"""A plain folder of images with every image file in it, masks and thumbnails included."""

from __future__ import annotations

from pathlib import Path

from .folder import read_all
from .registry import Layout


def matches(path: Path) -> bool:
    """Return False: this layout is only read when it is named."""
    return False


LAYOUT = Layout("folder-all", "a folder of images, derived files too", matches, read_all, order=90)
