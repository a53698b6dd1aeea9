"""A decoder against the true dictionary, where one exists (synthetic rows).

The definitions are those of `sae_lens.synthetic`, whose values these equal; MCC after
arXiv 2505.20254.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .stability import match, unit


def decoder_report(W_dec: np.ndarray, dictionary: np.ndarray, alive: np.ndarray) -> dict[str, Any]:
    """W_dec (h, d) and dictionary (m, d), both of any length; alive: mask (h,).

    `mcc`: mean |cosine| of the best one-to-one pairs. `best_cosine`: mean over true atoms of the
    largest |cosine| with any alive latent. `uniqueness`: how many different atoms are the nearest of
    an alive latent, over the number of alive latents.
    """
    W_dec = np.asarray(W_dec)[alive]
    if not len(W_dec):
        return {"mcc": None, "best_cosine": None, "uniqueness": None, "n_latents": 0}
    cosine = np.abs(unit(W_dec).astype(np.float64) @ unit(dictionary).astype(np.float64).T)
    rows, columns = match(cosine)
    return {
        "mcc": float(cosine[rows, columns].mean()),
        "best_cosine": float(cosine.max(0).mean()),
        "uniqueness": len(np.unique(cosine.argmax(1))) / len(W_dec),
        "n_latents": len(W_dec),
    }


def detector_report(
    codes: np.ndarray, factors: np.ndarray, W_dec: np.ndarray, dictionary: np.ndarray
) -> dict[str, float]:
    """Each latent as a detector (it fires or not) of the factor whose atom is nearest to its decoder:
    mean over latents of `precision`, `recall`, `f1`, `accuracy`; 0 where undefined.

    codes (n, h) and factors (n, m), not zero where active and present.
    """
    cosine = np.abs(unit(W_dec) @ unit(dictionary).T)
    fires = np.asarray(codes) != 0
    there = np.asarray(factors)[:, cosine.argmax(1)] > 0
    tp, fp, fn = ((a & b).sum(0) for a, b in ((fires, there), (fires, ~there), (~fires, there)))
    precision = _share(tp, tp + fp)
    recall = _share(tp, tp + fn)
    return {
        "precision": float(precision.mean()),
        "recall": float(recall.mean()),
        "f1": float(_share(2 * precision * recall, precision + recall).mean()),
        "accuracy": float((fires == there).mean()),
    }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
