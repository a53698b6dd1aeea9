"""Fit a BatchTopK SAE (arXiv 2412.06410) with sae-lens' training class over cached rows.

What sae-lens has no loop for is here: epochs over a seeded permutation, a dead-latent window in
samples, the early stop on held-out FVU, and a threshold calibrated on a pass over the data
(the running estimate of sae-lens is far off on short runs: facts of 10⁴–10⁶ samples).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from dermaudit.console import track
from dermaudit.failpoints import hit

from .metrics import fvu
from .model import ThresholdSAE


@dataclass(frozen=True)
class SAERecipe:
    """How an SAE is fitted."""

    d_sae: int = 512
    k: float = 8.0
    samples: int = 400_000
    batch: int = 512
    lr: float = 1e-3
    warmup: float = 0.05
    dead_window: int = 20_000  # samples without firing after which AuxK works on a latent
    aux_coefficient: float = 0.03125
    checks: int = 8  # how often held-out FVU is looked at
    patience: int = 3


def fit_sae(
    train: np.ndarray,
    held: np.ndarray,
    recipe: SAERecipe,
    *,
    site: str,
    model_name: str,
    seed: int = 0,
) -> tuple[ThresholdSAE, dict[str, float]]:
    """Fit on rows `train` (n, d), stop early on `held` (m, d); both float.

    Rows are scaled to mean norm √d while training, and the scale is folded back, with decoder rows
    of unit length, so that the SAE returned works on the rows as they are. Returns (sae, summary).
    """
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(train))
    held_rows = torch.from_numpy(np.ascontiguousarray(held)).float()
    n, d = x.shape
    mean = x.float().mean(0)
    scale = math.sqrt(d) / float((x[:65_536].float() - mean).norm(dim=1).mean() + 1e-12)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=d,
            d_sae=recipe.d_sae,
            k=recipe.k,
            device="cpu",
            dtype="float32",
            aux_loss_coefficient=recipe.aux_coefficient,
            rescale_acts_by_decoder_norm=True,
        )
    )
    with torch.no_grad():
        sae.b_dec.copy_(mean * scale)
    optimizer = torch.optim.Adam(sae.parameters(), lr=recipe.lr, betas=(0.9, 0.999))
    batch = min(recipe.batch, n)
    steps = max(1, recipe.samples // batch)
    silent = torch.zeros(recipe.d_sae)  # samples since each latent last fired
    best = (math.inf, -1, _copy(sae))
    check_every = max(1, steps // recipe.checks)
    order, at = torch.randperm(n, generator=generator), 0
    for step in track(range(steps), f"SAE {site}", steps):
        if at + batch > n:
            order, at = torch.randperm(n, generator=generator), 0
        rows = x[order[at : at + batch]].float() * scale
        at += batch
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * _schedule(step, steps, recipe.warmup)
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=rows,
                coefficients={},
                dead_neuron_mask=silent > recipe.dead_window,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        fired = (output.feature_acts > 0).any(0)
        silent = torch.where(fired, 0.0, silent + batch)
        if (step + 1) % check_every == 0 or step + 1 == steps:
            hit("fit")
            error = fvu(held_rows * scale, _reconstruct(sae, held_rows * scale))
            if error < best[0]:
                best = (error, step, _copy(sae))
            elif step - best[1] >= recipe.patience * check_every:
                break
    sae.load_state_dict(best[2])
    folded = _fold(sae, scale, site, model_name)
    calibrate(folded, x, recipe.k, generator)
    return folded, {"scale": scale, "held_fvu_training": best[0], "steps": step + 1, "n_train": n}


def _schedule(step: int, steps: int, warmup: float) -> float:
    warm = max(1, int(steps * warmup))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _copy(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@torch.no_grad()
def _reconstruct(sae, rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([sae.decode(sae.encode(part)) for part in rows.split(4096)])


def _fold(sae, scale: float, site: str, model_name: str) -> ThresholdSAE:
    """Take the training scale and the decoder norms into the weights: unit decoder rows.

    In training `a = relu((x s - b) W_e + b_e) · ‖W_d‖` and `x s ≈ a W_d/‖W_d‖ + b` (sae-lens'
    `rescale_acts_by_decoder_norm`); dividing by s gives codes in units of x.
    """
    norm = sae.W_dec.detach().norm(dim=1)
    return ThresholdSAE(
        W_enc=(sae.W_enc.detach() * norm).contiguous(),
        W_dec=(sae.W_dec.detach() / norm[:, None]).contiguous(),
        b_enc=sae.b_enc.detach() * norm / scale,
        b_dec=sae.b_dec.detach() / scale,
        threshold=torch.zeros_like(norm),
        metadata={
            "hook_name": site,
            "model_name": model_name,
            "training_architecture": "batchtopk",
            "k": sae.cfg.k,
            "sae_lens_version": _version("sae-lens"),
            "sae_lens_training_version": _version("sae-lens"),
        },
    )


@torch.no_grad()
def calibrate(
    sae: ThresholdSAE, rows: torch.Tensor, k: float, generator: torch.Generator, most: int = 32_768
) -> float:
    """Set the one threshold at which the mean L0 over (up to `most`) rows is k; returns it.

    It lies in the middle of the gap between two neighbouring pre-activations, so that rounding in
    another implementation does not move a code across it.
    """
    picked = torch.randperm(len(rows), generator=generator)[:most]
    target = int(round(k * len(picked)))
    kept = torch.empty(0)
    for part in rows[picked].split(2048):
        pre = torch.relu(sae.pre(part.float())).flatten()
        if len(kept) > target:
            pre = pre[pre >= kept[-1]]  # nothing below the (target + 1)-th can come back
        kept = torch.cat([kept, pre]).topk(min(target + 1, len(kept) + len(pre))).values
    upper, lower = kept[min(target, len(kept)) - 1], kept[-1]
    value = float((upper.double() + lower.double()) / 2) if len(kept) > target else 0.0
    sae.threshold = torch.full_like(sae.threshold, value)
    return value


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
