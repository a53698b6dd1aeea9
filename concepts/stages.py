"""The stages of a run that belong to concepts: each writes its files and enters itself in run.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.console import say, table
from dermaudit.errors import EvidenceError, UserInputError, unknown
from dermaudit.failpoints import hit
from dermaudit.files import write_json, write_parquet
from dermaudit.heads import fit_head
from dermaudit.run.directory import Run
from dermaudit.sae.run_data import RunData
from dermaudit.stats.intervals import MIN_CELL, auroc, auroc_interval

from .annotation import lift_share as lift
from .bottlenecks import bottleneck
from .suppression.recipe import rounded
from .vocabulary.vocabulary import Vocabulary


def finished_fits(run: Run) -> list[str]:
    """The finished SAE stages; UserInputError when there is none."""
    stages = [stage for stage in run.meta["stages"] if stage.startswith("fit:")]
    if not stages:
        raise UserInputError(
            f"the run {run.path} has no sparse autoencoder yet",
            f"run: dermaudit fit --run {run.path}",
        )
    for stage in stages:
        run.require(stage, "fit")
    return stages


def _refusing(
    make: Callable[[], tuple[list[Path], dict[str, Any]]], path: Path, *results: Path
) -> tuple[list[Path], dict[str, Any]]:
    """`make`, with a lack of evidence kept as the stage's result: its reason, in a file.

    Whichever of the two is written, what an earlier run left of the other (`results`) goes."""
    try:
        made = make()
        path.unlink(missing_ok=True)
        return made
    except EvidenceError as error:
        for old in results:
            old.unlink(missing_ok=True)
        write_json(path, {"reason": error.message, "numbers": rounded(error.numbers)})
        return [path], {"reason": error.message, "numbers": rounded(error.numbers)}


# ---- labels


def annotate_run(run: Run, *, seed: int = 0, force: bool = False) -> dict[str, Any]:
    """`labels.parquet`: the evidence of every known concept. Without labels it says so."""
    fits = finished_fits(run)

    def make() -> tuple[list[Path], dict[str, Any]]:
        data = RunData(run)
        rows = [evidence.as_row() for evidence in lift.latents_by_label(data, seed=seed)]
        path = run.file("labels.parquet")
        write_parquet(path, _label_table(rows))
        hit("annotate")
        return [path], {
            "concepts": len(rows),
            "reason": None if rows else "no labels: not measured",
        }

    summary = run.stage(
        "annotate", {"seed": seed}, make, upstream=["images", "embed", *fits], force=force
    )
    rows = pq.read_table(run.file("labels.parquet")).to_pylist()
    if not rows:
        say("  no labels: not measured")
    else:
        table(
            "best latent by label (test split)",
            ("concept", "type", "n+", "site", "latent", "AUPRC", "probe", "lift share"),
            [_label_line(row) for row in rows],
        )
    return {"run": str(run.path), **summary, "labels": {row["concept"]: row for row in rows}}


def _label_line(row: dict[str, Any]) -> tuple:
    if row["auprc"] is None:
        return row["concept"], row["type"], row["n_pos"], "", "", "", "", row["reason"]
    share = row["reason"]
    if row["lift_share"] is not None:
        share = f"{row['lift_share']:.2f} {_span(row['lift_share_lo'], row['lift_share_hi'])}"
    return (
        row["concept"],
        row["type"],
        row["n_pos"],
        row["site"].removeprefix("visual."),
        row["latent"],
        f"{row['auprc']:.3f}",
        f"{row['probe_auprc']:.3f}",
        share,
    )


def _span(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval in words; None where too few draws were defined."""
    if low is None or high is None:
        return "[interval undefined]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def _label_table(rows: list[dict[str, Any]]) -> pa.Table:
    names = list(lift.LabelEvidence("", "").as_row())
    texts, whole = {"concept", "type", "site", "reason"}, {"latent", "n", "n_pos"}
    return pa.table(
        {
            name: pa.array(
                [rounded(row[name], 9) for row in rows],
                pa.string() if name in texts else pa.int64() if name in whole else pa.float64(),
            )
            for name in names
        }
    )


