"""The list of named latents that `dermaudit concepts` prints."""

from __future__ import annotations

from typing import Any

from dermaudit.console import table
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData
from dermaudit.sae.run_rows import ConceptRow

HEADER = ("site", "latent", "name", "type", "z", "q", "active on", "label AUPRC")


def list_concepts(run: Run, unnamed: bool) -> dict[str, Any]:
    """Print and return the named latents, with `unnamed` also the others.

    Raises StaleArtifactError if the names, or anything that they were made from, changed.
    """
    rows = RunData(run).concepts
    shown = [row for row in rows if unnamed or row["name"]]
    n_named = sum(bool(row["name"]) for row in rows)
    title = f"{run.path}: {n_named} of {len(rows)} live latents are named"
    table(title, HEADER, [_line(row) for row in shown])
    listed = [{key: row[key] for key in row if key != "top_rows"} for row in shown]
    return {"run": str(run.path), "concepts": listed}


def _line(row: ConceptRow) -> tuple[object, ...]:
    def number(key: str, digits: int) -> str:
        return "" if row[key] is None else f"{row[key]:.{digits}f}"

    name = row["name"] or f"unnamed ({row['reason']})"
    figures = number("z", 2), number("q", 3), row["n_active"], number("label_auprc", 2)
    return row["site"], row["latent"], name, row["type"] or "", *figures
