"""The quality of an SAE on rows and images that it was not fitted on.

Each figure has n, an interval by bootstrap over groups, and a control (figure.py). `measure` computes all
figures of one SAE; `metrics_table` prints them.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "Reconstruction": "reconstruction",
    "accumulate": "reconstruction",
    "Monosemanticity": "monosemanticity",
    "monosemanticity_report": "monosemanticity",
    "stability_report": "stability",
    "recovered_report": "recovered",
    "probe_report": "probes",
    "truth_report": "truth",
    "EvaluationImages": "images",
    "MeasurementData": "measured",
    "measure": "measured",
    "metrics_table": "measured",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
