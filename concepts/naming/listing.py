"""The list of named latents that `dermaudit concepts` prints."""

from __future__ import annotations

from typing import Any, cast

from dermaudit.console import table
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData

from .concept_rows import ConceptRow

HEADER = ("site", "latent", "name", "by", "p", "type", "z", "q", "active on", "label AUPRC")


def list_concepts(run: Run, unnamed: bool) -> dict[str, Any]:
    """Print and return the named latents, with `unnamed` also the others.

    Raises StaleArtifactError if the names, or anything that they were made from, changed.
    """
    rows = cast(list[ConceptRow], RunData(run).concepts)
    shown = [row for row in rows if unnamed or row["name"] or row["one_of"]]
    n_named, n_sets = (sum(bool(row[key]) for row in rows) for key in ("name", "one_of"))
    title = (
        f"{run.path}: {n_named} of {len(rows)} live latents are named, {n_sets} are one of a set"
    )
    table(title, HEADER, [_line(row) for row in shown])
    listed = [{key: row[key] for key in row if key != "top_rows"} for row in shown]
    return {"run": str(run.path), "concepts": listed}


def _line(row: ConceptRow) -> tuple[object, ...]:
    def number(value: float | None, digits: int) -> str:
        return "" if value is None else f"{value:.{digits}f}"

    answer = (
        " or ".join(row["one_of"] or ()) or row["name"] or f"{row['verdict']} ({row['reason']})"
    )
    figures = (
        number(row["z"], 2),
        number(row["q"], 3),
        row["n_active"],
        number(row["label_auprc"], 2),
    )
    by, p = row["named_by"] or "", number(row["p_correct"], 2)
    return row["site"], row["latent"], answer, by, p, row["type"] or "", *figures
