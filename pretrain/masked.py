"""Stage 1: masked latent prediction, first form.

The student sees the image with a share of its cells painted over by the mean colour and predicts,
for every masked cell, the teacher's token there; loss = mean(1 − cos) (as in CAE v2, arXiv
2211.09799, and data2vec, arXiv 2202.03555). The teacher is an EMA of the student, or an open_clip
tower. Painting cells, unlike dropping tokens, works for any trunk that keeps a grid.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from .tokens import patch_tokens


def random_cells(n: int, cells: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Boolean (n, cells) with exactly round(share · cells) true in every row."""
    count = max(1, round(share * cells))
    order = torch.rand(n, cells, generator=generator).argsort(1)
    return order < count


def paint(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Replace masked cells of x (n, 3, s, s) by the image's mean colour; mask (n, cells) is a square grid."""
    side = math.isqrt(mask.shape[1])
    cells = mask.view(-1, 1, side, side).float()
    full = F.interpolate(cells, size=x.shape[-2:], mode="nearest").bool()
    return torch.where(full, x.mean((2, 3), keepdim=True), x)


class MaskedLatent(nn.Module):
    """The objective: holds the predictor and the EMA teacher of `visual` (or a frozen `teacher`)."""

    def __init__(
        self,
        visual: nn.Module,
        d: int,
        d_teacher: int | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Linear(d, d_teacher or d))
        self.is_ema = teacher is None
        self.teacher = teacher if teacher is not None else copy.deepcopy(visual)
        self.teacher.requires_grad_(False).eval()

    def forward(self, visual: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Loss on normalised images x (n, 3, s, s), mask (n, cells)."""
        with torch.no_grad():
            target = patch_tokens(self.teacher, x)
            # Taking off the mean token keeps the trivial constant answer from scoring.
            target = F.layer_norm(target, target.shape[-1:])
            target = target - target.mean((0, 1), keepdim=True)
        predicted = self.predictor(patch_tokens(visual, paint(x, mask)))
        return (1 - F.cosine_similarity(predicted[mask], target[mask], dim=-1)).mean()

    @torch.no_grad()
    def update(self, visual: nn.Module, ema: float) -> None:
        """Move the EMA teacher towards the student (nothing for a frozen teacher)."""
        if not self.is_ema:
            return
        for mine, theirs in zip(self.teacher.parameters(), visual.parameters(), strict=True):
            mine.lerp_(theirs, 1 - ema)
        for mine, theirs in zip(self.teacher.buffers(), visual.buffers(), strict=True):
            mine.copy_(theirs)
