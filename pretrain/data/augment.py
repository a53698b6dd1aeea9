"""Random views: crops, flips, quarter turns, a small affine map, brightness, contrast, colour, grey.

Whole-batch tensor operations (no image library in the loop); borders are reflected, not cut, unless the
recipe asks for crops, because rulers and ink live there. What is random is drawn for the whole batch from
one generator and then applied to any part of it, so that a batch shared by several processes is the same.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..recipe import AugmentSection

_GREY = (0.299, 0.587, 0.114)


def draw_views(n: int, part: AugmentSection, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw the parameters of n views: tensors of n rows (`turn` holds for all of them)."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    turn = torch.randint(0, 8, (1,), generator=generator).expand(n)
    angle = (2 * uniform(n) - 1) * part.rotate
    scale = part.scale[0] + (part.scale[1] - part.scale[0]) * uniform(n)
    shift = (2 * uniform(n, 2) - 1) * part.shift
    colours = 2 * uniform(n, 6) - 1
    area = part.crop[0] + (part.crop[1] - part.crop[0]) * uniform(n)
    ratio = ((2 * uniform(n) - 1) * math.log(4 / 3)).exp()
    place = 2 * uniform(n, 2) - 1
    chance = uniform(n, 2)
    return {
        "turn": turn if part.flip else torch.zeros_like(turn),
        "affine": _affine(angle, scale, shift, part, area, ratio, place),
        "colours": colours,
        "jittered": chance[:, 0] < part.jitter_p,
        "grey": chance[:, 1] < part.grayscale,
    }


def _affine(angle, scale, shift, part: AugmentSection, area, ratio, place) -> Tensor:
    """(n, 2, 3): where each pixel of a view comes from, in −1 … 1."""
    cos, sin = scale * angle.cos(), scale * angle.sin()
    linear = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    if part.crop != (1.0, 1.0):
        # As torchvision's RandomResizedCrop: a share of the area, an aspect ratio of 3/4 … 4/3,
        # anywhere inside; of the squashed image, though, not of the original.
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        size = torch.stack([width, height], 1)
        linear = linear * size[:, :, None]
        shift = shift + place * (1 - size)
    return torch.cat([linear, shift[:, :, None]], 2)


def apply_views(
    images: Tensor, part: AugmentSection, views: dict[str, Tensor], size: int | None = None
) -> Tensor:
    """Return views (n, 3, size, size; of their own size without one) of uint8 images (n, 3, s, s), as float32 in
    0 … 255; `views` has n rows.
    """
    x = images.float()
    views = {name: value.to(x.device) for name, value in views.items()}
    turn = int(views["turn"][0])
    if turn:
        x = torch.rot90(x.flip(3) if turn & 1 else x, turn >> 1, (2, 3))
    if part.rotate or part.shift or part.scale != (1.0, 1.0) or part.crop != (1.0, 1.0):
        side = size or x.shape[-1]
        grid = F.affine_grid(views["affine"], [*x.shape[:2], side, side], align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return _colour(x, part, views)


def _colour(x: Tensor, part: AugmentSection, views: dict[str, Tensor]) -> Tensor:
    c = (views["colours"] * views["jittered"][:, None].float())[:, :, None, None]
    x = x * (1 + part.brightness * c[:, :1])
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + part.contrast * c[:, 1:2]) + mean
    if part.saturation or part.grayscale:
        grey = (x * x.new_tensor(_GREY).view(3, 1, 1)).sum(1, keepdim=True)
        x = grey + (x - grey) * (1 + part.saturation * c[:, 2:3])
        x = torch.where(views["grey"][:, None, None, None], grey, x)
    return (x * (1 + part.colour * c[:, 3:])).clamp_(0, 255)
