"""The stage `measure:<site>`: all figures of the SAEs of a run on its test images."""

from __future__ import annotations

from typing import Any

from dermaudit.run.directory import Run
from dermaudit.run.stages import stage

from .options import MEASURE, MeasureOptions


@stage("sae measure", MeasureOptions, MEASURE, in_audit=False)
def measure_saes(run: Run, options: MeasureOptions) -> dict[str, Any]:
    """Measure the sparse autoencoders of a run on its test images.

    Writes sae/<site>/measured.json.
    """
    from .measure_run import measure_run

    return {"run": str(run.path), "sites": measure_run(run, options)}
