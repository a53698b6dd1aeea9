"""From the units of training to those of the rows: the fold, and thresholds at which the mean L0 is k."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import torch

from ..inference.model import ThresholdSAE, TopKSAE
from ..store.loader import release
from .architectures.registry import architecture
from .recipe import SAERecipe

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

MOST = 32_768  # rows that thresholds are calibrated on
_CELLS = 1 << 23  # of their pre-activations at a time


def fold(
    sae: TrainingSAE, recipe: SAERecipe, scale: float, site: str, model_name: str
) -> ThresholdSAE | TopKSAE:
    """Take the scale of training and the decoder norms into the weights: unit decoder rows.

    In training x s ≈ Σ_j a_j W_d[j]/‖W_d[j]‖ + b with a = act((x s − b) W_e + b_e) · ‖W_d‖ (the norm is
    sae-lens' `rescale_acts_by_decoder_norm`; without it the same sum is written a W_d). Dividing by s
    gives codes in units of x. relu_l1 is a ReLUSAE. The thresholds of jumprelu are its own, and still 0
    of the TopK family: `calibrate` sets them.
    """
    weights = {name: value.detach().cpu().float() for name, value in sae.named_parameters()}
    norm = weights["W_dec"].norm(dim=1).clamp_min(1e-8)
    folded: dict[str, Any] = {
        "W_enc": (weights["W_enc"] * norm).contiguous(),
        "W_dec": (weights["W_dec"] / norm[:, None]).contiguous(),
        "b_enc": weights["b_enc"] * norm / scale,
        "b_dec": weights["b_dec"] / scale,
        "metadata": _metadata(recipe, site, model_name),
    }
    threshold = weights.get("threshold")
    if threshold is not None:
        threshold = threshold.clamp_min(0.0) * norm / scale
    return architecture(recipe.architecture).export(recipe, folded, threshold)


@torch.no_grad()
def calibrate(
    sae: ThresholdSAE, rows: Any, k: float, generator: torch.Generator, most: int = MOST
) -> float:
    """Shift all thresholds by one amount, at which the mean L0 over (up to `most`) rows is k; returns it.

    rows: a tensor (n, d), or anything with `n` and `take`. No threshold becomes negative; where even
    relu gives fewer than k, all become 0. The shift lies in the middle of the gap between the margins
    p − threshold of two neighbouring codes, so that rounding in another implementation does not move
    one across it.

    From thresholds of 0 (the TopK family after its fold) this is the one threshold of BatchTopK. The
    learned ones of a jumprelu keep their order and their differences. A common factor, which keeps
    their ratios, is the other way: over 18 fits to phantom embeddings (two sites, k 4 to 16, three
    coefficients) the shift had the lower held-out FVU in 16 (at best .1615 against .1878, at worst
    .1706 against .1698), and a factor cannot raise a threshold of 0.
    """
    n = len(rows) if isinstance(rows, torch.Tensor) else rows.n
    picked = torch.randperm(n, generator=generator)[:most]
    target = int(round(k * len(picked)))
    lowest = -float(sae.threshold.max())  # no code that fires has a smaller margin
    kept = torch.empty(0)
    for index in picked.split(max(16, min(2048, _CELLS // sae.d_sae))):
        part = (
            rows[index]
            if isinstance(rows, torch.Tensor)
            else torch.from_numpy(rows.take(index.numpy()))
        )
        release(rows)
        pre = sae.pre(part.float())
        margin = torch.where(pre > 0, pre - sae.threshold, lowest).flatten()
        if len(kept) > target:
            margin = margin[margin >= kept[-1]]  # nothing below the (target + 1)-th can come back
        kept = torch.cat([kept, margin]).topk(min(target + 1, len(kept) + len(margin))).values
    upper, lower = kept[min(target, len(kept)) - 1], kept[-1]
    shift = float((upper.double() + lower.double()) / 2) if len(kept) > target else lowest
    sae.threshold = (sae.threshold + shift).clamp_min(0.0)
    return shift


def _metadata(recipe: SAERecipe, site: str, model_name: str) -> dict[str, Any]:
    version = importlib.metadata.version("sae-lens")
    found: dict[str, Any] = {
        "hook_name": site,
        "model_name": model_name,
        "training_architecture": recipe.architecture,
        "sae_lens_version": version,
        "sae_lens_training_version": version,
    }
    if recipe.has_k:
        found["k"] = recipe.k
    return found | architecture(recipe.architecture).metadata(recipe)
