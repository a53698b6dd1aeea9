"""Planted sparse rows, and one small SAE fitted on them, for the tests of this folder."""

from __future__ import annotations

import pytest
import torch
from sae_rows import planted


@pytest.fixture(scope="session")
def rows():
    return {"train": planted(2000, 0), "val": planted(400, 1), "test": planted(500, 2)}


@pytest.fixture(scope="session")
def recipe():
    from dermaudit.sae.training.loop import SAERecipe

    return SAERecipe(d_sae=64, k=4.0, samples=100_000, batch=256, lr=5e-3)


@pytest.fixture(scope="session")
def fitted(rows, recipe):
    """(sae, summary)."""
    from dermaudit.sae import fit_sae

    torch.set_num_threads(1)
    return fit_sae(
        rows["train"], rows["val"], recipe, site="visual.pooled", model_name="toy", seed=3
    )
