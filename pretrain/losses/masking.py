"""Which cells of the patch grid stage 1 hides: blocks, as in BEiT (arXiv 2106.08254) and CAE v2."""

from __future__ import annotations

import math
import random

import numpy as np
import torch

_MIN_BLOCK = 16  # cells of a block on a grid of 14 x 14; smaller grids take a like share
_ASPECT = 0.3
_TRIES = 10


def block_mask(grid: tuple[int, int], count: int, rng: random.Random) -> np.ndarray:
    """Boolean (rows · columns,), row-major, with exactly `count` true.

    Rectangles of about 16 cells or more of 196 (as large a share of a smaller grid) and of an aspect
    ratio of about 0.3 … 1 / 0.3 (sides are rounded) are placed over each other until ten tries in a row
    find none that fits; what is then missing is grown from the border of what is masked, so that the
    count is exact.
    """
    rows, columns = grid
    if not 0 <= count <= rows * columns:
        raise ValueError(f"{count} of {rows * columns} cells cannot be masked")
    least = max(1, round(_MIN_BLOCK * rows * columns / 196))
    mask = np.zeros((rows, columns), dtype=bool)
    left = count
    while left >= least:
        added = _add_block(mask, least, left, rng)
        if not added:
            break
        left -= added
    while left:
        left -= _grow(mask, left, rng)
    return mask.ravel()


def _add_block(mask: np.ndarray, least: int, most: int, rng: random.Random) -> int:
    """Mask one more rectangle with between 1 and `most` new cells; how many were new (0: none fits)."""
    rows, columns = mask.shape
    for _ in range(_TRIES):
        area = rng.uniform(least, most)
        aspect = math.exp(rng.uniform(math.log(_ASPECT), -math.log(_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height <= rows and 0 < width <= columns):
            continue
        top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
        block = mask[top : top + height, left : left + width]
        new = height * width - int(np.count_nonzero(block))
        if 0 < new <= most:
            block.fill(True)
            return new
    return 0


def _grow(mask: np.ndarray, most: int, rng: random.Random) -> int:
    """Mask up to `most` free cells next to masked ones (any free cell when nothing is masked)."""
    wide = np.pad(mask, 1)
    near = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    border = np.flatnonzero(near & ~mask)
    free = border if len(border) else np.flatnonzero(~mask)
    picked = rng.sample(free.tolist(), min(most if len(border) else 1, len(free)))
    mask.ravel()[picked] = True
    return len(picked)


def block_masks(seeds: list[int], grid: tuple[int, int], share: float) -> torch.Tensor:
    """Boolean (n, cells), one row a seed, each with exactly round(share · cells) true, at least 1 and
    at most cells − 1. A row depends on its seed alone, not on its place in the batch.
    """
    cells = grid[0] * grid[1]
    count = min(cells - 1, max(1, round(share * cells)))
    masks = [block_mask(grid, count, random.Random(seed)) for seed in seeds]
    return torch.from_numpy(np.stack(masks))
