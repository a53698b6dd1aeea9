"""How good a dictionary is, on rows and images it was not fitted on.

Each figure comes with n, an interval by bootstrap over groups, and a control (figure.py). `measure`
gathers what there is for one SAE; `metrics_table` prints it.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "fvu": "reconstruction",
    "held_out_metrics": "reconstruction",
    "Reconstruction": "reconstruction",
    "reconstruction_report": "reconstruction",
    "Monosemanticity": "monosemanticity",
    "monosemanticity_report": "monosemanticity",
    "stability_report": "stability",
    "recovered_report": "recovered",
    "probe_report": "probes",
    "truth_report": "truth",
    "synthetic_rows": "synthetic",
    "Images": "measured",
    "measure": "measured",
    "metrics_table": "measured",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
