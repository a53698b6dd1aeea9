"""Stage 1, masked latent modelling (CAE v2, arXiv 2211.09799; PanDerm, arXiv 2410.15038).

The student's encoder sees the class token and the visible cells; a latent regressor predicts the latents
of the masked ones from them; LayerNorm and one linear layer bring all of them to the teacher's width. The
targets are the teacher's projected, normalised tokens of the whole image, and the loss is the mean of
1 − cos over class token, visible and masked cells, in that order, with the weights of the recipe.

A tower whose cells cannot be taken out (XCiT, convolutions) sees them painted with the image's mean colour
instead. An EMA of the student may be the teacher: then tokens are centred by a running mean (as in DINO,
arXiv 2104.14294), without which one constant answer would fit all of them.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermaudit.distributed import n_processes, total
from dermaudit.towers.open_clip_model import ImageTower

from ..tokens import TokenReader, Tokens
from .regressor import LatentRegressor


class Cells(NamedTuple):
    """Visible cells (n, v) and masked cells (n, m) of each image, ascending."""

    visible: Tensor
    masked: Tensor

    @property
    def order(self) -> Tensor:
        """(n, v + m): the cells as predictions are ordered."""
        return torch.cat([self.visible, self.masked], dim=1)


def split_cells(mask: Tensor) -> Cells:
    """Return the cells of a mask (n, cells) that has as many true values in each row."""
    masked = int(mask[0].sum())
    order = mask.int().argsort(dim=1, stable=True)
    return Cells(order[:, : mask.shape[1] - masked], order[:, mask.shape[1] - masked :])


def paint(x: Tensor, mask: Tensor) -> Tensor:
    """Replace masked cells of x (n, 3, s, s) by the image's mean colour; mask (n, cells) is a square
    grid.
    """
    side = math.isqrt(mask.shape[1])
    cells = mask.view(-1, 1, side, side).to(x.dtype)
    full = F.interpolate(cells, size=x.shape[-2:], mode="nearest").bool()
    return torch.where(full, x.mean((2, 3), keepdim=True), x)


class Teacher(nn.Module):
    """A frozen image tower at the input size that gives the student's grid.

    `mean`, `std`: of the student's and of the teacher's normalisation, where they differ.
    """

    def __init__(self, visual: ImageTower, size: int, renormalise: tuple | None = None) -> None:
        super().__init__()
        self.visual = visual.requires_grad_(False).eval()
        self.size = size
        self.reader = TokenReader(visual, size)
        self.renormalise = renormalise
        with torch.no_grad():
            p = next(visual.parameters())
            self.d = self.forward(torch.zeros(1, 3, size, size, dtype=p.dtype)).shape[-1]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, s, s), normalised for the student -> unit tokens (n, p + cells, e)."""
        if self.renormalise is not None:
            scale, shift = (
                torch.tensor(v, dtype=x.dtype, device=x.device) for v in self.renormalise
            )
            x = x * scale.view(3, 1, 1) + shift.view(3, 1, 1)
        if x.shape[-1] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bicubic", antialias=True)
        seen = self.reader.read(self.visual, x)
        tokens = torch.cat([_one(seen), seen.cells], dim=1)
        return F.normalize(self.reader.project(self.visual, tokens), dim=-1)


def _one(seen: Tokens) -> Tensor:
    """Return one global token: the class token (registers are no targets), or the mean of the cells."""
    return seen.first[:, :1] if seen.first.shape[1] else seen.cells.mean(1, keepdim=True)


