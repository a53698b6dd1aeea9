"""The stage `compare`: concept bottlenecks at an equal number of concepts, in bottlenecks.parquet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dermaudit.console import say, table
from dermaudit.errors import EvidenceError, unknown
from dermaudit.files import write_parquet
from dermaudit.options import option
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import Record, StageOptions, stage
from dermaudit.sae.run_data import RunData

from ..inputs import THREADS_HELP, VOCABULARY_HELP, tower_of, vocabulary_of
from ..results import interval_text, make_or_give_reason, rounded
from ..vocabulary.vocabulary import Vocabulary
from . import bottleneck

KINDS = ("sae", "vocabulary", "random", "probe")


COMPARE = Record(
    "compare",
    reads=("images", "embed", "fit:*"),
    writes=("bottlenecks.parquet", "bottlenecks.reason.json"),
)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(StageOptions):
    """The options of `compare`."""

    task: str = option("mel", "the label that is predicted against the rest")
    nec: int = option(bottleneck.NEC, "effective concepts of every bottleneck", minimum=1)
    vocabulary: str | None = option(None, VOCABULARY_HELP)
    threads: int = option(1, THREADS_HELP, minimum=1)


@stage("compare", CompareOptions, COMPARE)
def compare(run: Run, options: CompareOptions) -> dict[str, Any]:
    """Compare concept bottlenecks at an equal number of effective concepts (NEC).

    Compared are the SAE codes, the vocabulary, random words, and the probe on the full embedding.
    """
    words = vocabulary_of(run, options.vocabulary)
    return compare_run(run, words, tower_of(run, options.threads), options)


def compare_run(
    run: Run, vocabulary: Vocabulary, tower: Any, options: CompareOptions = CompareOptions()
) -> dict[str, Any]:
    """Compare bottlenecks at equal NEC: SAE codes, the vocabulary, random words; and the full probe.

    Too few images are recorded as the result, with the reason. UserInputError for an unknown task.
    """
    seed, task, nec = run.seed(options.seed), options.task, options.nec
    data = RunData(run)
    path = run.files.bottlenecks
    labels = sorted(set(data.labels) - {""})
    if labels and task not in labels:
        raise unknown("label", task, labels)

    def make() -> Made[dict[str, Any]]:
        if not labels:
            raise EvidenceError("no labels: not measured")
        vectors, distractors = vocabulary.text_vectors(tower)
        rows = bottleneck.compare(
            data, vocabulary, vectors, distractors, task=task, nec=nec, seed=seed
        )
        write_parquet(path, pa.Table.from_pylist([rounded(vars(row), 9) for row in rows]))
        figures = {row.kind: {"auroc": row.auroc, "ci": [row.lo, row.hi]} for row in rows}
        return [path], rounded({"nec": nec, "task": task, **figures})

    summary = run.perform(
        COMPARE,
        {"seed": seed, "task": task, "nec": nec, "vocabulary": vocabulary.sha256()},
        lambda: make_or_give_reason(make, run.files.bottlenecks_reason, path),
        force=options.force,
    )
    if "reason" in summary:
        say(f"  bottlenecks: {summary['reason']}")
        return {"run": str(run.path), **summary}
    figures = [(kind, summary[kind]) for kind in KINDS if kind in summary]
    table(
        f"{task} against the rest with {nec} concepts (test AUROC)",
        ("kind", "AUROC", "95 % interval"),
        [(kind, f"{f['auroc']:.3f}", interval_text(*f["ci"], digits=3)) for kind, f in figures],
    )
    return {"run": str(run.path), **summary}
