"""Images and the table that describes them: manifests, dataset layouts, safe decoding.

`Manifest.load` opens a data set, `decode_all` its images; `data convert` and `data check` are here.
The split is owned by the data (design §4): made once, by group, and only read afterwards.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Manifest": "manifest.manifest",
    "Shards": "shards.read",
    "decode_image": "images.decode",
    "BadImage": "images.decode",
    "ImageLimits": "images.decode",
    "read_image": "images.decode",
    "decode_all": "images.decode_all",
    "IMAGE_SUFFIXES": "manifest.tables",
}

if TYPE_CHECKING:
    from .images.decode import BadImage as BadImage
    from .images.decode import ImageLimits as ImageLimits
    from .images.decode import decode_image as decode_image
    from .images.decode import read_image as read_image
    from .images.decode_all import decode_all as decode_all
    from .manifest.manifest import Manifest as Manifest
    from .manifest.tables import IMAGE_SUFFIXES as IMAGE_SUFFIXES
    from .shards.read import Shards as Shards

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
