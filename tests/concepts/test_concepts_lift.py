"""Best latent by label and its lift share: by hand, and chosen where it is not scored."""

from __future__ import annotations

import numpy as np
import pytest
from concept_world import POOLED, Data

from dermaudit.concepts.annotation.lift_share import latents_by_label, ranked_latents

N = 1200
RNG = np.random.default_rng(0)
SPLITS = np.array(["train", "val", "test"], dtype=object)[np.arange(N) % 3]
GROUPS = np.array([f"g{i // 6}" for i in range(N)], dtype=object)
LABEL = (RNG.random(N) < 0.3).astype(float)


def data(codes, x=None, truth=LABEL, **options):
    """Pooled features: the label with noise, and five columns of noise."""
    if x is None:
        x = np.random.default_rng(1).normal(size=(N, 6)).astype(np.float32)
        x[:, 0] += 6 * LABEL
    return Data(x, codes, SPLITS, GROUPS, {"ruler": ("artifact", truth)}, **options)


def noise_codes(h: int = 8, seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((N, h)) < 0.3) * rng.random((N, h))


def agreeing(share: float, seed: int = 3) -> np.ndarray:
    """The label, right in `share` of the rows."""
    flip = np.random.default_rng(seed).random(N) >= share
    return np.where(flip, 1 - LABEL, LABEL)


def evidence(*args, **options):
    return latents_by_label(data(*args, **options), n_draws=100)[0]


def test_latent_is_the_label_share_about_one():
    codes = noise_codes()
    codes[:, 3] = LABEL
    row = evidence(codes)
    assert (row.site, row.latent) == (POOLED, 3)
    assert row.auprc == 1.0 and row.auroc == 1.0
    assert row.probe_auprc > 0.98
    assert row.lift_share == pytest.approx(1.0, abs=0.03)
    assert row.lift_share_lo <= row.lift_share <= row.lift_share_hi + 1e-12
    test = SPLITS == "test"
    assert row.prevalence == pytest.approx(LABEL[test].mean())
    assert (row.n, row.n_pos) == (test.sum(), LABEL[test].sum())
    assert row.type == "artifact" and row.reason is None


def test_share_by_hand():
    codes = noise_codes()
    codes[:, 3] = agreeing(0.9)
    row = evidence(codes)
    expected = (row.auprc - row.prevalence) / (row.probe_auprc - row.prevalence)
    assert row.lift_share == pytest.approx(expected)
    assert 0.4 < row.lift_share < 0.95
    assert row.auprc_lo < row.auprc < row.auprc_hi


def test_choice_a_latent_that_is_perfect_on_test_only_is_not_chosen():
    codes = noise_codes()
    codes[:, 2] = agreeing(0.85)
    codes[:, 5] = np.where(SPLITS == "test", LABEL, codes[:, 5])
    row = evidence(codes)
    assert row.latent == 2 and row.auprc < 0.9


def test_choice_a_latent_that_is_perfect_on_train_only_is_not_chosen():
    codes = noise_codes()
    codes[:, 2] = agreeing(0.85)
    codes[:, 5] = np.where(SPLITS == "train", LABEL, codes[:, 5])
    assert evidence(codes).latent == 2


def test_choice_does_not_move_with_the_labels_of_test():
    codes = noise_codes(30)
    other = np.where(SPLITS == "test", np.random.default_rng(9).permutation(LABEL), LABEL)
    assert evidence(codes).latent == evidence(codes, truth=other).latent


def test_ranking_of_latents_by_hand():
    tables = {"b": np.array([[0.7]]), "a": np.array([[0.7, 0.9, np.nan, 0.7]])}
    # Equal ones in the order of site and number; undefined ones are left out.
    assert ranked_latents(tables, 0) == [("a", 1), ("a", 0), ("a", 3), ("b", 0)]


def test_pair_joins_two_halves_of_a_concept():
    codes = noise_codes()
    first = np.random.default_rng(6).random(N) < 0.55
    codes[:, 3], codes[:, 5] = LABEL * first, LABEL * ~first
    row = evidence(codes)
    assert {row.latent, row.pair_latent} == {3, 5}
    assert row.auprc < 0.8 and row.pair_auprc == 1.0
    assert row.lift_share < 0.8 and row.pair_lift_share == pytest.approx(1.0, abs=0.03)


def test_concept_is_absent_that_the_probe_sees_and_no_latent():
    row = evidence(noise_codes())
    assert row.absent is True and row.lift_share < 0.2 and row.probe_auprc > 0.98
    codes = noise_codes()
    codes[:, 3] = LABEL
    assert evidence(codes).absent is False
    blind = np.random.default_rng(4).normal(size=(N, 6)).astype(np.float32)
    assert evidence(noise_codes(), blind).absent is None  # the probe does not see it either


def test_residual_latents_are_no_candidates():
    codes = noise_codes()
    codes[:, 2], codes[:, 7] = agreeing(0.85), LABEL
    assert evidence(codes).latent == 7
    assert latents_by_label(data(codes, consensus=5), n_draws=100)[0].latent == 2


def test_undefined_where_the_probe_knows_nothing():
    x = np.random.default_rng(4).normal(size=(N, 6)).astype(np.float32)
    row = evidence(noise_codes(), x)
    assert row.lift_share is None and "lift share undefined" in row.reason
    assert row.auprc is not None


def test_too_few_reported_with_the_numbers():
    few = np.zeros(N)
    few[np.flatnonzero(SPLITS == "test")[:4]] = 1
    row = evidence(noise_codes(), truth=few)
    assert row.auprc is None and row.reason == f"n too small: 4 of {N // 3} labelled test images"


def test_no_positive_in_val_no_choice():
    truth = np.where(SPLITS == "val", 0.0, LABEL)
    row = evidence(noise_codes(), truth=truth)
    assert row.latent is None and "no latent can be chosen" in row.reason


def test_unknown_labels_are_left_out():
    codes = noise_codes()
    codes[:, 3] = LABEL
    hidden = np.random.default_rng(5).random(N) < 0.5
    codes[hidden, 3] = 7.0  # would be false positives, were blank taken for 0
    row = evidence(codes, truth=np.where(hidden, np.nan, LABEL))
    assert row.auprc == 1.0 and row.n == (~hidden & (SPLITS == "test")).sum()


def test_no_labels_no_rows():
    empty = Data(np.zeros((N, 2), np.float32), noise_codes(), SPLITS, GROUPS)
    assert latents_by_label(empty) == []
