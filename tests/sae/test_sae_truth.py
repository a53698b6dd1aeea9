"""Against exact truth: thresholds by brute force, sae-lens' own values, oracles and floors in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from synthetic import oracle_codes, synthetic_rows

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.sae.evaluation import truth_report
from dermaudit.sae.evaluation.baselines import floor_codes, probe_codes, truth_ladder
from dermaudit.sae.evaluation.truth import _shuffle, best_f1, correlations, halves, implied_pairs


def names(m: int) -> list[str]:
    return [f"f{j}" for j in range(m)]


def f1_of(says: np.ndarray, truth: np.ndarray) -> float:
    known = np.isfinite(truth)
    tp = (says & (truth == 1))[known].sum()
    total = says[known].sum() + (truth[known] == 1).sum()
    return 2 * tp / total if total else 0.0


@given(st.integers(0, 10_000), st.integers(4, 30))
@settings(max_examples=30, deadline=None)
def test_best_f1_is_the_best_of_all_thresholds(seed, n):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 5, (n, 4)).astype(float)  # ties, and latents that never fire
    codes[:, 3] = 0.0
    truth = rng.integers(0, 2, (n, 3)).astype(float)
    truth[rng.random((n, 3)) < 0.2] = np.nan
    f1, threshold = best_f1(csr_matrix(codes), truth)
    for j in range(3):
        for k in range(4):
            tried = [f1_of(codes[:, k] > t, truth[:, j]) for t in (0.0, *np.unique(codes[:, k]))]
            assert f1[j, k] == pytest.approx(max(tried))
            assert f1_of(codes[:, k] > threshold[j, k], truth[:, j]) == pytest.approx(f1[j, k])
    assert (threshold > 0).all()


def test_correlations_equal_numpy():
    rng = np.random.default_rng(0)
    codes = rng.random((60, 5)) * (rng.random((60, 5)) < 0.4)
    codes[:, 4] = 0
    truth = rng.normal(size=(60, 2))
    truth[:9, 1] = np.nan
    found = correlations(csr_matrix(codes), truth)
    for j in range(2):
        known = np.isfinite(truth[:, j])
        for k in range(4):
            expected = abs(np.corrcoef(truth[known, j], codes[known, k])[0, 1])
            assert found[j, k] == pytest.approx(expected, abs=1e-12)
    assert (found[:, 4] == 0).all()


def test_halves_keep_groups_whole_and_shuffle_within():
    groups = np.arange(300) // 5
    choose = halves(groups)
    assert (choose.reshape(60, 5) == choose[::5, None]).all() and 100 <= choose.sum() <= 200
    moved = _shuffle(groups, choose, 0)
    assert sorted(moved) == list(range(300)) and (choose[moved] == choose).all()
    assert (groups[moved] != groups).all()
    assert (groups[moved].reshape(60, 5) == groups[moved][::5, None]).all()


def exact(n: int = 1200, **options):
    """Synthetic rows and codes that are the factors themselves."""
    data = synthetic_rows(n, factors=12, active=2.0, **options)
    return data, csr_matrix(data.factors)


def test_perfect_codes_score_one():
    data, codes = exact()
    report = truth_report(
        codes,
        data.factors,
        data.groups,
        names=names(12),
        n_draws=20,
    )
    for name in ("matched_f1", "one_to_one_f1", "mcc", "distinct", "splitting"):
        assert report[name]["value"] == pytest.approx(1.0, abs=1e-6), name
    assert report["matched_f1"]["control"] < 0.4 and report["mcc"]["control"] < 0.2
    assert report["matched_f1"]["low"] == report["matched_f1"]["high"] == 1.0
    row = report["per_factor"]["f3"]
    assert row["latents"] == [3, 3] == row["one_to_one_latents"] and row["auroc"] == 1.0


def test_random_codes_are_at_their_control():
    data, _ = exact()
    rng = np.random.default_rng(0)
    codes = csr_matrix(rng.random((1200, 80)) * (rng.random((1200, 80)) < 0.15))
    report = truth_report(codes, data.factors, data.groups, names=names(12), n_draws=100)
    f1 = report["matched_f1"]
    assert f1["low"] - 0.03 < f1["control"] < f1["high"] + 0.03
    assert report["mcc"]["value"] < 0.15


def test_choices_are_not_scored_on_their_own_rows():
    # Latents fire on random rows; chosen on the very same rows the best of 400 looks far better.
    rng = np.random.default_rng(1)
    codes = csr_matrix((rng.random((200, 400)) < 0.1).astype(float))
    truth = (rng.random((200, 4)) < 0.15).astype(float)
    report = truth_report(codes, truth, np.arange(200), names=names(4), n_draws=0)
    assert report["matched_f1"]["value"] < best_f1(codes, truth)[0].max(1).mean() - 0.1


def test_splitting_counts_the_latents_of_a_factor():
    data, codes = exact()
    dense = codes.toarray()
    fires = np.random.default_rng(0).random(1200) < 0.5
    half_a, half_b = dense[:, 0] * fires, dense[:, 0] * ~fires
    split = csr_matrix(np.column_stack([half_a, half_b, dense[:, 1:]]))
    report = truth_report(split, data.factors, data.groups, names=names(12), n_draws=0)
    assert report["per_factor"]["f0"]["splitting"] == 2
    assert report["per_factor"]["f1"]["splitting"] == 1
    assert report["per_factor"]["f0"]["f1"] == pytest.approx(2 / 3, abs=0.1)


def test_one_to_one_gives_a_latent_to_one_factor():
    data, codes = exact()
    dense = codes.toarray()
    dense[:, 0] = dense[:, 1] = dense[:, 0] + dense[:, 1]  # 0 and 1 are one latent, twice
    only = csr_matrix(np.delete(dense, 1, axis=1))
    report = truth_report(only, data.factors, data.groups, names=names(12), n_draws=0)
    first, second = (report["per_factor"][name] for name in ("f0", "f1"))
    assert first["latents"] == second["latents"] == [0, 0]
    for one, two in zip(first["one_to_one_latents"], second["one_to_one_latents"], strict=True):
        assert {one, two} != {0}
    assert report["one_to_one_f1"]["value"] < report["matched_f1"]["value"]
    assert report["distinct"]["value"] == pytest.approx(11 / 12, abs=1e-6)


def test_absorption_counts_silent_parents_of_active_children():
    data, codes = exact(4000, children=2)
    dense = codes.toarray()
    hierarchy = data.hierarchy
    assert hierarchy == ((0, 10), (1, 11))
    assert (data.factors[data.factors[:, 10] > 0, 0] > 0).all()
    honest = truth_report(
        codes, data.factors, data.groups, names=names(12), hierarchy=hierarchy, n_draws=0
    )
    assert honest["absorption"]["value"] == honest["absorption"]["control"] == 0.0
    dense[:, 0] *= dense[:, 10] == 0  # absorbed
    absorbed = truth_report(
        csr_matrix(dense),
        data.factors,
        data.groups,
        names=names(12),
        hierarchy=hierarchy,
        n_draws=0,
    )
    assert absorbed["absorption"]["value"] == pytest.approx(0.5)  # of two pairs, one
    assert absorbed["absorption"]["control"] == 0.0 and absorbed["absorption"]["pairs"] == [
        "f0 > f10",
        "f1 > f11",
    ]


def test_implied_pairs_need_more_than_an_accident():
    rng = np.random.default_rng(0)
    parent = (rng.random(600) < 0.4).astype(float)
    child = parent * (rng.random(600) < 0.3)
    common = (np.arange(600) != 599).astype(
        float
    )  # there almost always: the rest imply it by accident
    rare = np.zeros(600)
    rare[np.flatnonzero(child)[:5]] = 1  # five rows say nothing
    truth = np.stack([parent, child, common, rare, parent], axis=1)
    assert implied_pairs(truth[:, :4]) == [(0, 1)]
    # A twin is no hierarchy; both twins are parents of the child.
    assert implied_pairs(truth) == [(0, 1), (4, 1)]
    broken = truth[:, :2].copy()
    broken[np.flatnonzero(child)[0], 0] = 0
    assert implied_pairs(broken) == []
    broken[np.flatnonzero(child)[0], 0] = np.nan  # unknown is not absent
    assert implied_pairs(broken) == [(0, 1)]


def test_intervals_are_of_the_same_figure():
    """Each figure's interval holds it, and the draws are those of an independent computation."""
    data, codes = exact(600, children=2)
    noisy = codes.toarray() + (np.random.default_rng(1).random(codes.shape) < 0.05)
    report = truth_report(
        csr_matrix(noisy),
        data.factors,
        data.groups,
        names=names(12),
        hierarchy=data.hierarchy,
        n_draws=200,
    )
    for name in ("matched_f1", "one_to_one_f1", "mcc", "splitting", "absorption"):
        one = report[name]
        assert one["low"] <= one["value"] <= one["high"], name
    assert report["mcc"]["high"] - report["mcc"]["low"] < 0.2
    # With weights 1 the matched correlations are numpy's: here factor j is matched to latent j.
    choose = halves(data.groups, 0)
    for j, name in enumerate(names(12)):
        both = [
            abs(np.corrcoef(noisy[held, j], data.factors[held, j])[0, 1])
            for held in (choose, ~choose)
        ]
        assert report["per_factor"][name]["correlation"] == pytest.approx(np.mean(both), abs=1e-5)


