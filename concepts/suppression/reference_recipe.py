"""Suppression as the reference of a bundled model has it: a recipe, or why there is none, with the figures of there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.files import read_json, write_json
from dermaudit.run.records import Made
from dermaudit.sae.run_data import POOLED, RunData
from dermaudit.towers.loading.reference import ReferenceFiles


def concepts_of_reference(data: RunData) -> list[str]:
    """Return the concepts whose suppression the reference has figures of; [] for a run with an SAE of its own."""
    files = data.reference(POOLED)
    return [] if files is None else suppressed_concepts(files)


def suppressed_concepts(files: ReferenceFiles) -> list[str]:
    """Return the concepts whose suppression was tried for a reference."""
    names = (name for name in files.files if name.startswith("suppression/"))
    return sorted({Path(name).name.split(".")[0] for name in names})


def has_no_evidence(data: RunData, concept: str) -> bool:
    """Whether a run has neither a label of a concept nor was taught it, so that the reference is all there is."""
    truth = data.truth.get(concept)
    labelled = truth is not None and bool(np.isfinite(truth.values).any())
    return not labelled and f"teach:{concept}" not in data.stages


def copy_suppression(data: RunData, concept: str) -> Made[Any] | None:
    """Copy recipe and figures of a concept from the reference into the run; None where it has none. The figures say
    what they were measured on.

    EvidenceError where the reference could not measure the suppression either.
    """
    files = data.reference(POOLED)
    if files is None or concept not in suppressed_concepts(files):
        return None
    run, written = data.run, []
    effects, recipe = run.files.effects(concept), run.files.recipe(concept)
    if f"suppression/{effects.name}" not in files.files:
        known = read_json(files.file(f"suppression/{run.files.suppression_reason(concept).name}"))
        raise EvidenceError(
            f"{known['reason']} (reference of {files.model})", numbers=known["numbers"]
        )
    if f"recipes/{recipe.name}" in files.files:
        recipe.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files.file(f"recipes/{recipe.name}"), recipe)
        written.append(recipe)
    figures = {
        **read_json(files.file(f"suppression/{effects.name}")),
        "measured_on": {"reference": files.model, **files.made_from},
    }
    write_json(effects, figures)
    return [*written, effects], figures
