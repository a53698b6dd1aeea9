"""Attribution maps: by hand on linear scores, completeness on smooth ones, and on a real tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.heads import LinearHead
from dermaudit.sae import (
    LatentSuppressor,
    ThresholdSAE,
    attribution_map,
    class_logit,
    latent_preactivation,
)
from dermaudit.towers import ZeroShot, load_model

SHAPE = (3, 6, 8)
BLOCK = "visual.blocks.5.hook_resid_post"


def random(seed: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("black", [False, True])
def test_integrated_gradients_of_a_linear_score_are_weight_times_difference(black):
    weight, image = random(0), random(1)
    baseline = torch.zeros(SHAPE) if black else image.mean((1, 2))[:, None, None]
    given_baseline = torch.zeros(SHAPE) if black else None
    found = attribution_map(
        lambda x: (x * weight).sum((1, 2, 3)), image, baseline=given_baseline, n_steps=3
    )
    np.testing.assert_allclose(
        found.values, (weight * (image - baseline)).sum(0).numpy(), atol=1e-5
    )
    assert found.score == pytest.approx(float((weight * image).sum()), abs=1e-4)
    assert found.baseline_score == pytest.approx(float((weight * baseline).sum()), abs=1e-4)
    assert found.values.dtype == np.float32 and abs(found.gap) < 1e-4


def test_occlusion_of_a_linear_score_is_the_loss_of_each_square():
    weight, image = random(0), random(1)
    found = attribution_map(
        lambda x: (x * weight).sum((1, 2, 3)),
        image,
        "occlusion",
        baseline=torch.zeros(SHAPE),
        window=2,
        stride=2,
    )
    lost = (weight * image).sum(0).reshape(3, 2, 4, 2).sum((1, 3))
    expected = lost.repeat_interleave(2, 0).repeat_interleave(2, 1)
    np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-4)


def test_occlusion_averages_over_the_squares_that_cover_a_pixel():
    image = torch.zeros(3, 1, 4)
    image[0, 0] = torch.tensor([1.0, 2.0, 4.0, 8.0])
    image = image.repeat(1, 2, 1)
    found = attribution_map(
        lambda x: x[:, 0, 0].sum(1),
        image,
        "occlusion",
        baseline=torch.zeros_like(image),
        window=2,
        stride=1,
    )
    np.testing.assert_allclose(found.values[0], [3, (3 + 6) / 2, (6 + 12) / 2, 12], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_integrated_gradients_of_a_smooth_score_are_complete(seed):
    first, second = random(seed, (8, 144)) / 6, random(seed + 1, (8,))

    def score(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x.flatten(1) @ first.T) @ second

    found = attribution_map(score, random(seed + 2), baseline=random(seed + 3), n_steps=100)
    assert abs(found.gap) < 2e-3
    assert found.values.shape == SHAPE[1:]


@pytest.fixture(scope="module")
def tower():
    return load_model("phantom-vit")


@pytest.fixture(scope="module")
def image(tower):
    coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return tower.preprocess(np.kron(coarse, np.ones((24, 24, 1), np.uint8)))


def head_of(d: int) -> LinearHead:
    rng = np.random.default_rng(1)
    values = (rng.normal(size=shape).astype(np.float32) for shape in ((2, d), 2, d))
    scale = np.full(d, 0.5, np.float32)
    return LinearHead(*values, scale, ["mel", "nv"], 1.0, "visual.pooled", 80)


def sae_of(d: int, site: str) -> ThresholdSAE:
    both = torch.cat([torch.eye(d), -torch.eye(d)])
    zero = torch.zeros(2 * d)
    return ThresholdSAE(both.T.contiguous(), both, zero, torch.zeros(d), zero, {"hook_name": site})


def test_the_map_of_a_prediction_is_complete_before_and_after_suppression(tower, image):
    head = head_of(tower.d_pooled)
    suppressor = LatentSuppressor(sae_of(tower.d_pooled, "visual.pooled"), [0, 3])
    with torch.no_grad():
        x = tower.encode_image(image[None])
        expected = [head.logits(e.numpy())[0, 0] for e in (x, suppressor(x))]
    for module, logit in zip((None, suppressor), expected, strict=True):
        found = attribution_map(class_logit(tower, head, "mel", module), image, n_steps=64)
        assert found.score == pytest.approx(logit, abs=1e-4)
        assert found.values.shape == tower.preprocess.size
        assert abs(found.gap) < 0.05 * abs(found.score - found.baseline_score) + 0.05
    zero_shot = ZeroShot(tower, {"mel": ["melanoma"], "nv": ["nevus"]})
    found = attribution_map(class_logit(tower, zero_shot, "nv"), image, "occlusion", window=48)
    assert found.score == pytest.approx(float(zero_shot.logits(x)[0, 1]), abs=1e-4)
    with pytest.raises(UserInputError, match="unknown class 'mell': did you mean 'mel'"):
        class_logit(tower, head, "mell")


@pytest.mark.parametrize("site", ["visual.pooled", BLOCK])
def test_the_map_of_a_latent_explains_its_activation_where_it_fires(tower, image, site):
    sae = sae_of(tower.site_width(site), site)
    _, cache = tower.run_with_cache(image[None], names_filter=[site])
    tokens = cache[site] if site == "visual.pooled" else cache[site][:, tower.n_prefix_tokens :]
    codes = sae.encode(tokens).reshape(-1, sae.d_sae).amax(0)
    latent = int(codes.argmax())
    found = attribution_map(
        latent_preactivation(tower, sae, latent), image, "occlusion", window=48, stride=48
    )
    assert found.score == pytest.approx(float(codes[latent]), rel=1e-4)
    assert np.abs(found.values).max() > 0
    assert not any(point.has_hooks() for point in tower.hook_dict.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency"}, "unknown attribution method 'saliency'"),
        (
            {"image": torch.zeros(1, 3, 6, 8)},
            r"one prepared image .* not torch.float32 \(1, 3, 6, 8\)",
        ),
        ({"image": torch.zeros(SHAPE, dtype=torch.uint8)}, "not torch.uint8"),
        ({"baseline": torch.zeros(3, 6, 6)}, r"the baseline has the shape \(3, 6, 6\)"),
        ({"n_steps": 0}, "n_steps is 0"),
        ({"method": "occlusion", "window": 7}, "a window of 7"),
        ({"method": "occlusion", "window": 2, "stride": 3}, "a stride of 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserInputError, match=message):
        attribution_map(lambda x: x.sum((1, 2, 3)), **{"image": random(0), **options})


def test_a_latent_that_does_not_fit_is_refused(tower, image):
    with pytest.raises(UserInputError, match="latent 9 is not within this SAE's 0 … 7"):
        latent_preactivation(tower, sae_of(4, "visual.pooled"), 9)
    with pytest.raises(ForeignArtifactError, match="d_in 4"):
        attribution_map(latent_preactivation(tower, sae_of(4, "visual.pooled"), 0), image)
