"""Benchmarks of foundation models side by side: zero-shot, retrieval, probes, concept annotation.

Every figure is of the whole set, with an interval over groups and paired tests between models.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Predictions": ".inputs.saved_predictions",
    "read_predictions": ".inputs.saved_predictions",
    "score_predictions": ".measures.metrics",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.bench' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
