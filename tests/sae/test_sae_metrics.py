"""Reconstruction on held-out rows: by hand, against sae-lens, and intervals over groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_rows import planted, random_sae

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.sae.evaluation import Reconstruction, accumulate
from dermaudit.sae.evaluation.figure import bootstrap_weights, figure, group_numbers
from dermaudit.sae.evaluation.reconstruction import chunks, pca_fvu
from dermaudit.sae.store.rows import EmbeddingRows


def test_figures_equal_a_computation_by_hand():
    sums = Reconstruction(2, 3, n_groups=2)
    x = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    x_hat = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    z = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    sums.add(x, x_hat, z, np.array([0, 1, 1]))
    report = sums.report(n_draws=0)
    # Residual 16 + 1; mean (1, 2): 4 + 4, 1 + 0, 1 + 4.
    assert report["fvu"]["value"] == pytest.approx(17 / 14, abs=1e-6)
    # The row of zeros has no direction and no length.
    assert report["cosine"]["value"] == pytest.approx((9 / 15 + 1) / 2)
    assert report["shrinkage"]["value"] == pytest.approx((3 / 5 + 1 / 2) / 2)
    assert report["l0"]["value"] == pytest.approx(1.0) and report["l0_median"]["value"] == 1.0
    assert report["dead"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert report["density"]["never"] == 1 and sum(report["density"]["latents"]) == 2
    assert report["n_groups"] == 2 and report["fvu"]["n"] == 3
    sums.add(x[:1], x_hat[:1], z[:1], np.array([0]))
    assert sums.l0_median() == 1.5


@given(st.integers(0, 1000), st.integers(1, 60), st.integers(1, 7))
@settings(max_examples=20, deadline=None)
def test_sums_do_not_depend_on_the_chunks(seed, n, size):
    generator = torch.Generator().manual_seed(seed)
    x, x_hat = torch.randn(n, 4, generator=generator), torch.randn(n, 4, generator=generator)
    z = torch.relu(torch.randn(n, 6, generator=generator))
    group = np.arange(n) % 3
    whole, parts = Reconstruction(4, 6, 3), Reconstruction(4, 6, 3)
    whole.add(x, x_hat, z, group)
    for at in range(0, n, size):
        cut = slice(at, at + size)
        parts.add(x[cut], x_hat[cut], z[cut], group[cut])
    w = bootstrap_weights(3, 20, 0)
    for name, values in whole.figures(w).items():
        np.testing.assert_allclose(parts.figures(w)[name], values, rtol=1e-9)
    assert whole.l0_median() == parts.l0_median() == float(np.median((z > 0).sum(1)))
    np.testing.assert_array_equal(whole.fired, (z > 0).sum(0))


def test_draws_are_the_figures_of_resampled_rows():
    sae, x = random_sae(8, 12, threshold=1.0), torch.randn(60, 8)
    groups = np.arange(60) // 6
    weights = bootstrap_weights(10, 5, 3)
    found = accumulate(sae, x, groups).figures(weights)
    for i, weight in enumerate(weights):
        again = np.repeat(np.arange(60), weight[groups].astype(int))
        expected = accumulate(sae, x[again]).figures()
        for name in found:
            assert found[name][i] == pytest.approx(expected[name][0], rel=1e-6)


def test_fvu_does_not_depend_on_the_mean():
    # Around the mean; kept exactly although the mean is a thousand times the spread.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    noise = 0.5 * rng.normal(size=(500, 4))
    for offset in (0.0, 1000.0):
        sums = Reconstruction(4, 1)
        rows, back = torch.from_numpy(x + offset), torch.from_numpy(x + offset + noise)
        sums.add(rows, back, torch.zeros(500, 1))
        expected = (noise**2).sum() / ((x - x.mean(0)) ** 2).sum()
        assert sums.figures()["fvu"][0] == pytest.approx(expected, rel=1e-9)


def test_figures_equal_those_of_sae_lens():
    from sae_lens.evals import ExplainedVarianceCalculator
    from sae_lens.synthetic.evals import DeadLatentsCalculator, L0Calculator, ShrinkageCalculator

    sae, x = random_sae(24, 64, threshold=0.5), torch.from_numpy(planted(700))
    sae.threshold[7] = 1e6
    z = sae.encode(x)
    x_hat = sae.decode(z)
    l0, dead, shrinkage = L0Calculator(), DeadLatentsCalculator(64), ShrinkageCalculator()
    variance = ExplainedVarianceCalculator()
    for start in range(0, 700, 100):
        part = slice(start, start + 100)
        l0.add_batch(z[part])
        dead.add_batch(z[part])
        shrinkage.add_batch(x_hat[part], x[part])
        variance.add_batch(x_hat[part], x[part])
    report = accumulate(sae, x, np.arange(700)).report(n_draws=20)
    assert report["l0"]["value"] == pytest.approx(l0.compute(), rel=1e-5)
    assert report["dead"]["value"] == pytest.approx(dead.compute() / 64, abs=1e-6)
    assert report["shrinkage"]["value"] == pytest.approx(shrinkage.compute(), rel=1e-5)
    assert 1 - report["fvu"]["value"] == pytest.approx(variance.compute(), rel=1e-4)
    dense = ((z > 0).double().mean(0) > 0.1).double().mean()
    assert report["dense"]["value"] == pytest.approx(float(dense), abs=1e-6)


def test_interval_over_groups_is_wider_than_over_rows():
    sae = random_sae(8, 12, threshold=1.0)
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(20, 8)), 30, axis=0).astype(np.float32)  # 30 alike each
    x += 0.01 * rng.normal(size=x.shape).astype(np.float32)
    by_row, by_group = (
        accumulate(sae, x, groups).report(n_draws=300)["l0"]
        for groups in (np.arange(600), np.arange(600) // 30)
    )
    assert by_row["value"] == by_group["value"]
    assert by_group["high"] - by_group["low"] > 2 * (by_row["high"] - by_row["low"])


def test_rows_array_and_tensor_give_the_same_figures():
    sae, x = random_sae(24, 64), planted(5000)  # more than one chunk
    groups = np.arange(5000) // 3
    array = accumulate(sae, x, groups).report(n_draws=30)
    assert accumulate(sae, EmbeddingRows.of(x), groups).report(n_draws=30) == array
    assert accumulate(sae, torch.from_numpy(x), groups).report(n_draws=30) == array


def test_rows_that_are_not_finite_are_counted_and_left_out():
    sae, x = random_sae(8, 12), np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    good = accumulate(sae, x[2:], np.arange(48)).report(n_draws=0)
    x[0, 3], x[1, 0] = np.nan, np.inf
    found = accumulate(sae, x, np.arange(50)).report(n_draws=0)
    assert found["n_not_finite"] == 2 and found["fvu"] == good["fvu"]
    with pytest.raises(EvidenceError, match="none of the 2 held-out rows is finite"):
        accumulate(sae, x[:2], np.arange(2)).report()


def test_equal_rows_have_no_fvu():
    report = accumulate(random_sae(8, 12), np.ones((40, 8), np.float32), np.arange(40)).report()
    assert report["fvu"]["value"] is None and report["fvu"]["low"] is None
    assert report["cosine"]["value"] is not None


def test_rows_of_another_width_are_refused():
    with pytest.raises(UserInputError, match="9 wide.* fitted on 8"):
        accumulate(random_sae(8, 12), np.ones((40, 9), np.float32), np.arange(40))
    with pytest.raises(UserInputError, match="3 groups were given for 40 rows"):
        accumulate(random_sae(8, 12), np.ones((40, 8), np.float32), np.arange(3))


def test_pca_fvu_equals_that_of_scikit_learn():
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(0)
    train, x = (rng.normal(size=(n, 6)) @ np.diag([5, 3, 1, 1, 0.5, 0.1]) + 2 for n in (400, 100))
    found = [pca_fvu(train, x, rank) for rank in (0, 2, 6, 99)]
    pca = PCA(2).fit(train)
    back = pca.inverse_transform(pca.transform(x))
    expected = ((x - back) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert found[1] == pytest.approx(expected, abs=1e-5)
    assert found[0] >= 1 and found[2] == pytest.approx(0, abs=1e-6) == found[3]


def test_rows_of_a_group_share_a_group_number():
    groups = [f"p{i // 2}" for i in range(20_000)]
    member = group_numbers(groups, most=100)
    assert (member[::2] == member[1::2]).all() and member.max() == 99
    assert np.bincount(member).min() == np.bincount(member).max()
    assert len(np.unique(group_numbers(groups[:50]))) == 25


def test_figure_has_none_for_unknown_values():
    assert figure(float("nan"), 3, (float("nan"), 1.0)) == {
        "value": None,
        "low": None,
        "high": 1.0,
        "n": 3,
        "control": None,
        "control_is": None,
    }


def test_mapped_rows_are_released_as_they_are_read():
    class Mapped:
        n, d = 200_000, 1
        taken = most = 0

        def read(self, start, stop):
            self.taken += stop - start
            self.most = max(self.most, self.taken)
            return np.arange(start, stop, dtype=np.float32)[:, None]

        def release(self):
            self.taken = 0

    rows = Mapped()
    read = torch.cat([part for _, part in chunks(rows, 3000)])[:, 0]
    torch.testing.assert_close(read, torch.arange(200_000.0), rtol=0, atol=0)
    assert rows.most < 70_000
