"""Concepts: vocabularies, names, bottlenecks, and the evidence for suppression.

Every claim made here is scored on other images than it was chosen on, with an interval and a control.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ != "dermaudit.concepts":
    raise ImportError("import dermaudit.concepts, not the bare folder 'concepts'")

_PUBLIC = {
    "Vocabulary": ".vocabulary.vocabulary",
    "SuppressionRecipe": ".recipes.recipe",
    "suppressed": ".inference.suppressed_model",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.concepts' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
