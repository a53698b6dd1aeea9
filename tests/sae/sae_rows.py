"""Rows with planted directions, and random SAEs: what the tests of this folder are made of."""

from __future__ import annotations

import numpy as np
import torch

from dermaudit.sae import ThresholdSAE
from dermaudit.sae.evaluation import accumulate
from dermaudit.sae.inference.model import LinearSAE, ReLUSAE, TopKSAE


def planted(n: int, seed: int = 0, d: int = 24, h: int = 40) -> np.ndarray:
    """Unit rows (n, d), each a mean plus about three of `h` fixed directions (of seed 0)."""
    directions = np.random.default_rng(0).normal(size=(h, d))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    rng = np.random.default_rng([seed, 1])
    code = (rng.random((n, h)) < 3 / h) * (1 + rng.random((n, h)))
    rows = code @ directions + 2 * directions[0] + 0.05 * rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_sae(d: int = 8, h: int = 12, seed: int = 0, threshold: float = 0.1) -> ThresholdSAE:
    """A threshold SAE with random weights and unit decoder rows."""
    g = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(h, d, generator=g), dim=1)
    return ThresholdSAE(
        W_enc=torch.randn(d, h, generator=g),
        W_dec=W_dec,
        b_enc=0.1 * torch.randn(h, generator=g),
        b_dec=0.1 * torch.randn(d, generator=g),
        threshold=torch.full((h,), threshold),
        metadata={"hook_name": "visual.pooled", "model_name": "toy"},
    )


def random_topk(d: int = 8, h: int = 12, k: int = 3, seed: int = 0) -> TopKSAE:
    """The same weights as `random_sae`, with decoder rows of different lengths."""
    sae = random_sae(d, h, seed)
    scale = torch.linspace(0.5, 2.0, h)[:, None]
    return TopKSAE(
        sae.W_enc, sae.W_dec * scale, sae.b_enc, sae.b_dec, k, metadata=dict(sae.metadata)
    )


def random_relu(d: int = 8, h: int = 12, seed: int = 0) -> ReLUSAE:
    """The same weights as `random_sae`, without a threshold."""
    sae = random_sae(d, h, seed)
    return ReLUSAE(sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, metadata=dict(sae.metadata))


def held_out(sae: LinearSAE, rows: np.ndarray | torch.Tensor) -> dict[str, float]:
    """The figures of an SAE on rows, without intervals."""
    report = accumulate(sae, rows).report(n_draws=0)
    return {name: report[name]["value"] for name in ("fvu", "l0", "dead", "dense")}
