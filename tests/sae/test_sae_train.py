"""Fits: calibrated L0, determinism, the fold, SAE files, and the default recipe of a site."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sae_rows import held_out, planted, random_sae

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import sha256_file
from dermaudit.sae import ThresholdSAE, fit_sae
from dermaudit.sae.training.calibrate import calibrate, fold
from dermaudit.sae.training.plan import ROWS_PER_LATENT, site_recipe
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.sae_lens_model import build


def test_l0_on_the_calibration_rows_is_k(fitted, rows, recipe):
    sae, summary = fitted
    z = sae.encode(torch.from_numpy(rows["train"]))
    assert float((z > 0).sum(1).double().mean()) == pytest.approx(recipe.k, rel=0.02)
    assert summary["n_train"] == 2000


def test_fitted_sae_reconstructs_held_out_rows(fitted, rows):
    measured = held_out(fitted[0], torch.from_numpy(rows["test"]))
    assert measured["fvu"] < 0.35 and measured["l0"] == pytest.approx(4.0, rel=0.15)
    # A dictionary that knows nothing of the rows does not get near.
    assert held_out(random_sae(24, 64), torch.from_numpy(rows["test"]))["fvu"] > 1


def test_threshold_lies_in_a_gap(fitted, rows):
    sae, _ = fitted
    pre = sae.pre(torch.from_numpy(rows["train"]).float()).flatten()
    value = sae.threshold[0]
    assert (sae.threshold == value).all()
    above, below = pre[pre > value].min(), pre[pre <= value].max()
    assert above > value > below
    assert float(value) == pytest.approx(float(above + below) / 2, rel=1e-4)


def test_same_seed_gives_the_same_bytes(fitted, rows, recipe, tmp_path):
    again, summary = fit_sae(
        rows["train"], rows["val"], recipe, site="visual.pooled", model_name="toy", seed=3
    )
    fitted[0].save(tmp_path / "a")
    again.save(tmp_path / "b")
    for name in ("cfg.json", "sae_weights.safetensors"):
        assert sha256_file(tmp_path / "a" / name) == sha256_file(tmp_path / "b" / name)
    assert summary == fitted[1]
    short = SAERecipe(**{**vars(recipe), "samples": 2560})
    one, other = (
        fit_sae(rows["train"], rows["val"], short, site="s", model_name="t", seed=seed)[0]
        for seed in (0, 1)
    )
    assert not torch.equal(one.W_enc, other.W_enc)


def test_early_stopping_keeps_the_best_weights(rows):
    # Held-out rows of pure noise: what is learned makes them worse, and fitting ends before its time.
    noise = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    recipe = SAERecipe(d_sae=48, k=4, samples=100_000, batch=256, checks=20, patience=2, lr=3e-3)
    _, summary = fit_sae(rows["train"], noise, recipe, site="s", model_name="t")
    assert summary["steps"] < 390


def test_fold_keeps_reconstruction_and_codes():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    torch.manual_seed(0)
    config = BatchTopKTrainingSAEConfig(
        d_in=24, d_sae=48, k=48.0, device="cpu", dtype="float32", rescale_acts_by_decoder_norm=True
    )
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x, scale = torch.from_numpy(planted(50)), 3.7
    with torch.no_grad():
        before = sae.decode(sae.encode(x * scale)) / scale
        codes = sae.encode(x * scale) / scale
    folded = fold(sae, SAERecipe(d_sae=48, k=48), scale, "s", "m")
    after = folded.decode(folded.encode(x))
    torch.testing.assert_close(folded.encode(x), codes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "kind"), [("relu_l1", "standard"), ("jumprelu", "jumprelu")]
)
def test_fold_keeps_the_trained_sae_of_a_penalty(architecture, kind):
    recipe = SAERecipe(architecture=architecture, d_sae=48, k=4)
    sae = build(recipe, torch.zeros(24), dtype=torch.float32, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        if architecture == "jumprelu":
            sae.threshold.abs_()  # sae-lens keeps it so
    x, scale = torch.from_numpy(planted(50)), 3.7
    folded = fold(sae, recipe, scale, "s", "m")
    assert folded.architecture == kind
    with torch.no_grad():
        expected, z = sae.decode(sae.encode(x * scale)) / scale, sae.encode(x * scale)
    torch.testing.assert_close(
        folded.encode(x), z * sae.W_dec.detach().norm(dim=1) / scale, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(folded.decode(folded.encode(x)), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("k", [0.5, 3.0, 7.25])
def test_calibration_gives_a_mean_l0_of_k(k):
    sae = random_sae(8, 30, threshold=0.0)
    x = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    value = calibrate(sae, x, k, torch.Generator().manual_seed(0))
    assert float((sae.encode(x) > 0).sum(1).double().mean()) == pytest.approx(k, rel=1e-3)
    # Against the quantile over all pre-activations at once (calibrate streams them).
    ordered = torch.relu(sae.pre(x)).flatten().sort(descending=True).values
    target = round(k * 5000)
    assert ordered[target] <= value <= ordered[target - 1]


def test_calibration_sets_thresholds_to_zero_if_k_is_not_reached():
    sae = random_sae(8, 4)
    calibrate(sae, torch.randn(100, 8), 4.0, torch.Generator().manual_seed(0))
    assert not sae.threshold.any()


def test_calibration_shifts_different_thresholds_by_one_amount():
    eye = torch.eye(2)
    sae = ThresholdSAE(eye, eye, torch.zeros(2), torch.zeros(2), torch.tensor([0.0, 1.0]))
    # Margins p - t: 3, 1, .5 of the first latent; 4, 1.5, -.5 of the second (p > 0 all along).
    x = torch.tensor([[3.0, 0.5], [1.0, 5.0], [0.5, 2.5], [-9.0, -9.0]])
    generator = torch.Generator()
    for k, shift, threshold in (
        (0.5, 2.25, [2.25, 3.25]),  # two codes: between 3 and 1.5
        (1.25, 0.0, [0.0, 1.0]),  # five: between .5 and -.5, as it is
        (1.5, -0.75, [0.0, 0.25]),  # all six that are positive
        (2.0, -1.0, [0.0, 0.0]),  # more than relu gives
    ):
        sae.threshold = torch.tensor([0.0, 1.0])
        assert calibrate(sae, x, k, generator) == shift
        assert torch.equal(sae.threshold, torch.tensor(threshold))
        assert int((sae.encode(x) > 0).sum()) == min(6, round(4 * k))


@pytest.mark.parametrize("k", [1.0, 3.0, 6.0, 14.0])
def test_calibration_keeps_the_order_of_thresholds(k):
    """Thresholds are raised or lowered; compared with a count over all margins at once."""
    sae = random_sae(8, 30)
    learned = torch.rand(30, generator=torch.Generator().manual_seed(2)) * 2
    sae.threshold = learned.clone()
    x = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    before = float((sae.encode(x) > 0).sum(1).double().mean())
    shift = calibrate(sae, x, k, torch.Generator().manual_seed(0))
    fires = sae.encode(x) > 0
    assert float(fires.sum(1).double().mean()) == pytest.approx(k, rel=1e-3)
    pre = sae.pre(x)
    torch.testing.assert_close(fires, (pre > 0) & (pre - learned > shift))
    order = learned.argsort()
    assert (sae.threshold[order].diff() >= 0).all() and (sae.threshold >= 0).all()
    assert abs(before - k) > 0.5 and (shift > 0) == (before > k)


# ---- files


def test_saved_sae_loads_equal(tmp_path):
    sae = random_sae()
    sae.save(tmp_path)
    again = ThresholdSAE.load(tmp_path)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        assert torch.equal(getattr(sae, name), getattr(again, name))
    assert again.metadata == sae.metadata and again.hook_name == "visual.pooled"


def rewrite(folder, **changes):
    path = folder / "cfg.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("apply_b_dec", [True, False])
def test_standard_sae_of_sae_lens_is_loaded(tmp_path, apply_b_dec):
    from sae_lens import SAE, StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    stock = StandardSAE(StandardSAEConfig(d_in=8, d_sae=12, apply_b_dec_to_input=apply_b_dec))
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(torch.randn_like(parameter))
    stock.save_model(tmp_path)
    ours = ThresholdSAE.load(tmp_path)
    x = torch.randn(20, 8)
    torch.testing.assert_close(
        ours.encode(x), SAE.load_from_disk(tmp_path).encode(x).detach(), atol=1e-5, rtol=1e-5
    )


def test_other_architecture_is_refused_when_loaded(tmp_path):
    random_sae().save(tmp_path)
    rewrite(tmp_path, architecture="topk")
    with pytest.raises(ForeignArtifactError, match="is a 'topk' SAE") as refused:
        ThresholdSAE.load(tmp_path)
    assert "threshold" in refused.value.hint


def test_sae_with_scaled_inputs_is_refused(tmp_path):
    random_sae().save(tmp_path)
    rewrite(tmp_path, normalize_activations="layer_norm")
    with pytest.raises(ForeignArtifactError, match="layer_norm"):
        ThresholdSAE.load(tmp_path)


def test_missing_cut_off_or_mismatched_files_are_refused(tmp_path):
    with pytest.raises(UserInputError, match="there is no sparse autoencoder"):
        ThresholdSAE.load(tmp_path)
    random_sae().save(tmp_path)
    rewrite(tmp_path, d_sae=13)
    with pytest.raises(ForeignArtifactError, match="d_sae 13.*W_enc"):
        ThresholdSAE.load(tmp_path)
    rewrite(tmp_path, d_sae=12)
    weights = tmp_path / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-7])
    with pytest.raises(ForeignArtifactError, match="cut off"):
        ThresholdSAE.load(tmp_path)
    weights.write_bytes(whole)
    cfg = (tmp_path / "cfg.json").read_text()
    (tmp_path / "cfg.json").write_text(cfg[: len(cfg) // 2])
    with pytest.raises(UserInputError, match="not valid JSON"):
        ThresholdSAE.load(tmp_path)


# ---- metrics and widths


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("n_train", [70, 700, 1500, 3000, 20_000])
def test_site_recipe_is_as_wide_as_the_rows_allow(tokens, n_train):
    widest = site_recipe(tokens, 10**7, {}).d_sae
    recipe = site_recipe(tokens, n_train, {})
    rows = n_train * tokens
    assert recipe.d_sae * ROWS_PER_LATENT <= rows or recipe.d_sae == 64
    assert recipe.d_sae == widest or 2 * recipe.d_sae * ROWS_PER_LATENT > rows
    assert recipe.k < recipe.d_sae


def test_site_recipe_keeps_given_settings():
    assert site_recipe(1, 700, {"d_sae": 300}).d_sae == 300
    changed = site_recipe(1, 10_000, {"k": 3.0, "samples": None})
    assert changed.k == 3.0 and changed.samples == site_recipe(1, 10_000, {}).samples
