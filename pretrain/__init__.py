"""Pretraining: masked latent prediction, then contrastive; recipes as files; seeded and resumable.

First form; the losses of MAKE and the published recipes stand on it.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ != "dermaudit.pretrain":
    raise ImportError("import dermaudit.pretrain, not the bare folder 'pretrain'")

_PUBLIC = {"TrainingRecipe": ".recipe", "train": ".training.loop"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.pretrain' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
