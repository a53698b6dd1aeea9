"""The limits of a run: what could not be measured and why, and when not to use its results."""

from __future__ import annotations

from collections import Counter

import numpy as np

from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.errors import DermauditError
from dermaudit.stats.intervals import MIN_CELL

from . import overview
from .run_view import RunView

UNMEASURED = "What could not be measured, and why"
DO_NOT_USE = "Do not use this run if"


def unmeasured(view: RunView) -> list[tuple[str, str]]:
    """Return (what, why) of everything that has no number in this run."""
    missing: list[tuple[str, str]] = []
    for what, make in (
        ("artifacts by label", overview.artifact_prevalence),
        ("skin tones", overview.skin_tones),
        ("sparse autoencoders", overview.sae),
        ("names", overview.naming),
        ("concepts with a label", overview.found),
        ("bottlenecks", overview.bottleneck),
        ("the run's head", overview.head),
    ):
        try:
            make(view)
        except DermauditError as error:
            missing.append((what, error.message))
            continue
        if make is overview.found:
            missing += [
                (
                    r["concept"] if r["auprc"] is None else f"lift share of {r['concept']}",
                    r["reason"],
                )
                for r in view.label_rows
                if r["reason"]
            ]
        if make is overview.naming:
            if view.naming.get("wrong_among_named") is None:
                missing.append(("wrong names", "no name has a label to be judged by"))
            if all(row["p_correct"] is None for row in view.concepts if row["name"]):
                missing.append(
                    ("probability that a name is correct", "the naming method does not give one")
                )
    if not view.suppressions:
        missing.append(("suppression", "no recipe was made in this run (dermaudit recipe make)"))
    for concept in view.suppressions:
        try:
            figures_of = view.suppression(concept)
        except DermauditError as error:
            missing.append((f"suppression of {concept}", error.message))
            continue
        if "cross_group_auroc_before" not in figures_of:
            missing.append((f"effect of suppressing {concept}", str(figures_of.get("reason"))))
        missing += [
            (f"{key.removesuffix('_reason').replace('_', ' ')} of {concept}", str(why))
            for key, why in figures_of.items()
            if key.endswith("_reason") and why
        ]
    skipped = (view.run.meta.get("data") or {}).get("n_skipped")
    if skipped:
        missing.append((f"{skipped} images", "could not be decoded (skipped.parquet names them)"))
    return missing


def do_not_use_if(view: RunView) -> list[str]:
    """Return when the results of this run must not be used, from its own numbers."""
    lines = [
        "a decision about a patient depends on it: this is research software, not a medical device",
        "your images come from another camera, site or population than the images of this run: "
        "nothing here was measured on them",
    ]
    tones = Counter(view.column("skin_tone")[view.splits == "test"])
    few = sorted(t for t, n in tones.items() if t and n < MIN_CELL)
    if set(tones) <= {""}:
        lines.append("results by skin tone matter to you: the manifest records none")
    elif few:
        lines.append(
            f"your patients have skin tone {', '.join(few)}: fewer than {MIN_CELL} test images each"
        )
    without = [c for c in view.suppressions if not view.has_recipe(c)]
    if without:
        lines.append(
            f"you need {', '.join(without)} suppressed: the evidence does not allow a recipe"
        )
    for concept in view.suppressions:
        if concept in without:
            continue
        try:
            limits = load_recipe(view.run, concept).body["limits"]
        except DermauditError as error:
            lines.append(f"you need {concept} suppressed: {error.message}")
            continue
        lines += [f"you rely on the recipe for {concept}: {limit}" for limit in limits]
    test = int(np.sum(view.splits == "test"))
    if test < MIN_CELL:
        lines.append(f"you need an error bar: the run has {test} test images")
    return lines
