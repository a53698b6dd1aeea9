"""The Streamlit explorer of a run, and the HTML report of it.

Both read only the folder of the run (docs/formats.md). No model is run here.
"""

from __future__ import annotations

import importlib
from typing import Any

if __name__ != "dermaudit.dashboards":
    raise ImportError("import dermaudit.dashboards, not the bare folder 'dashboards'")

_PUBLIC = {"RunView": ".exhibits.run_view", "write_report": ".report.report"}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dermaudit.dashboards' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name], __name__), name)