def test_rare_factors_are_left_out_and_unknown_is_not_absent():
    data, codes = exact()
    truth = data.factors.copy()
    truth[5:, 4] = np.minimum(truth[5:, 4], 0.0)
    truth[:200, 7] = np.nan
    report = truth_report(codes, truth, data.groups, names=names(12), n_draws=0)
    assert set(report["left_out"]) == {"f4"} and "f4" not in report["per_factor"]
    assert report["per_factor"]["f7"]["f1"] == 1.0
    assert report["per_factor"]["f7"]["n"] < report["per_factor"]["f8"]["n"]
    with pytest.raises(EvidenceError, match="no factor is present and absent in 10 rows"):
        truth_report(codes[:30], truth[:30], data.groups[:30], names=names(12))
    with pytest.raises(UserInputError, match="3 names do not match"):
        truth_report(codes, truth, data.groups, names=names(3))


def test_oracle_finds_the_factors_of_synthetic_rows():
    data = synthetic_rows(300, factors=24, active=2.0, noise=0.01)
    np.testing.assert_allclose(oracle_codes(data, 6).toarray(), data.factors, atol=0.2)


def ladder(data, train, width: int, codes=None):
    baselines = {"oracle": oracle_codes(data, 5), **floor_codes(train.x, data.x, width)}
    m = len(data.dictionary)
    codes = csr_matrix((len(data.x), width)) if codes is None else codes
    return truth_ladder(
        codes,
        data.factors,
        data.groups,
        baselines,
        names=names(m),
        hierarchy=data.hierarchy,
        n_draws=20,
    )


