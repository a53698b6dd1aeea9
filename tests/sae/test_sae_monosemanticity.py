"""Monosemanticity: the sums of one pass are the pairwise definition, and chance is what is said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from dermaudit.errors import UserInputError
from dermaudit.sae.evaluation import Monosemanticity, monosemanticity_report


def pairwise(a: np.ndarray, e: np.ndarray) -> np.ndarray:
    """The definition, over pairs."""
    e = e.astype(np.float64) / np.linalg.norm(e.astype(np.float64), axis=1, keepdims=True)
    span = a.max(0) - a.min(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (a - a.min(0)) / span
        top = bottom = np.zeros(a.shape[1])
        for i in range(len(a)):
            for j in range(i + 1, len(a)):
                weight = scaled[i] * scaled[j]
                top = top + weight * (e[i] @ e[j])
                bottom = bottom + weight
        return np.where(bottom > 0, top / bottom, np.nan)


def data(seed: int, n: int, h: int = 9, d: int = 5, density: float = 0.4, offset: float = 0.0):
    rng = np.random.default_rng(seed)
    a = rng.exponential(size=(n, h)) * (rng.random((n, h)) < density) + offset
    return a, rng.normal(size=(n, d)) + 1.0


@given(
    st.integers(0, 10_000),
    st.integers(2, 40),
    st.sampled_from([0.05, 0.4, 1.0]),
    st.sampled_from([0.0, -3.0, 2.0]),
)
@example(seed=1264, n=21, density=0.05, offset=2.0)  # one image above the minimum
@settings(max_examples=40, deadline=None)
def test_scores_equal_the_pairwise_definition(seed, n, density, offset):
    a, e = data(seed, n, density=density, offset=offset)
    expected = pairwise(a, e)
    sums = Monosemanticity(9, 5)
    sums.add(a, e)
    np.testing.assert_array_equal(np.isnan(sums.scores()), np.isnan(expected))
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-9, rtol=0)
    if offset == 0.0:  # sparse, in two chunks
        chunked, cut = Monosemanticity(9, 5), n // 3
        chunked.add(csr_matrix(a[:cut]), e[:cut])
        chunked.add(csr_matrix(a[cut:].astype(np.float32)), e[cut:])
        np.testing.assert_allclose(chunked.scores(), expected, atol=1e-6, rtol=0)


def test_scores_equal_a_computation_by_hand():
    e = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    a = np.array([[1, 0, 1, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 5, 2, 0.0]])
    sums = Monosemanticity(4, 2)
    sums.add(a, e)
    # Two images alike; one image alone; pairs (½: cos 0), (½: cos −1), (1: cos 0); never active.
    expected = [1.0, np.nan, -0.25, np.nan]
    np.testing.assert_allclose(sums.scores(), expected, atol=1e-12)
    # Pairs: 1, 0, −1, 0, −1, 0.
    assert sums.chance() == pytest.approx(-1 / 6)


def test_large_activations_do_not_cancel():
    a, e = data(3, 30, offset=1e5)
    sums = Monosemanticity(9, 5)
    sums.add(a, e)
    np.testing.assert_allclose(sums.scores(), pairwise(a, e), atol=1e-6)


def test_chance_is_the_mean_over_shuffles():
    a, e = data(0, 60)
    sums = Monosemanticity(9, 5)
    sums.add(a, e)
    rng = np.random.default_rng(1)
    shuffled = []
    for _ in range(600):
        one = Monosemanticity(9, 5)
        one.add(a, e[rng.permutation(60)])
        shuffled.append(one.scores())
    error = np.std(shuffled, axis=0) / np.sqrt(600)
    assert (np.abs(np.mean(shuffled, axis=0) - sums.chance()) < 4 * error).all()


def planted(n: int = 300, seed: int = 0):
    """Latent j fires on the images of cluster j; latent 4 fires anywhere; latent 5 never."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 4, n)
    e = 2.0 * np.ones(8) + 3.0 * np.eye(8)[which] + 0.3 * rng.normal(size=(n, 8))
    a = np.zeros((n, 6))
    a[np.arange(n), which] = 1 + rng.random(n)
    a[:, 4] = rng.exponential(size=n) * (rng.random(n) < 0.25)
    return a, e


def test_clusters_are_above_chance_and_noise_is_not():
    a, e = planted()
    report = monosemanticity_report(csr_matrix(a), e, same_model=False, n_draws=50)
    lift = report["per_latent"]["lift"]
    assert lift[5] is None and min(lift[:4]) > 0.1 and abs(lift[4]) < 0.05
    assert report["n_latents"] == 5 and report["mean"]["n"] == 300
    assert report["mean"]["control"] > 0.5  # all images are alike: chance is high
    assert report["mean"]["low"] < report["mean"]["value"] < report["mean"]["high"]
    assert report["lift"]["low"] > 0.05 and abs(report["lift"]["control"]) < 0.1
    assert 0.8 <= report["above"]["value"] <= 1.0 and not report["same_model"]


def test_unrelated_embeddings_give_no_lift():
    a, _ = planted()
    _, e = data(5, 300, d=8)
    report = monosemanticity_report(csr_matrix(a), e, same_model=True, n_draws=50)
    assert report["lift"]["low"] < 0 < report["lift"]["high"] and report["same_model"]


def test_winsorised_score_does_not_depend_on_two_images():
    # 2,000 images of one kind at activation 1, two of which one is another kind at 1,000.
    a = np.ones((2002, 1))
    a[-2:] = 1000.0
    e = np.tile([1.0, 0.0], (2002, 1))
    e[-1] = [0.0, 1.0]
    a[:1000], e[:1000] = 0.0, [0.6, 0.8]
    report = monosemanticity_report(csr_matrix(a), e, same_model=False, n_draws=0, n_shuffles=2)
    found = report["per_latent"]
    assert found["ms"] == pytest.approx(
        [
            (1000.0**2 * 0 + 1000 * 1000 + 1000 * 999 / 2)
            / (1000.0**2 + 2 * 1000 * 1000 + 1000 * 999 / 2)
        ],
        abs=1e-6,
    )
    cut = np.quantile(a[1000:, 0], 0.999)
    assert cut < 1000
    expected = (1000 * cut + 1000 * 999 / 2) / (cut**2 + 2 * 1000 * cut + 1000 * 999 / 2)
    assert found["winsor"] == pytest.approx([expected], abs=1e-6)
    assert expected > found["ms"][0]


def test_latent_that_is_always_active_is_resampled_as_it_is_scored():
    a, e = data(2, 40, density=1.0)
    a[:, 0] += 1.0
    report = monosemanticity_report(csr_matrix(a), e, same_model=False, n_draws=40)
    assert report["mean"]["value"] == pytest.approx(np.nanmean(pairwise(a, e)), abs=1e-6)
    assert report["mean"]["low"] < report["mean"]["value"] < report["mean"]["high"]


def test_report_without_active_latents_has_no_value():
    report = monosemanticity_report(
        csr_matrix((20, 3)), np.ones((20, 2)), same_model=False, n_draws=5
    )
    assert report["mean"]["value"] is None and report["n_latents"] == 0


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_zero_or_not_finite_embedding_is_named(bad):
    a, e = data(0, 10)
    e[7] = bad
    with pytest.raises(UserInputError, match="image 7 is zero or not finite"):
        Monosemanticity(9, 5).add(a, e)


def test_codes_of_other_images_are_refused():
    a, e = data(0, 10)
    with pytest.raises(UserInputError, match="do not match 9 embeddings"):
        Monosemanticity(9, 5).add(a, e[:9])
