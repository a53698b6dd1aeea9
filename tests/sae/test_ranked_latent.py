"""Concept latents without labels: the formula of the decoder, what is removed, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import EvidenceError
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.concept_latents.ranked import drawn_score, fit_by_ranking, seeds
from dermaudit.stats.intervals import auroc

D = 16
PLANTED = np.eye(D)[0]


def rows(n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows x (n, D) with an artifact along the first axis, its label, and a noisy score of it."""
    g = np.random.default_rng(seed)
    a = (g.random(n) < 0.4).astype(float)
    x = g.standard_normal((n, D)) + np.outer(a, 3 * PLANTED) + 5.0
    return x.astype(np.float32), a, a + 0.5 * g.standard_normal(n)


def alone(n: int) -> np.ndarray:
    return np.arange(n).astype(str)


def test_seeds_are_the_highest_tenth_and_the_lowest_half():
    score = np.random.default_rng(0).permutation(200).astype(float)
    top, bottom = seeds(score)
    assert sorted(score[top]) == list(range(180, 200))
    assert sorted(score[bottom]) == list(range(100))
    with pytest.raises(EvidenceError, match="too few images to rank: 99") as refused:
        seeds(np.arange(99.0))
    assert refused.value.numbers == {"n": 99}


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_it_removes_the_planted_direction_and_keeps_the_bits_of_rows_without(scale):
    x, a, score = rows()
    latent = fit_by_ranking(x, scale * score - 3, alone(len(x)))
    new, b, _ = rows(seed=1)
    out = LatentSuppressor(latent.as_sae(), [0]).apply_to(torch.from_numpy(new))
    edited, z = out.x.numpy(), out.z.numpy()[:, 0]
    before = new[b == 1].mean(0) - new[b == 0].mean(0)
    after = edited[b == 1].mean(0) - edited[b == 0].mean(0)
    assert abs(after[0]) < 0.25 * before[0] and latent.decoder[0] > 0.95
    still = z == 0
    assert 0.2 < still.mean() < 0.8 and (edited[still] == new[still]).all()
    # The unit of the score does not matter.
    np.testing.assert_allclose(
        latent.decoder, fit_by_ranking(x, score, alone(len(x))).decoder, rtol=1e-5
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_after_the_edit_no_coordinate_follows_the_score(seed):
    """cov(x', score) is about 0; not exactly, because levels come from out-of-fold codes."""
    x, _, score = rows(seed=seed)
    latent = fit_by_ranking(x, score, alone(len(x)))
    edited = LatentSuppressor(latent.as_sae(), [0]).apply_to(torch.from_numpy(x)).x.numpy()

    def followed(values: np.ndarray) -> np.ndarray:
        return (score - score.mean()) @ (values - values.mean(0)) / len(values)

    assert np.abs(followed(edited)).max() < 0.15 * followed(x)[0]


def test_a_score_that_the_rows_do_not_show_is_refused():
    x, _, _ = rows()
    noise = np.random.default_rng(5).standard_normal(len(x))
    with pytest.raises(EvidenceError, match="do not follow the score") as refused:
        fit_by_ranking(x, noise, alone(len(x)))
    assert refused.value.numbers["auroc_ci"][0] < 0.5


def test_drawn_rows_rank_real_ones_and_each_is_scored_out_of_fold():
    x, a, _ = rows()
    drawn = x + (3 * PLANTED).astype(np.float32)
    drawn[400:] = np.nan  # drawn onto some images only
    score = drawn_score(x, drawn, alone(len(x)))
    assert np.isfinite(score).all() and auroc(a, score) > 0.9
    # What tells pairs apart is memorised noise here: out of fold it ranks nothing.
    g = np.random.default_rng(3)
    with pytest.raises(EvidenceError, match="with and without the drawn artifact"):
        drawn_score(x, x[g.permutation(len(x))], alone(len(x)))
    with pytest.raises(EvidenceError, match="onto 5 images only"):
        drawn_score(x, np.where(np.arange(600)[:, None] < 5, drawn, np.nan), alone(len(x)))
