"""One independent random stream per (seed, image, factor), and the two ranges of seeds.

Every factor of every image has its own Philox stream, so that taking one factor away, or drawing
images in another order, changes no other number.
"""

from __future__ import annotations

import zlib

import numpy as np

# Pretraining and audits must never share a phantom: their seeds come from disjoint ranges.
PRETRAIN_SEEDS = range(0, 1000)
AUDIT_SEEDS = range(1000, 2**31)


def stream(seed: int, index: int, factor: str) -> np.random.Generator:
    """Return the random stream of one factor of one image; `seed` and `index` are non-negative."""
    entropy = np.random.SeedSequence([seed, index, zlib.crc32(factor.encode("ascii"))])
    return np.random.Generator(np.random.Philox(entropy))
