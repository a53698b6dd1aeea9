"""Suppression of a stored embedding, in numpy: the closed form of sae/suppressor.py without torch.

`x' = x + Σ_{j∈S} (0 − z_j) W_dec[j]`, rows re-normalised only where one of S fired. A test holds it
to the module that `dermaudit suppress` uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def encode(weights: dict[str, np.ndarray], x: np.ndarray, latents: Sequence[int]) -> np.ndarray:
    """Codes (n, |S|) of some latents for rows x (n, d)."""
    index = np.asarray(latents, dtype=np.int64)
    pre = (x - weights["b_dec"]) @ weights["W_enc"][:, index] + weights["b_enc"][index]
    return np.where(pre > weights["threshold"][index], np.maximum(pre, 0.0), 0.0)


def suppress(
    weights: dict[str, np.ndarray],
    x: np.ndarray,
    latents: Sequence[int],
    *,
    renormalise: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """(rows after, fired (n,)) of rows x (n, d); a row in which nothing fires comes back unchanged."""
    z = encode(weights, x, latents)
    fired = (z > 0).any(1)
    edited = x - z @ weights["W_dec"][np.asarray(latents, dtype=np.int64)]
    if renormalise:
        length = np.linalg.norm(edited, axis=1, keepdims=True)
        edited = edited * (np.linalg.norm(x, axis=1, keepdims=True) / np.maximum(length, 1e-12))
    return np.where(fired[:, None], edited, x), fired
