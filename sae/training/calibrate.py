"""The trained SAE in units of the rows: scale folded into the weights, thresholds at which mean L0 is k."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import torch

from ..inference.model import ThresholdSAE, TopKSAE
from ..store.rows import RowSource, as_rows
from .architectures.registry import architecture
from .recipe import SAERecipe

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

MAX_ROWS = 32_768  # rows that thresholds are calibrated on
_CELLS = 1 << 23  # pre-activations in memory at a time


def fold(
    sae: TrainingSAE, recipe: SAERecipe, scale: float, site: str, model_name: str
) -> ThresholdSAE | TopKSAE:
    """Fold the scale of training and the decoder norms into the weights.

    In training x s ≈ Σ_j a_j W_d[j]/‖W_d[j]‖ + b with a = act((x s − b) W_e + b_e) · ‖W_d‖ (the norm is
    sae-lens' `rescale_acts_by_decoder_norm`; without it the same sum is written a W_d). Division by s
    gives codes in units of x. The thresholds of the TopK family are 0 until `calibrate` sets them.
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
    sae: ThresholdSAE,
    rows: RowSource | torch.Tensor,
    k: float,
    generator: torch.Generator,
    max_rows: int = MAX_ROWS,
) -> float:
    """Shift all thresholds so that the mean L0 over (up to `max_rows`) rows is k; return the shift.

    No threshold becomes negative; if even ReLU gives fewer than k, all become 0. The shift lies in the
    middle of the gap between the margins p − threshold of two neighbouring codes, so that rounding in
    another implementation does not move a code across it.

    After the thresholds of 0 of the TopK family this is the single threshold of BatchTopK. The learned
    thresholds of a jumprelu keep their order and their differences. The alternative, a common factor,
    was worse: over 18 fits to phantom embeddings (two sites, k 4 to 16, three coefficients) the shift had
    the lower held-out FVU in 16 (at best .1615 against .1878, at worst .1706 against .1698), and a factor
    cannot raise a threshold of 0.
    """
    source = as_rows(rows)
    picked = torch.randperm(source.n, generator=generator)[:max_rows]
    target = round(k * len(picked))
    lowest = -float(sae.threshold.max())  # no active code has a smaller margin
    kept = torch.empty(0)
    for index in picked.split(max(16, min(2048, _CELLS // sae.d_sae))):
        pre = sae.pre(torch.from_numpy(source.take(index.numpy())))
        source.release()
        margin = torch.where(pre > 0, pre - sae.threshold, lowest).flatten()
        if len(kept) > target:
            margin = margin[
                margin >= kept[-1]
            ]  # smaller margins than the (target + 1)-th cannot matter
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