def one_to_one(found):
    return {name: report["one_to_one_f1"]["value"] for name, report in found.items()}


def test_ica_finds_factors_only_if_they_are_fewer_than_dimensions():
    few = {"d": 16, "factors": 12, "active": 2.0, "noise": 0.02}
    f1 = one_to_one(ladder(synthetic_rows(1000, seed=1, **few), synthetic_rows(1500, **few), 32))
    assert f1["oracle"] > 0.95 and f1["ica"] > 0.95 and f1["SAE"] == 0.0, f1
    assert max(f1["pca"], f1["random directions"]) < 0.75, f1
    hard = {
        "d": 16,
        "factors": 32,
        "active": 2.0,
        "coherence": 0.2,
        "correlation": 0.3,
        "heavy_tail": 0.5,
        "children": 2,
    }
    f1 = one_to_one(ladder(synthetic_rows(1000, seed=1, **hard), synthetic_rows(1500, **hard), 32))
    assert f1["oracle"] > max(f1[name] for name in f1 if name != "oracle") + 0.05, f1
    assert f1["ica"] < 0.8, f1


def test_fitted_sae_is_between_baselines_and_oracle():
    from dermaudit.sae import fit_sae
    from dermaudit.sae.training.loop import SAERecipe

    options = {"factors": 24, "active": 3.0, "noise": 0.03}
    train, test = synthetic_rows(3000, seed=0, **options), synthetic_rows(1000, seed=1, **options)
    recipe = SAERecipe(d_sae=32, k=3.0, samples=150_000, batch=256, lr=5e-3)
    sae, _ = fit_sae(train.x, test.x[:200], recipe, site="s", model_name="t")
    codes = csr_matrix(sae.encode(torch.from_numpy(test.x)).numpy())
    f1 = one_to_one(ladder(test, train, 32, codes))
    assert max(f1["pca"], f1["k-means"], f1["random directions"]) < f1["SAE"] - 0.05, f1
    assert 0.8 * f1["oracle"] < f1["SAE"] < f1["oracle"] + 0.02, f1


def test_probes_are_an_upper_bound_and_leave_rare_factors_empty():
    train, test = (synthetic_rows(400, d=16, factors=4, active=1.0, seed=s) for s in (0, 1))
    truth = (train.factors > 0).astype(float)
    truth[:, 3] = np.nan
    codes = probe_codes(train.x, truth, train.groups, test.x)
    assert codes[:, [3]].nnz == 0
    report = truth_report(codes[:, :3], test.factors[:, :3], test.groups, names=names(3), n_draws=0)
    assert report["one_to_one_f1"]["value"] > 0.95