class MaskedLatent(nn.Module):
    """The objective around `visual`: regressor, prediction layer, and the teacher.

    `weights`: of the class token, the visible and the masked cells. `teacher` None: an EMA of `visual`.
    """

    centre: Tensor

    def __init__(
        self,
        visual: ImageTower,
        image_size: int,
        *,
        depth: int = 1,
        teacher: Teacher | None = None,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.reader = TokenReader(visual, image_size)
        d, (rows, columns) = self.reader.d, self.reader.grid
        if rows != columns:
            raise ValueError("stage 1 needs a square grid")
        self.weights = weights
        self.regressor = LatentRegressor(d, rows, depth)
        self.is_ema = teacher is None
        if teacher is None:
            self.teacher = copy.deepcopy(visual).requires_grad_(False).eval()
        else:
            # Not a submodule: a frozen teacher is no part of the training's state.
            self.__dict__["teacher"] = teacher
        e = d if teacher is None else teacher.d
        self.norm, self.predict = nn.LayerNorm(d), nn.Linear(d, e)
        self.register_buffer("centre", torch.zeros(e))
        self._sum: Tensor | None = None
        self._count = 0

    def train(self, mode: bool = True) -> MaskedLatent:
        """Set the mode of the student's parts; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn, recurse: bool = True) -> MaskedLatent:
        if not self.is_ema:  # moved to devices along, although it is no submodule
            self.teacher._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, visual: ImageTower, x: Tensor, mask: Tensor) -> Tensor:
        """Loss of each image (n,), in [0, 2]. x (n, 3, s, s) normalised, mask (n, cells)."""
        cells = split_cells(mask)
        return self.distance(
            self.predictions(visual, x, mask, cells), self.targets(x, cells), cells
        )

    def predictions(self, visual: ImageTower, x: Tensor, mask: Tensor, cells: Cells) -> Tensor:
        """(n, 1 + v + m, e): the class token, visible cells, masked cells."""
        if self.reader.can_drop:
            seen = self.reader.read(visual, x, keep=cells.visible)
            visible = seen.cells
        else:
            seen = self.reader.read(visual, paint(x, mask))
            visible = _take(seen.cells, cells.visible)
            seen = seen._replace(cells=visible)
        masked = self.regressor(visible, cells.visible, cells.masked)
        latents = torch.cat([_one(seen), visible, masked], dim=1)
        return self.predict(self.norm(latents))

    @torch.no_grad()
    def targets(self, x: Tensor, cells: Cells) -> Tensor:
        """Return the teacher's unit tokens in the order of the predictions."""
        if not self.is_ema:
            tokens = self.teacher(x)
        else:
            seen = self.reader.read(self.teacher, x)
            tokens = torch.cat([_one(seen), seen.cells], dim=1)
            tokens = F.layer_norm(tokens, tokens.shape[-1:])
            if self.training:
                self._note(tokens)
            tokens = F.normalize(tokens - self.centre, dim=-1)
        return torch.cat([tokens[:, :1], _take(tokens[:, 1:], cells.order)], dim=1)

    def distance(self, predicted: Tensor, target: Tensor, cells: Cells) -> Tensor:
        """Weighted mean of 1 − cos of each image: (n,)."""
        away = 1 - F.cosine_similarity(predicted, target, dim=-1)
        v = cells.visible.shape[1]
        parts = (away[:, :1], away[:, 1 : 1 + v], away[:, 1 + v :])
        weighted = list(zip(self.weights, parts, strict=True))
        total_weight = sum(w * part.shape[1] for w, part in weighted)
        return sum((w * part.sum(1) for w, part in weighted), away.new_zeros(())) / total_weight

    def _note(self, tokens: Tensor) -> None:
        flat = tokens.flatten(0, 1)
        self._sum = flat.sum(0) if self._sum is None else self._sum + flat.sum(0)
        self._count += len(flat)

    @torch.no_grad()
    def update(self, visual: ImageTower, ema: float) -> None:
        """After a step: move the EMA teacher and its centre (nothing for a frozen teacher)."""
        if not self.is_ema:
            return
        for mine, theirs in zip(self.teacher.parameters(), visual.parameters(), strict=True):
            mine.lerp_(theirs, 1 - ema)
        for mine, theirs in zip(self.teacher.buffers(), visual.buffers(), strict=True):
            mine.copy_(theirs)
        if self._sum is not None:
            mean = total(self._sum) / (self._count * n_processes())
            self.centre.lerp_(mean, 0.1)
        self._sum, self._count = None, 0


def _take(tokens: Tensor, cells: Tensor) -> Tensor:
    return tokens.gather(1, cells.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
