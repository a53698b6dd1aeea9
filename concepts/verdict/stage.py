"""The stage `verdict`: one line for each artifact of a run, in verdict.parquet."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import pyarrow as pa

from dermaudit.console import table
from dermaudit.errors import DermauditError, EvidenceError
from dermaudit.files import write_parquet
from dermaudit.options import option
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData

from ..inputs import THREADS_HELP, artifacts_of, tower_of, vocabulary_of
from ..results import interval_text, rounded

VERDICT = Record(
    "verdict",
    reads=("images", "embed", "heads?", "name?", "recipe:*?"),
    writes=("verdict.parquet",),
)
Badge = Literal["act", "watch", "clear", "not measured"]
SCHEMA = pa.schema(
    [
        ("concept", pa.string()),
        ("seen", pa.float64()),
        ("relied_on", pa.bool_()),
        ("helps", pa.string()),
        ("cost", pa.float64()),
        ("badge", pa.string()),
        ("reason", pa.string()),
        ("figures", pa.string()),
    ]
)
HEADER = ("artifact", "badge", "seen", "leaned on: change of p", "suppression helps", "cost", "")


class Verdict(TypedDict):
    """One artifact. `seen`: AUROC of a concept latent for it. `relied_on`: whether the head of the run leans on
    it. `helps`: at which operating points its suppression helps a trap head; None where this was not measured.
    `cost`: change of the AUROC of images without it. `reason` says what was not measured, and why. `figures`:
    those of reliance.Reliance, and of drawn.DrawnChange under `drawn` (else `drawn_reason`).
    """

    concept: str
    seen: float | None
    relied_on: bool | None
    helps: str | None
    cost: float | None
    badge: Badge
    reason: str | None
    figures: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class VerdictOptions(StageOptions):
    """What is judged."""

    target: str = option("mel", "the label whose prediction must not depend on an artifact")
    threads: int = option(1, THREADS_HELP, minimum=1)


@stage("verdict", VerdictOptions, VERDICT, opens="newest")
def verdict(run: Run, options: VerdictOptions = VerdictOptions()) -> dict[str, Any]:
    """Say for each artifact: is it seen, does the head of the run lean on it, does suppression help?

    Badges: act (leaned on, and there is a recipe), watch (leaned on, no recipe), clear (not leaned on), not
    measured. Every answer has its figures (docs/formats.md).
    """
    path = run.files.verdict

    def make() -> Made[dict[str, str]]:
        rows = _verdicts(run, options)
        columns = [{**row, "figures": json.dumps(row["figures"], sort_keys=True)} for row in rows]
        write_parquet(path, pa.Table.from_pylist(columns, SCHEMA))
        return [path], {"target": options.target}

    inputs = {"seed": run.seed(options.seed), "target": options.target}
    run.perform(VERDICT, inputs, make, force=options.force)
    rows = RunData(run).verdict
    print_verdict(rows)
    return {"run": str(run.path), "verdict": rows}


def _verdicts(run: Run, options: VerdictOptions) -> list[Verdict]:
    """Return the verdict on each artifact: first those that the head leans on most."""
    from .judge import Judge

    data = RunData(run)
    options = replace(options, seed=run.seed(options.seed))
    judge = Judge(data, tower_of(run, options.threads), options)
    rows = [_verdict(data, concept, judge) for concept in artifacts_of(run, vocabulary_of(run))]

    def order(row: Verdict) -> tuple[bool, bool, float, str]:
        change = abs(row["figures"]["change"]) if row["figures"] else 0.0
        return row["figures"] is None, not row["relied_on"], -change, row["concept"]

    return sorted(rows, key=order)


def _verdict(data: RunData, concept: str, judge: Any) -> Verdict:
    figures, relied_on, reasons = None, None, []
    try:
        relied_on, figures = judge.measure(concept)
    except EvidenceError as error:
        reasons.append(error.message)
    helps, cost, why = suppression_of(data, concept)
    if why is not None:
        reasons.append(why)
    if relied_on is None:
        badge: Badge = "not measured"
    elif not relied_on:
        badge = "clear"
    else:
        badge = "act" if data.has_recipe(concept) else "watch"
    row = Verdict(
        concept=concept,
        seen=None if figures is None else figures["seen"],
        relied_on=relied_on,
        helps=helps,
        cost=cost,
        badge=badge,
        reason="; ".join(reasons) or None,
        figures=figures,
    )
    return rounded(row)


def suppression_of(data: RunData, concept: str) -> tuple[str | None, float | None, str | None]:
    """Return at which operating points suppression helps a trap head, its cost, and why there is no recipe."""
    if f"recipe:{concept}" not in data.stages:
        return None, None, "its suppression was not tried"
    try:
        found = data.suppression(concept)
    except DermauditError as error:
        return None, None, f"no recipe: {error.message}"
    refused = "; ".join(found["refused"])
    why = f"no recipe: {refused}" if refused and not found["accepted_limits"] else None
    if "cross_group_auroc_before" not in found:
        return None, None, f"suppression not measured: {found['reason']}"
    low = found["ci"][0]
    points = ["without a threshold"] if low is not None and low > 0 else []
    before = found["worst_group_before"]
    for name, key in (("unchanged", "fixed"), ("prevalence-matched", "prevalence")):
        after = found[f"worst_group_{key}"]
        if before is not None and after is not None and after > before:
            points.append(f"{name} threshold")
    helps = ", ".join(points) or "no"
    if "measured_on" in found:
        helps += " (measured on the reference)"
    return helps, found["clean_auroc_delta"], why


def leaning_text(row: dict[str, Any]) -> str:
    """Return whether the head leans on the artifact, with the change of p(target) by its suppression."""
    figures = row["figures"]
    if figures is None:
        return "not measured"
    return (
        f"{'yes' if row['relied_on'] else 'no'}: {figures['change']:+.3f} "
        f"{interval_text(*figures['change_ci'], digits=3)}, {figures['random_beaten']} of 100 random latents"
    )


def print_verdict(rows: list[dict[str, Any]]) -> None:
    """Print the table."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else f"{value:{form}}"

    table(
        "verdict: does the head of this run lean on an artifact?",
        HEADER,
        [
            (
                row["concept"],
                row["badge"],
                number(row["seen"], ".2f"),
                leaning_text(row),
                row["helps"] or "not measured",
                number(row["cost"], "+.3f"),
                row["reason"] or "",
            )
            for row in rows
        ],
    )
