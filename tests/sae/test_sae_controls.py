"""Controls of an SAE: what their directions are, and the table beside a trained SAE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_rows import planted
from synthetic import synthetic_rows

from dermaudit.sae.controls.dictionaries import DICTIONARIES, directions_of
from dermaudit.sae.controls.measure import ControlRows, controls_report
from dermaudit.sae.controls.table import ENSEMBLE, SINGLE, TRAINED, compared, controls_table
from dermaudit.sae.controls.trained import ensemble
from dermaudit.sae.inference.model import ThresholdSAE
from dermaudit.sae.training.loop import fit_sae
from dermaudit.sae.training.recipe import SAERecipe

X = planted(600)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_directions_have_unit_length_and_depend_on_the_seed_alone(name):
    found = directions_of(name, X, 20, 0)
    assert 1 <= len(found) <= 20 and found.shape[1] == 24
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, directions_of(name, X, 20, 0))


def test_pca_is_that_of_the_singular_vectors():
    found = directions_of("PCA", X, 6, 0)
    _, _, basis = np.linalg.svd(X - X.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((found[:3] * basis[:3]).sum(1)), 1, atol=1e-4)
    np.testing.assert_allclose(found[3:], -found[:3], atol=1e-6)  # one for each sign


def test_k_means_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centres = 5 * np.eye(8)[:4]
    x = (np.repeat(centres, 50, 0) + 0.1 * rng.normal(size=(200, 8))).astype(np.float32)
    expected = centres - centres.mean(0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    cosine = directions_of("k-means", x, 4, 0) @ expected.T
    np.testing.assert_allclose(np.sort(cosine.max(0)), 1, atol=1e-2)


@pytest.fixture(scope="module")
def report():
    """Rows of planted factors: labels are four factors, the class is a fifth."""
    made = {split: synthetic_rows(n, d=24, factors=12, active=2.0, seed=seed)
            for split, n, seed in (("train", 1200, 1), ("val", 400, 2), ("test", 500, 3))}  # fmt: skip
    truths = {name: (rows.factors[:, :5] > 0).astype(float) for name, rows in made.items()}
    train = made["train"].x
    rows = ControlRows(
        train=train,
        val=made["val"].x,
        test=made["test"].x,
        halves=(train[::2], train[1::2]),
        groups={name: np.arange(len(one.x)).astype(str) for name, one in made.items()},
        truths=truths,
        concepts=["a", "b", "c", "d", "class"],
        target="class",
    )
    recipe = SAERecipe(d_sae=16, k=2.0, samples=60_000, batch=128, lr=5e-3)
    sae, _ = fit_sae(train, rows.val, recipe, site="", model_name="")
    return controls_report(sae, recipe, rows)


def test_report_has_every_control_with_every_figure(report):
    wanted = {"this SAE", *TRAINED, "random SAE", "soft-frozen random decoder", *DICTIONARIES}
    assert set(report) == wanted
    for name, one in report.items():
        assert one["n_concepts"] == 4
        l0 = 10.0 if name == ENSEMBLE else 2.0  # that of five fits
        assert one["fvu"] > 0 and one["l0"] == pytest.approx(l0, rel=0.35), name
        assert 0 < one["bottleneck_auroc"] <= 1 and one["monosemanticity"] is not None
        low, high = one["lift_share_ci"]
        assert low <= one["lift_share"] <= high
        if name != "this SAE":
            assert -1 <= one["pw_mcc"] <= 1
            # More active latents never reconstruct worse.
            assert [point[0] for point in one["curve"]] == sorted(
                point[0] for point in one["curve"]
            )


def test_ensemble_reconstructs_with_the_mean_of_its_members():
    g = torch.Generator().manual_seed(0)

    def sae(h: int) -> ThresholdSAE:
        shapes = {"W_enc": (6, h), "W_dec": (h, 6), "b_enc": (h,), "b_dec": (6,), "threshold": (h,)}
        return ThresholdSAE(**{n: torch.randn(s, generator=g) for n, s in shapes.items()})

    members, x = [sae(4), sae(5), sae(4)], torch.randn(50, 6, generator=g)
    whole = ensemble(members)
    codes = [one.encode(x) for one in members]
    torch.testing.assert_close(whole.encode(x), torch.cat(codes, 1))
    means = torch.stack([one.decode(z) for one, z in zip(members, codes, strict=True)]).mean(0)
    torch.testing.assert_close(whole.decode(whole.encode(x)), means)


def test_trained_sae_is_better_than_random_directions_where_factors_are_planted(report):
    ours, random, frozen = (
        report[name] for name in ("this SAE", "random SAE", "frozen random decoder")
    )
    assert ours["lift_share"] > 0.9 > random["lift_share"]
    assert ours["fvu"] < frozen["fvu"] < random["fvu"]
    assert report[SINGLE]["pw_mcc"] > 0.75 > report["random SAE"]["pw_mcc"]


def test_table_says_where_training_helps(report, capsys):
    controls_table(report, 0.95)
    said = capsys.readouterr().err
    for name in report:
        assert name in said
    assert "Training helps in: FVU" in said


def test_sentence_says_where_training_helps_ties_and_is_worse():
    one = {"fvu": 0.2, "lift_share": 0.8, "lift_share_ci": [0.7, 0.9], "bottleneck_auroc": 0.901}
    one |= {"monosemanticity": 0.1, "pw_mcc": 0.5}
    other = {"fvu": 0.3, "lift_share": 0.75, "bottleneck_auroc": 0.91, "monosemanticity": 0.2}
    other |= {"pw_mcc": 0.4}
    said = compared({"this SAE": one, "PCA": other, SINGLE: other | {"fvu": 0.1}}, 0.6)
    helps, rest = said.split(" A control ties in: ")
    ties, worse = rest.split(" It is worse in: ")
    assert "FVU (0.200 against 0.300 of PCA)" in helps and "agreement of two halves (0.600" in helps
    assert "lift share" in ties and "bottleneck AUROC" in ties  # in the interval; less than 2 %
    assert worse == "monosemanticity (0.100 against 0.200 of PCA)."
    none = {key: None for key in other}
    assert "Training helps in: nothing." in compared({"this SAE": none, "PCA": none}, None)
