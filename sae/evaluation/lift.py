"""How well single latents rank a labelled concept, beside a supervised probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dermaudit.stats.intervals import auprc_table

if TYPE_CHECKING:
    from jaxtyping import Float

MIN_DENOMINATOR = (
    0.10  # of the AUPRC of the probe above the prevalence: with less, the share is undefined
)


def choice_table(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]
) -> Float[np.ndarray, "truths latents"]:
    """Return the harmonic mean of the AUPRC on train and on val of every latent for every truth, nan where one
    is undefined.

    `train` and `val` are (codes (n, latents), truths (n, truths) of 1, 0, nan). Val alone has too few positives for
    a rare concept, and on train alone a latent that memorised its images would win.
    """
    first, second = auprc_table(*train), auprc_table(*val)
    return 2 / (1 / first + 1 / second)


def lift_share(latent: float, probe: float, prevalence: float) -> float | None:
    """Return (latent − prevalence) / (probe − prevalence) of AUPRCs; None below MIN_DENOMINATOR."""
    denominator = probe - prevalence
    return (latent - prevalence) / denominator if denominator >= MIN_DENOMINATOR else None
