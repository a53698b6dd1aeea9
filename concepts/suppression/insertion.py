"""What a drawn artifact does to the prediction, before and after its suppression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dermaudit.heads import LinearHead, probe_score
from dermaudit.sae.run_data import POOLED

from .figures import InsertionFigures
from .methods.registry import ChoiceData
from .trap import Trap

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

INSERTIONS = 60  # test images that the artifact is drawn onto
BATCH = 32
MIN_SHIFT = 0.005  # mean |Δp| below which the ratio after / before is noise


def measure_insertion(
    given: ChoiceData,
    head: LinearHead,
    trap: Trap,
    latents: list[int],
    tower: HookedTower | None,
    seed: int,
) -> InsertionFigures:
    """Draw the artifact onto test images that lack it, and measure mean |Δp| before and after."""
    from dermaudit.phantom import ARTIFACTS

    data, editor, concept = given.data, given.editor, given.concept
    if tower is None:
        return _no_residual("no model at hand")
    if concept not in ARTIFACTS:
        return _no_residual(f"{concept} cannot be drawn")
    from dermaudit.data import read_image
    from dermaudit.phantom import draw_artifact
    from dermaudit.sae.embed.embed import activations

    free = trap.test[trap.a[trap.test] == 0][:INSERTIONS]
    drawn = [
        draw_artifact(concept, read_image(data.image_path(row)), seed=seed * 1_000_003 + int(row))[
            0
        ]
        for row in free
    ]
    inserted = np.concatenate(
        [
            activations(tower, drawn[i : i + BATCH], [POOLED])[POOLED]
            for i in range(0, len(drawn), BATCH)
        ]
    )

    def shift(latents: list[int]) -> np.floating:
        with_artifact = probe_score(head, editor.rows(latents, inserted))
        without = probe_score(head, editor.rows(latents, given.x[free]))
        return np.abs(sigmoid(with_artifact) - sigmoid(without)).mean()

    before, after = shift([]), shift(latents)
    if before < MIN_SHIFT:
        found = _no_residual(f"drawing {concept} moves the prediction by {before:.4f} only")
    else:
        found = InsertionFigures(insertion_residual=float(after / before))
    return {
        **found,
        "insertion_n": len(free),
        "insertion_before": float(before),
        "insertion_after": float(after),
    }


def _no_residual(reason: str) -> InsertionFigures:
    return {"insertion_residual": None, "insertion_residual_reason": reason}


def sigmoid(x: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits, which are clipped at ±60: beyond it exp overflows."""
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))
