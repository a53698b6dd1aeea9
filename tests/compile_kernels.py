"""Compile the training step of stacked SAEs into numba's cache, before tests of several processes use it.

Code that was just compiled rounds differently from the same code after it was read from the cache, so that the first
process of a machine has other bits than all later ones (docs/labbook.md, "Not tested and known limits").
"""

from __future__ import annotations

import numpy as np

from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.recipe import SAERecipe

x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
recipe = SAERecipe(d_sae=8, k=2.0, batch=100, samples=300)
fit_saes(EmbeddingRows.of(x), x, [recipe], site="", model_name="")
