"""The prevalence-matched operating point of a head of several classes, as a correction of one intercept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..evidence.operating_points import prevalence_matched_threshold

if TYPE_CHECKING:
    from jaxtyping import Float


def margin(logits: Float[np.ndarray, "n classes"], column: int) -> Float[np.ndarray, " n"]:
    """Return the logit of one class minus the highest of the others: above 0, the class is predicted."""
    others = np.delete(logits, column, axis=1)
    return logits[:, column] - others.max(1)


def intercept_correction(
    before: Float[np.ndarray, "n classes"], after: Float[np.ndarray, "n classes"], column: int
) -> float:
    """Return what is added to the logit of a class after suppression, so that it is predicted for as many
    images as before. `before`, `after`: logits of the same images; no labels are needed.
    """
    return -prevalence_matched_threshold(margin(before, column), 0.0, margin(after, column))
