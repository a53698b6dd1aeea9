"""The stage `annotate`: the best latent of every labelled concept, in labels.parquet."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.console import say, table
from dermaudit.failpoints import hit
from dermaudit.files import write_parquet
from dermaudit.run.directory import Run
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData
from dermaudit.sae.run_rows import LabelRow

from ..results import Made, interval_text, rounded
from .lift_share import LabelEvidence, latents_by_label

TEXT_COLUMNS = {"concept", "type", "site", "reason"}
INTEGER_COLUMNS = {"latent", "n", "n_pos"}


ANNOTATE = Record("annotate", reads=("images", "embed", "fit:*"), writes=("labels.parquet",))


@stage("annotate", StageOptions, ANNOTATE)
def annotate_run(run: Run, options: StageOptions = StageOptions()) -> dict[str, Any]:
    """Compare latents with labels: the best latent of every known concept.

    Its lift share is measured on test images. Without labels the stage records that nothing was measured.
    """
    seed = run.seed(options.seed)
    path = run.files.labels

    def make() -> Made:
        evidence = latents_by_label(RunData(run), seed=seed)
        write_parquet(path, _label_table([e.as_row() for e in evidence]))
        hit("annotate")
        reason = None if evidence else "no labels: not measured"
        return [path], {"concepts": len(evidence), "reason": reason}

    summary = run.perform(ANNOTATE, {"seed": seed}, make, force=options.force)
    rows = pq.read_table(path).to_pylist()
    if rows:
        table(
            "best latent by label (test split)",
            ("concept", "type", "n+", "site", "latent", "AUPRC", "probe", "lift share"),
            [_label_line(row) for row in rows],
        )
    else:
        say("  no labels: not measured")
    return {"run": str(run.path), **summary, "labels": {row["concept"]: row for row in rows}}


def _label_line(row: LabelRow) -> tuple[object, ...]:
    start = row["concept"], row["type"], row["n_pos"]
    if row["auprc"] is None:
        return *start, "", "", "", "", row["reason"]
    lift = row["reason"]
    if row["lift_share"] is not None:
        interval = interval_text(row["lift_share_lo"], row["lift_share_hi"])
        lift = f"{row['lift_share']:.2f} {interval}"
    site = (row["site"] or "").removeprefix("visual.")
    return *start, site, row["latent"], f"{row['auprc']:.3f}", f"{row['probe_auprc']:.3f}", lift


def _label_table(rows: list[LabelRow]) -> pa.Table:
    def kind(name: str) -> pa.DataType:
        if name in TEXT_COLUMNS:
            return pa.string()
        return pa.int64() if name in INTEGER_COLUMNS else pa.float64()

    names = LabelEvidence("", "").as_row()
    return pa.table({n: pa.array([rounded(r[n], 9) for r in rows], kind(n)) for n in names})
