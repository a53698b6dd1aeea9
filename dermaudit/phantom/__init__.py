"""Rendered dermoscopic images ("phantoms") whose concepts, masks and artifacts are known exactly.

`sample` draws the factors of one image, `render` its pixels, `draw_artifact` puts the same
artifacts onto any photograph. numpy, scipy and Pillow only; nothing is loaded before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "CONCEPTS": ".vocabulary",
    "ARTIFACTS": ".vocabulary",
    "DIAGNOSES": ".vocabulary",
    "PRETRAIN_SEEDS": ".seeds",
    "AUDIT_SEEDS": ".seeds",
    "BiasTable": ".bias",
    "load_bias_table": ".bias",
    "Scene": ".scene",
    "sample": ".scene",
    "Phantom": ".rendering",
    "render": ".rendering",
    "draw_artifact": ".artifacts",
    "rows": ".dataset",
    "write_phantoms": ".dataset",
}

if TYPE_CHECKING:
    from .artifacts import draw_artifact as draw_artifact
    from .bias import BiasTable as BiasTable
    from .bias import load_bias_table as load_bias_table
    from .dataset import rows as rows
    from .dataset import write_phantoms as write_phantoms
    from .rendering import Phantom as Phantom
    from .rendering import render as render
    from .scene import Scene as Scene
    from .scene import sample as sample
    from .seeds import AUDIT_SEEDS as AUDIT_SEEDS
    from .seeds import PRETRAIN_SEEDS as PRETRAIN_SEEDS
    from .vocabulary import ARTIFACTS as ARTIFACTS
    from .vocabulary import CONCEPTS as CONCEPTS
    from .vocabulary import DIAGNOSES as DIAGNOSES

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.phantom' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
