"""Benchmarks of foundation models side by side: zero-shot, retrieval, probes, concept annotation.

Every figure is of the whole set, with an interval over groups and paired tests between models.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Predictions": ".saved",
    "read_predictions": ".saved",
    "score_predictions": ".metrics",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.pretrain.bench' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