# ---- bottlenecks and heads


def compare_run(
    run: Run,
    vocabulary: Vocabulary,
    tower: Any,
    *,
    task: str = "mel",
    nec: int = 5,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """`bottlenecks.parquet`; too few images are a result too (its reason)."""
    fits = finished_fits(run)
    data = RunData(run)
    labels = sorted(set(data.labels) - {""})
    if labels and task not in labels:
        raise unknown("label", task, labels)

    def make() -> tuple[list[Path], dict[str, Any]]:
        if not labels:
            raise EvidenceError("no labels: not measured")
        vectors, distractors = vocabulary.text_vectors(tower)
        rows = bottleneck.compare(
            data, vocabulary, vectors, distractors, task=task, nec=nec, seed=seed
        )
        path = run.file("bottlenecks.parquet")
        write_parquet(path, pa.Table.from_pylist([rounded(vars(row), 9) for row in rows]))
        figures = {row.kind: {"auroc": row.auroc, "ci": [row.lo, row.hi]} for row in rows}
        return [path], rounded({"nec": nec, "task": task, **figures})

    summary = run.stage(
        "compare",
        {"seed": seed, "task": task, "nec": nec, "vocabulary": vocabulary.sha256()},
        lambda: _refusing(
            make, run.file("bottlenecks.reason.json"), run.file("bottlenecks.parquet")
        ),
        upstream=["images", "embed", *fits],
        force=force,
    )
    if "reason" in summary:
        say(f"  bottlenecks: {summary['reason']}")
    else:
        table(
            f"{task} against the rest with {nec} concepts (test AUROC)",
            ("kind", "AUROC", "95 % interval"),
            [
                (
                    kind,
                    f"{summary[kind]['auroc']:.3f}",
                    _span(*summary[kind]["ci"], digits=3),
                )
                for kind in ("sae", "vocabulary", "random", "probe")
                if kind in summary
            ],
        )
    return {"run": str(run.path), **summary}


def fit_heads(run: Run, *, seed: int = 0, force: bool = False) -> dict[str, Any]:
    """`heads/label.safetensors`: what the run predicts with."""
    run.require("embed", "embed")
    data = RunData(run)

    def make() -> tuple[list[Path], dict[str, Any]]:
        if not set(data.labels) - {""}:
            raise EvidenceError("no labels: no head is fitted, predictions are zero-shot")
        train = np.flatnonzero(data.rows("train") & (data.labels != ""))
        counts = {
            label: int((data.labels[train] == label).sum()) for label in set(data.labels[train])
        }
        kept = np.array([row for row in train if counts[data.labels[row]] >= 3], dtype=int)
        head = fit_head(data.pooled[kept], data.labels[kept], data.groups[kept], seed=seed)
        path = run.file("heads", "label.safetensors")
        head.save(path)
        return [path], rounded(
            {
                "classes": head.classes,
                "C": head.C,
                "n_train": head.n_train,
                "test": _head_test(data, head),
            }
        )

    return run.stage(
        "heads",
        {"seed": seed},
        lambda: _refusing(
            make, run.file("heads", "label.reason.json"), run.file("heads", "label.safetensors")
        ),
        upstream=["images", "embed"],
        force=force,
    )


def _head_test(data: RunData, head: Any) -> dict[str, Any]:
    test = np.flatnonzero(data.rows("test") & np.isin(data.labels, head.classes))
    if len(test) < MIN_CELL:
        return {"n": len(test), "reason": "n too small"}
    p = head.probs(data.pooled[test])
    top = np.array(head.classes)[p.argmax(1)]
    recalls = [
        float((top[data.labels[test] == c] == c).mean())
        for c in head.classes
        if (data.labels[test] == c).any()
    ]
    found = {
        "n": len(test),
        "accuracy": float((top == data.labels[test]).mean()),
        "balanced_accuracy": float(np.mean(recalls)),
    }
    for i, label in enumerate(head.classes):
        y = (data.labels[test] == label).astype(float)
        if 5 <= y.sum() < len(test):
            found[f"auroc:{label}"] = [
                auroc(y, p[:, i]),
                *auroc_interval(y, p[:, i], data.groups[test], n_draws=300),
            ]
    return found


# ---- suppression


def known_concept(run: Run, vocabulary: Vocabulary, word: str) -> str:
    """The concept's name, from the run's labels or the vocabulary; the nearest is offered."""
    labelled = (
        set(pq.read_schema(run.file("images.parquet")).names)
        if run.file("images.parquet").is_file()
        else set()
    )
    names = sorted(
        {name.partition(":")[2] for name in labelled if name.startswith(("artifact:", "concept:"))}
    )
    if word in names:
        return word
    ids = [concept.id for concept in vocabulary.concepts]
    try:
        return vocabulary.concept(word).id
    except UserInputError as error:
        raise unknown("concept", word, sorted({*names, *ids})) from error


def recipe_run(
    run: Run,
    concept: str,
    tower: Any,
    *,
    target: str = "mel",
    strength: float = 0.9,
    seed: int = 0,
    vocabulary: Vocabulary,
    mode: str = "subtract",
    level: float | None = None,
    force: bool = False,
    refuse: bool = True,
) -> dict[str, Any]:
    """`recipes/<concept>.recipe.json` and `suppression/<concept>.json|.parquet`.

    Without evidence: EvidenceError when `refuse`, else the reason as the result."""
    from .suppression.make_recipe import make_recipe

    fits = finished_fits(run)
    data = RunData(run)

    def make() -> tuple[list[Path], dict[str, Any]]:
        recipe, figures, rows = make_recipe(
            data,
            concept,
            target=target,
            strength=strength,
            tower=tower,
            seed=seed,
            vocabulary_sha256=vocabulary.sha256(),
            mode=mode,
            level=level,
        )
        recipe.save(results[0])
        write_json(results[1], figures)
        if rows is not None:
            write_parquet(results[2], rows)
        hit("recipe")
        return results[: 2 if rows is None else 3], figures

    results = [
        run.file("recipes", f"{concept}.recipe.json"),
        run.file("suppression", f"{concept}.json"),
        run.file("suppression", f"{concept}.parquet"),
    ]

    reason_file = run.file("suppression", f"{concept}.reason.json")
    upstream = ["images", "embed", *fits, *(["name"] if "name" in run.meta["stages"] else [])]
    inputs = {
        "seed": seed, "target": target, "strength": strength, "vocabulary": vocabulary.sha256(),
    }  # fmt: skip
    if (
        mode != "subtract"
    ):  # the others are not named: a recipe of an earlier version is still the same
        inputs |= {"mode": mode, "level": level}
    figures = run.stage(
        f"recipe:{concept}",
        inputs,
        lambda: _refusing(make, reason_file, *results),
        upstream=upstream,
        force=force,
    )
    if "numbers" in figures:
        if refuse:
            raise EvidenceError(
                f"{concept}: {figures['reason']}", f"see {reason_file}", figures["numbers"]
            )
        say(f"  {concept}: {figures['reason']}")
    elif figures["worst_group_before"] is None:
        say(f"  {concept}: latents {figures['latents']} (by name); {figures['reason']}")
    else:
        low, high = figures["ci"]
        span = "undefined" if low is None else f"[{low:+.2f}, {high:+.2f}]"
        say(
            f"  {concept}: {len(figures['latents'])} latents, worst group {figures['worst_group_before']:.2f} → "
            f"{figures['worst_group_after']:.2f} (Δ {span}), beats "
            f"{figures['random_sets_beaten']} of {figures['random_sets']} random sets"
        )
    return figures
