"""The stage `report`: the self-contained HTML report of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.console import say
from dermaudit.errors import UserInputError
from dermaudit.options import option
from dermaudit.run.directory import Run
from dermaudit.run.stages import Record, StageOptions, stage

REPORT = Record("report", reads=("*?",), writes=("report/index.html",))


@dataclass(frozen=True, kw_only=True)
class ReportOptions(StageOptions):
    """Where the report is written."""

    out: Path | None = option(None, "HTML file (default: report/index.html in the run)")
    force: bool = option(False, "write it again, over a file that is there")


@stage("report", ReportOptions, REPORT, opens="newest")
def report(run: Run, options: ReportOptions) -> dict[str, Any]:
    """Write the report of a run: one HTML file that needs no network."""
    out = options.out
    if out is not None and out.is_dir():
        raise UserInputError(f"{out} is a folder", "name an .html file with --out")
    if out is not None and out.exists() and not options.force:
        raise UserInputError(f"{out} exists", "use --force to overwrite it, or another --out")
    from .report import write_report

    path, size = write_report(run.path, out, force=options.force)
    say(f"  report: {path} ({size / 1e6:.1f} MB, self-contained)")
    return {"report": str(path), "bytes": size}
