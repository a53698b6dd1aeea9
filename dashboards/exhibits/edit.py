"""Suppression of a stored embedding in numpy, because pages do not load torch.

Tests compare it with the modules that the commands use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError
from dermaudit.files import read_json


@dataclass(frozen=True)
class Weights:
    """W_enc (d_in, d_sae), W_dec (d_sae, d_in), b_enc (d_sae,), b_dec (d_in,); `threshold` (d_sae,) of
    a pointwise SAE, or `k` of a per-sample TopK."""

    W_enc: np.ndarray
    W_dec: np.ndarray
    b_enc: np.ndarray
    b_dec: np.ndarray
    threshold: np.ndarray | None = None
    k: int | None = None

    @classmethod
    def load(cls, path: Path) -> Weights:
        """Of a `sae_weights.safetensors` and the cfg.json beside it, as sae/inference/model.py reads them."""
        from safetensors.numpy import load_file

        found = load_file(path)
        cfg = read_json(path.with_name("cfg.json"), "SAE config")
        W_enc, W_dec, b_enc, b_dec = (found[n] for n in ("W_enc", "W_dec", "b_enc", "b_dec"))
        if not cfg.get("apply_b_dec_to_input", True):
            b_enc = b_enc + b_dec @ W_enc
        if cfg.get("architecture") != "topk":
            return cls(W_enc, W_dec, b_enc, b_dec, found.get("threshold", np.zeros_like(b_enc)))
        if cfg.get("rescale_acts_by_decoder_norm"):
            norm = np.maximum(np.linalg.norm(W_dec, axis=1), 1e-8)
            W_enc, b_enc, W_dec = W_enc * norm, b_enc * norm, W_dec / norm[:, None]
        return cls(W_enc, W_dec, b_enc, b_dec, k=int(cfg["k"]))

    def fires_where(self, latent: int) -> str:
        """When a latent fires, as a clause."""
        if self.threshold is None:
            return f"among the {self.k} largest of its row (a TopK has no threshold)"
        return f"above its threshold of {float(self.threshold[latent]):.2f}"


def encode(weights: Weights, x: np.ndarray, latents: Sequence[int]) -> np.ndarray:
    """Codes (n, |S|) of some latents for rows x (n, d)."""
    index = np.asarray(latents, dtype=np.int64)
    if weights.threshold is not None:
        pre = (x - weights.b_dec) @ weights.W_enc[:, index] + weights.b_enc[index]
        return np.where(pre > weights.threshold[index], np.maximum(pre, 0.0), 0.0)
    # Whether one latent of a TopK fires depends on all of them.
    pre = (x - weights.b_dec) @ weights.W_enc + weights.b_enc
    kept = np.argpartition(-pre, weights.k - 1, axis=1)[:, : weights.k]
    codes = np.zeros_like(pre)
    np.put_along_axis(codes, kept, np.maximum(np.take_along_axis(pre, kept, 1), 0.0), 1)
    return codes[:, index]


def change(z: np.ndarray, operation: dict[str, Any]) -> np.ndarray:
    """z' − z (n, |S|) by the operation of a recipe (docs/formats.md). EvidenceError where the recipe
    does not hold the level that its mode needs."""
    mode = operation["mode"]
    needed = {"subtract": None, "reactive": "gate_level"}.get(mode, "level")
    if needed and operation.get(needed) is None:
        raise EvidenceError(f"the recipe holds no {needed} for its mode {mode}")
    if mode == "subtract":
        return -z
    if mode == "reactive":
        over = z.sum(1, keepdims=True) > np.float32(operation["gate_level"])
        return np.where(over, -z, np.float32(0))
    level = np.asarray(operation["level"], dtype=np.float32)
    if mode == "scale":
        return (level - 1) * z
    moved = np.minimum(level - z, 0) if mode == "clamp" else level - z
    return np.where(z > 0, moved, np.float32(0))


def suppress(
    weights: Weights, x: np.ndarray, latents: Sequence[int], operation: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(rows after, changed (n,)) of rows x (n, d): x' = x + Σ_{j∈S} (z'_j − z_j) W_dec[j]. A row in
    which nothing changes comes back as it was; others are re-normalised if the operation says so."""
    delta = change(encode(weights, x, latents), operation)
    changed = (delta != 0).any(1)
    edited = x + delta @ weights.W_dec[np.asarray(latents, dtype=np.int64)]
    if operation.get("renormalise", True):
        length = np.linalg.norm(edited, axis=1, keepdims=True)
        edited = edited * (np.linalg.norm(x, axis=1, keepdims=True) / np.maximum(length, 1e-12))
    return np.where(changed[:, None], edited, x), changed
