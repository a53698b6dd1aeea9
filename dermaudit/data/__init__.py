"""Images and the table that describes them: manifests, layouts that people have, safe decoding.

`Manifest.load` opens a data set, `decode_all` its images; `data convert` and `data check` are here.
The split is owned by the data (design §4): made once, by group, and only read afterwards.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "Manifest": "manifest",
    "Shards": "shards",
    "load_manifest": "manifest",
    "decode_image": "images",
    "BadImage": "images",
    "ImageLimits": "images",
    "read_image": "images",
    "decode_all": "decode",
    "IMAGE_SUFFIXES": "tables",
}

if TYPE_CHECKING:
    from .decode import decode_all as decode_all
    from .images import BadImage as BadImage
    from .images import ImageLimits as ImageLimits
    from .images import decode_image as decode_image
    from .images import read_image as read_image
    from .manifest import Manifest as Manifest
    from .manifest import load_manifest as load_manifest
    from .shards import Shards as Shards
    from .tables import IMAGE_SUFFIXES as IMAGE_SUFFIXES

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
