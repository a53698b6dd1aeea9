"""The stage `annotate`: the best latent of every labelled concept, in labels.parquet."""

from __future__ import annotations

import shlex
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.console import say, table
from dermaudit.failpoints import hit
from dermaudit.files import write_parquet
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData

from ..results import interval_text, rounded
from .lift_share import ABSENT, LabelEvidence, latents_by_label

TEXT_COLUMNS = {"concept", "type", "site", "pair_site", "reason"}
INTEGER_COLUMNS = {"latent", "pair_latent", "n", "n_pos"}


ANNOTATE = Record("annotate", reads=("images", "embed", "fit:*"), writes=("labels.parquet",))


@stage("annotate", StageOptions, ANNOTATE)
def annotate_run(run: Run, options: StageOptions = StageOptions()) -> dict[str, Any]:
    """Compare latents with labels: the best latent of every known concept.

    Its lift share is measured on test images. Without labels the stage records that nothing was measured.
    """
    seed = run.seed(options.seed)
    path = run.files.labels

    def make() -> Made[dict[str, Any]]:
        evidence = latents_by_label(RunData(run), seed=seed)
        write_parquet(path, _label_table(evidence))
        hit("annotate")
        reason = None if evidence else "no labels: not measured"
        return [path], {"concepts": len(evidence), "reason": reason}

    summary = run.perform(ANNOTATE, {"seed": seed}, make, force=options.force)
    rows = pq.read_table(path).to_pylist()
    if rows:
        table(
            "best latent by label (test split)",
            (
                "concept",
                "type",
                "n+",
                "site",
                "latent",
                "AUPRC",
                "probe",
                "lift share",
                "of a pair",
            ),
            [_label_line(LabelEvidence(**row)) for row in rows],
        )
        _say_absent(run, rows)
    else:
        say("  no labels: not measured")
    return {"run": str(run.path), **summary, "labels": {row["concept"]: row for row in rows}}


def _say_absent(run: Run, rows: list[dict[str, Any]]) -> None:
    """Print the concepts that the dictionary lacks, and how one is taught; a diagnosis is not taught."""
    absent = [row for row in rows if row["absent"]]
    if not absent:
        return
    line = f"  a probe sees these concepts, and no latent does (lift share below {ABSENT}): "
    line += ", ".join(row["concept"] for row in absent)
    taught = [row["concept"] for row in absent if row["type"] != "diagnosis"]
    if taught:
        line += (
            f"; teach one: dermaudit concepts teach {taught[0]} --run {shlex.quote(str(run.path))}"
        )
    say(line)


def _label_line(found: LabelEvidence) -> tuple[object, ...]:
    start = found.concept, found.type, found.n_pos
    if found.auprc is None or found.site is None:
        return *start, "", "", "", "", found.reason, ""
    lift = found.reason
    if found.lift_share is not None:
        interval = interval_text(found.lift_share_lo, found.lift_share_hi)
        lift = f"{found.lift_share:.2f} {interval}"
    site = found.site.removeprefix("visual.")
    pair = "" if found.pair_lift_share is None else f"{found.pair_lift_share:.2f}"
    probe = "" if found.probe_auprc is None else f"{found.probe_auprc:.3f}"
    return *start, site, found.latent, f"{found.auprc:.3f}", probe, lift, pair


def _label_table(evidence: list[LabelEvidence]) -> pa.Table:
    kinds = {name: pa.string() for name in TEXT_COLUMNS}
    kinds |= {name: pa.int64() for name in INTEGER_COLUMNS} | {"absent": pa.bool_()}
    schema = pa.schema([(f.name, kinds.get(f.name, pa.float64())) for f in fields(LabelEvidence)])
    return pa.Table.from_pylist([rounded(asdict(found), 9) for found in evidence], schema)
