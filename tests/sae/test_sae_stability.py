"""Stability: the same dictionary in another order is found again, another one is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sae_rows import planted, random_sae
from scipy.sparse import csr_matrix

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.sae import ThresholdSAE
from dermaudit.sae.evaluation import stability, stability_report
from dermaudit.sae.evaluation.stability import code_correlation, match

X = planted(400)


def shuffled(sae: ThresholdSAE, seed: int = 0, keep: int | None = None) -> ThresholdSAE:
    """The same latents in another order; only the first `keep` of it where given."""
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))[:keep]
    return ThresholdSAE(
        sae.W_enc[:, order], sae.W_dec[order], sae.b_enc[order], sae.b_dec, sae.threshold[order], {}
    )


def test_match_is_the_best_of_all_orders():
    similarity = np.random.default_rng(0).normal(size=(5, 6))
    rows, columns = match(similarity)
    best = max(
        sum(similarity[i, j] for i, j in enumerate(order))
        for order in itertools.permutations(range(6), 5)
    )
    assert similarity[rows, columns].sum() == pytest.approx(best)


def test_match_of_large_tables_keeps_pairs_that_are_each_others_best(monkeypatch):
    monkeypatch.setattr(stability, "MAX_EXACT", 2)
    similarity = np.array([[0.9, 0.8, 0.0], [0.7, 0.1, 0.0], [0.0, 0.0, 0.5]])
    rows, columns = match(similarity)
    assert rows.tolist() == [0, 2] and columns.tolist() == [0, 2]


def test_code_correlation_equals_numpy():
    rng = np.random.default_rng(0)
    one, two = (rng.random((50, m)) * (rng.random((50, m)) < 0.4) for m in (4, 3))
    two[:, 1] = 2.0  # never changes
    expected = np.corrcoef(one.T, two[:, [0, 2]].T)[:4, 4:]
    found = code_correlation(csr_matrix(one), csr_matrix(two))
    np.testing.assert_allclose(found[:, [0, 2]], expected, atol=1e-12)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-12)


def test_same_latents_in_another_order_are_stable():
    sae = random_sae(24, 40)
    report = stability_report([sae, shuffled(sae, 1), shuffled(sae, 2)], X)
    for name in (
        "decoder_cosine",
        "encoder_cosine",
        "shared",
        "shared_by_mass",
        "mmcs",
        "code_correlation",
        "share_decoder_09",
        "stable",
    ):
        assert report[name]["value"] == pytest.approx(1.0, abs=1e-5), name
    assert set(report["per_latent"]["stable"]) <= {True, None}
    assert report["decoder_cosine"]["control"] < 0.75 and report["shared"]["control"] < 0.5


def test_other_dictionary_is_at_chance():
    report = stability_report([random_sae(24, 40, seed=s) for s in range(3)], X)
    cosine = report["decoder_cosine"]
    assert abs(cosine["value"] - cosine["control"]) < 0.05
    assert report["shared"]["value"] == 0.0 and report["stable"]["value"] == 0.0
    # Codes agree somewhat for the rows have few directions; shifted rows do not.
    assert report["code_correlation"]["control"] < report["code_correlation"]["value"]


def test_shared_half_of_the_latents_is_found():
    sae, other = random_sae(24, 40), random_sae(24, 40, seed=9)
    mixed = ThresholdSAE(
        torch.cat([sae.W_enc[:, :20], other.W_enc[:, 20:]], 1),
        torch.cat([sae.W_dec[:20], other.W_dec[20:]]),
        torch.cat([sae.b_enc[:20], other.b_enc[20:]]),
        sae.b_dec,
        sae.threshold,
        {},
    )
    report = stability_report([sae, mixed], X)
    stable = report["per_latent"]["stable"]
    assert all(flag in (True, None) for flag in stable[:20])
    assert not any(stable[20:])
    n = report["shared"]["n"]
    assert report["shared"]["value"] == pytest.approx(sum(f is True for f in stable) / n, abs=1e-6)
    mass = sae.encode(torch.from_numpy(X)).double().sum(0).numpy()
    assert report["shared_by_mass"]["value"] == pytest.approx(
        mass[:20].sum() / mass.sum(), abs=1e-5
    )


def test_equal_decoders_alone_are_not_shared():
    sae = random_sae(24, 40)
    turned = ThresholdSAE(
        random_sae(24, 40, seed=5).W_enc,
        sae.W_dec.clone() * 1.5,
        sae.b_enc,
        sae.b_dec,
        sae.threshold,
        {},
    )
    report = stability_report([sae, turned], X)
    assert report["decoder_cosine"]["value"] > 0.9 and report["shared"]["value"] == 0.0


def test_dead_latents_are_neither_stable_nor_counted():
    sae = random_sae(24, 40)
    sae.threshold[:10] = 1e6
    report = stability_report([sae, shuffled(random_sae(24, 40))], X)
    assert report["per_latent"]["stable"][:10] == [None] * 10
    alive = (sae.encode(torch.from_numpy(X)) > 0).any(0).sum()
    assert report["shared"]["n"] == int(alive) and report["shared"]["value"] == 1.0


def test_fewer_latents_in_the_other_leave_some_without_a_partner():
    sae = random_sae(24, 40)
    report = stability_report([sae, shuffled(sae, keep=10)], X)
    assert report["shared"]["value"] == pytest.approx(10 / 40, abs=0.03)


def test_fitted_seeds_share_planted_directions(rows, recipe, fitted):
    from dermaudit.sae import fit_sae

    other, _ = fit_sae(rows["train"], rows["val"], recipe, site="s", model_name="t", seed=4)
    report = stability_report([fitted[0], other], rows["test"])
    assert report["shared"]["value"] > report["shared"]["control"] + 0.3
    assert report["share_decoder_09"]["value"] > report["share_decoder_09"]["control"] + 0.3


@pytest.mark.parametrize("case", ["one", "twice", "width", "silent"])
def test_unsuitable_saes_are_refused(case):
    sae = random_sae(24, 40)
    if case == "one":
        with pytest.raises(UserInputError, match="one was given"):
            stability_report([sae], X)
    if case == "twice":
        with pytest.raises(UserInputError, match="a and b hold the same weights"):
            stability_report([sae, random_sae(24, 40)], X, names=["a", "b"])
    if case == "width":
        with pytest.raises(UserInputError, match="SAE 1 was fitted on rows 8 wide"):
            stability_report([sae, random_sae(8, 40)], X)
    if case == "silent":
        with pytest.raises(EvidenceError, match="no latent of SAE 1 fires"):
            stability_report([sae, random_sae(24, 40, seed=1, threshold=1e6)], X)
