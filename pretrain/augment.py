"""Random views: flips, quarter turns, a small affine map, brightness, contrast and colour.

Whole-batch tensor operations (no image library in the loop); borders are reflected, not cropped,
because rulers and ink live there. Everything is drawn from the generator passed in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .recipe import AugmentPart


def augment(images: torch.Tensor, part: AugmentPart, generator: torch.Generator) -> torch.Tensor:
    """Views of uint8 images (n, 3, s, s) as float32 in 0 … 255."""
    x = images.float()
    n = len(x)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    if part.flip:
        turn = int(torch.randint(0, 8, (1,), generator=generator))
        x = torch.rot90(x.flip(3) if turn & 1 else x, turn >> 1, (2, 3))
    if part.rotate or part.shift or part.scale != (1.0, 1.0):
        angle = (2 * draw(n) - 1) * part.rotate
        scale = part.scale[0] + (part.scale[1] - part.scale[0]) * draw(n)
        shift = (2 * draw(n, 2) - 1) * part.shift
        cos, sin = scale * angle.cos(), scale * angle.sin()
        theta = torch.stack(
            [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
        )
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    x = x * (1 + part.brightness * (2 * draw(n, 1, 1, 1) - 1))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (1 + part.contrast * (2 * draw(n, 1, 1, 1) - 1)) + mean
    return (x * (1 + part.colour * (2 * draw(n, 3, 1, 1) - 1))).clamp_(0, 255)
