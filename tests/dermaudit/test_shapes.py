"""A wrong shape is refused by the checks that tests install (tests/shape_checks.py)."""

from __future__ import annotations

import jaxtyping
import numpy as np
import pytest
import torch

from dermaudit.sae.inference.model import ThresholdSAE
from dermaudit.stats import intervals
from dermaudit.stats.intervals import auprc_table, auroc

SAE = ThresholdSAE(
    torch.eye(4), torch.eye(4), torch.zeros(4), torch.zeros(4), torch.full((4,), 0.1)
)


def test_right_shapes_pass_and_results_are_those_of_the_function_itself():
    truth, score = np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.3])
    assert auroc(truth, score) == intervals.auroc(truth, score) == 1.0
    assert SAE.encode(torch.ones(2, 3, 4)).shape == (2, 3, 4)


def test_wrong_shapes_are_refused():
    with pytest.raises(jaxtyping.TypeCheckError):
        auroc(np.zeros(4), np.zeros(5))
    with pytest.raises(jaxtyping.TypeCheckError):
        auprc_table(np.zeros((4, 2)), np.zeros((5, 1)))
    with pytest.raises(jaxtyping.TypeCheckError):
        SAE.encode(torch.ones(2, 4, dtype=torch.int64))
