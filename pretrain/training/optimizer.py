"""The optimizers of training: fused AdamW, or Muon for matrices with AdamW for the rest.

Muon (Jordan et al. 2024; scaled as in Moonlight, arXiv 2502.16982) steps along the orthogonalised
momentum: M ← μM + (1 − μ)G, U = (1 − μ)G + μM, W ← W − lr · 0.2 √max(rows, columns) · NS₅(U), so that
a step has the root mean square of an AdamW step and both take one learning rate. torch has a Muon,
but it iterates in bfloat16, which this toolkit never does on a CPU, and takes no convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def make_optimizer(
    kind: str,
    modules: list[nn.Module],
    lr: float,
    decay: float,
    eps: float = 1e-6,
    rates: Mapping[int, float] | None = None,
) -> torch.optim.Optimizer:
    """`kind` is "adamw" or "muon"; weight decay on everything that is not a vector. `eps` is as open_clip
    trains ViTs: with less, gradients that are zero but for rounding (a key's bias) move weights. `rates`
    {id of a parameter: factor of its learning rate}; the factor of a group is its entry "rate".
    """
    named = [
        (name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad
    ]
    rates = rates or {}
    muon, adam = [], []
    for rate in sorted({rates.get(id(p), 1.0) for _, p in named}, reverse=True):
        own = [(name, p) for name, p in named if rates.get(id(p), 1.0) == rate]
        matrices = [p for name, p in own if kind == "muon" and _is_matrix(name, p)]
        taken = {id(p) for p in matrices}
        rest = [p for _, p in own if id(p) not in taken]
        muon.append({"params": matrices, "weight_decay": decay, "matrices": True, "rate": rate})
        adam += [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": decay, "rate": rate},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "rate": rate},
        ]
    if kind == "muon":
        return Muon([*muon, *adam], lr=lr, eps=eps)
    return torch.optim.AdamW(adam, lr=lr, betas=(0.9, 0.98), eps=eps, fused=True)


def _is_matrix(name: str, p: torch.Tensor) -> bool:
    """Linear layers and convolutions that mix channels; look-up tables have no rows to mix."""
    return p.ndim in (2, 4) and p.shape[0] > 1 and p.shape[1] > 1 and "embedding" not in name


class Muon(torch.optim.Optimizer):
    """Groups with `matrices` take Muon's step, the others AdamW's."""

    def __init__(
        self,
        groups: list[dict],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "matrices": False}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update the parameters. There is no closure: the gradients are there already."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.mul_(1 - group["lr"] * group["weight_decay"])
                state = self.state[p]
                state["step"] = state.get("step", torch.zeros(())) + 1
                direction = self._muon if group["matrices"] else self._adam
                p.add_(direction(p.grad, state, group), alpha=-group["lr"])

    @staticmethod
    def _muon(grad: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
        momentum = state.setdefault("momentum", torch.zeros_like(grad))
        momentum.lerp_(grad, 1 - group["momentum"])
        update = grad.lerp(momentum, group["momentum"]).flatten(1)
        scale = 0.2 * math.sqrt(max(update.shape))
        return (scale * orthogonalise(update)).view_as(grad)

    @staticmethod
    def _adam(grad: torch.Tensor, state: dict, group: dict) -> torch.Tensor:
        first = state.setdefault("exp_avg", torch.zeros_like(grad))
        second = state.setdefault("exp_avg_sq", torch.zeros_like(grad))
        (b1, b2), t = group["betas"], float(state["step"])
        first.lerp_(grad, 1 - b1)
        second.lerp_(grad.square(), 1 - b2)
        return (first / (1 - b1**t)) / ((second / (1 - b2**t)).sqrt() + group["eps"])


def orthogonalise(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """About U Vᵀ of matrix (rows, columns) = U S Vᵀ, by a quintic Newton–Schulz iteration: singular
    values come to lie within about 0.7 … 1.2.
    """
    a, b, c = _COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x
