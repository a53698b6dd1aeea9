"""MAKE's losses: by hand on three images, against a plain loop, and equal to InfoNCE where they must be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.loss import ClipLoss

from dermaudit.pretrain.losses.make import (
    N_FULL,
    MakeSwitches,
    diagnosis_weights,
    info_nce,
    make_loss,
    pool_patches,
    soft_targets,
)

SCALE = torch.tensor(5.0)
EVERY = [
    MakeSwitches(denominator, alignment, weights, mask, 0.1)
    for denominator in ("view", "all")
    for alignment in ("text_to_image", "image_to_text")
    for weights in ("ratio", "softmax", "none")
    for mask in (False, True)
]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def batch(b: int = 3, n: int = 5, d: int = 4, seed: int = 0):
    """(images, texts, mask, patches): image 0 has all views, 1 no ontology, 2 only raw and one sub."""
    mask = torch.ones(b, n, dtype=torch.bool)
    mask[1, 1] = False
    mask[2, 1:] = False
    mask[2, 4] = True
    texts = unit(b, n, d, seed=seed + 1) * mask[..., None]
    return unit(b, d, seed=seed), texts, mask, unit(b, 6, d, seed=seed + 2)


def by_loops(images, texts, mask, patches, switches) -> tuple[float, float]:
    """The same two losses with Python loops over images, views and candidates, from the formulas."""
    b, n = mask.shape
    s = float(SCALE)
    dot = lambda x, y: float(x @ y)  # noqa: E731
    w = [[1.0] * n for _ in range(b)]
    for i in range(b):
        subs = [k for k in range(N_FULL, n) if mask[i, k]]
        if switches.weights == "none" or not mask[i, 1] or not subs:
            continue
        near = [dot(texts[i, 1], texts[i, k]) for k in subs]
        if switches.weights == "softmax":
            total = sum(math.exp(x) for x in near)
            near = [math.exp(x) / total for x in near]
        near = [max(x, 0.0) for x in near]
        if max(near) > 0:
            for k, x in zip(subs, near, strict=True):
                w[i][k] = x / max(near)

    def nll(own: float, others: list[float]) -> float:
        return math.log(sum(math.exp(x) for x in others)) - own

    there = [(i, k) for i in range(b) for k in range(n) if mask[i, k]]
    to_text, to_image = [], []
    for i, k in there:
        own = s * dot(images[i], texts[i, k])
        to_image.append(nll(own, [s * dot(images[j], texts[i, k]) for j in range(b)]))
        if switches.denominator == "view":
            pool = [(j, k) for j in range(b) if mask[j, k]]
        else:
            pool = [(j, m) for j, m in there if j != i or m == k or not switches.mask_positives]
        to_text.append(nll(own, [s * dot(images[i], texts[j, m]) for j, m in pool]))
    weight = [w[i][k] for i, k in there]
    mean = lambda x, w: sum(a * c for a, c in zip(x, w, strict=True)) / sum(w)  # noqa: E731
    flat = [1.0] * len(there) if switches.weights == "softmax" else weight
    contrastive = (mean(to_text, weight) + mean(to_image, flat)) / 2

    pooled = []
    for i in range(b):
        z = [dot(p, texts[i, 0]) for p in patches[i]]
        if switches.alignment == "text_to_image":
            z = [max(x, 0.0) for x in z]
            z = [x / sum(z) for x in z]
        else:
            z = [x if x >= switches.sigma else 0.0 for x in z]
            z = [x / math.sqrt(sum(y * y for y in z)) for x in z]
        pooled.append(sum(x * p for x, p in zip(z, patches[i], strict=True)))
    losses, weight = [], []
    for i, k in there:
        own = s * dot(pooled[i], texts[i, k])
        if switches.alignment == "text_to_image":
            if k < N_FULL:
                continue
            losses.append(nll(own, [s * dot(pooled[j], texts[i, k]) for j in range(b)]))
        else:
            if k == 0:
                continue
            pool = [(j, m) for j, m in there if j != i or m == k or not switches.mask_positives]
            losses.append(nll(own, [s * dot(pooled[i], texts[j, m]) for j, m in pool]))
        weight.append(w[i][k])
    return contrastive, mean(losses, weight)


@pytest.mark.parametrize("switches", EVERY, ids=str)
@pytest.mark.parametrize("seed", [0, 7])
def test_make_is_the_formula_in_loops(switches, seed):
    images, texts, mask, patches = batch(seed=seed)
    pooled = pool_patches(patches, texts[:, 0], mask[:, 0], switches)
    found = make_loss(images, texts, mask, pooled, SCALE, switches)
    expected = by_loops(images, texts, mask, patches, switches)
    assert found.contrastive.item() == pytest.approx(expected[0], abs=1e-5)
    assert found.alignment.item() == pytest.approx(expected[1], abs=1e-5)


def test_make_by_hand():
    # Two orthogonal images, their raw captions exact, one sub-caption of image 0 exact: every softmax
    # is over (s, 0), or over one text alone where only image 0 has the view.
    images = torch.eye(2)
    texts = torch.zeros(2, 4, 2)
    texts[:, 0] = images
    texts[0, 3] = images[0]
    mask = torch.tensor([[True, False, False, True], [True, False, False, False]])
    nll = math.log(1 + math.exp(-5))
    patches = torch.eye(2)[None].expand(2, 2, 2)  # one patch of each image looks like its caption
    switches = MakeSwitches()
    pooled = pool_patches(patches, texts[:, 0], mask[:, 0], switches)
    assert torch.equal(pooled, images)
    contrastive, alignment = make_loss(images, texts, mask, pooled, SCALE, switches)
    # Three views; the sub-caption has no negative caption, but image 1 as a negative.
    assert contrastive.item() == pytest.approx((nll + nll + nll / 2) / 3, abs=1e-6)
    assert alignment.item() == pytest.approx(nll, abs=1e-6)


@pytest.mark.parametrize("switches", EVERY, ids=str)
def test_make_only_raw_captions_is_plain_info_nce(switches):
    images, texts = unit(6, 8), unit(6, 7, 8, seed=1)
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[:, 0] = True
    loss = make_loss(images, texts, mask, None, SCALE, switches).contrastive
    torch.testing.assert_close(loss, ClipLoss()(images, texts[:, 0], SCALE))


@pytest.mark.parametrize("switches", EVERY, ids=str)
def test_make_ignores_the_content_of_an_absent_view(switches):
    images, texts, mask, patches = batch(b=3)
    texts, images = texts.clone().requires_grad_(True), images.requires_grad_(True)
    pooled = pool_patches(patches, texts[:, 0], mask[:, 0], switches)
    loss = sum(make_loss(images, texts, mask, pooled, SCALE, switches))
    loss.backward()
    assert (texts.grad[~mask] == 0).all() and images.grad.isfinite().all()
    assert (texts.grad[mask].abs().sum(1) > 0).all()
    other = torch.where(mask[..., None], texts.detach(), unit(3, 5, 4, seed=9))
    again = sum(make_loss(images, other, mask, pooled.detach(), SCALE, switches))
    torch.testing.assert_close(again, loss)


@given(st.integers(2, 6), st.integers(3, 7), st.integers(0, 99), st.sampled_from(EVERY))
@settings(max_examples=60, deadline=None)
def test_make_the_order_of_images_does_not_matter(b, n, seed, switches):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(b, n, generator=g) < 0.6
    mask[:, 0] = True
    images, texts, patches = (
        unit(b, 4, seed=seed),
        unit(b, n, 4, seed=seed + 1),
        unit(b, 5, 4, seed=seed + 2),
    )
    order = torch.randperm(b, generator=g)

    def loss(rows):
        pooled = pool_patches(patches[rows], texts[rows, 0], mask[rows, 0], switches)
        return make_loss(images[rows], texts[rows], mask[rows], pooled, SCALE, switches)

    torch.testing.assert_close(loss(order), loss(torch.arange(b)), atol=1e-5, rtol=1e-5)


# ---- diagnosis weights


def test_weights_by_hand():
    texts = torch.zeros(1, 6, 3)
    texts[0, 1] = torch.tensor([1.0, 0, 0])
    for k, cosine in ((3, 0.8), (4, 0.4), (5, -0.6)):
        texts[0, k] = torch.tensor([cosine, math.sqrt(1 - cosine**2), 0])
    mask = torch.tensor([[True, True, True, True, True, True]])
    torch.testing.assert_close(
        diagnosis_weights(texts, mask, "ratio"), torch.tensor([[1, 1, 1, 1, 0.5, 0]])
    )
    soft = diagnosis_weights(texts, mask, "softmax")
    torch.testing.assert_close(soft, torch.tensor([[1, 1, 1, 1, math.exp(-0.4), math.exp(-1.4)]]))
    assert (diagnosis_weights(texts, mask, "none") == 1).all()


def test_weights_are_one_without_an_ontology_caption_or_a_similar_one():
    texts, mask = unit(2, 5, 4), torch.ones(2, 5, dtype=torch.bool)
    mask[0, 1] = False
    texts[1, 3:] = -texts[1, 1]
    assert (diagnosis_weights(texts, mask, "ratio") == 1).all()


# ---- patches


def test_pool_threshold_and_length_of_the_code():
    raw = torch.tensor([[1.0, 0, 0]])
    patches = F.normalize(torch.tensor([[[1.0, 0, 0], [0.6, 0.8, 0], [0.2, 1, 0]]]), dim=-1)
    switches = MakeSwitches(alignment="image_to_text", sigma=0.3)
    z = torch.tensor([1.0, 0.6])
    expected = (z / z.norm()) @ patches[0, :2]
    torch.testing.assert_close(
        pool_patches(patches, raw, torch.tensor([True]), switches)[0], expected
    )


def test_pool_is_the_mean_without_a_raw_caption():
    patches = unit(2, 5, 4)
    pooled = pool_patches(patches, unit(2, 4), torch.tensor([True, False]), MakeSwitches())
    torch.testing.assert_close(pooled[1], patches[1].mean(0))


@pytest.mark.parametrize("alignment", ["text_to_image", "image_to_text"])
def test_pool_is_the_mean_if_no_patch_resembles_the_caption(alignment):
    raw = unit(2, 4)
    patches = torch.stack([-raw[:1].expand(5, 4), unit(5, 4)]).requires_grad_(True)
    pooled = pool_patches(
        patches, raw, torch.tensor([True, True]), MakeSwitches(alignment=alignment)
    )
    torch.testing.assert_close(pooled[0], -raw[0])
    pooled[0].sum().backward()
    assert (patches.grad[0].abs().sum(1) > 0).all()


# ---- what else teaches


def test_info_nce_ignores_rows_that_are_not_valid():
    a, b = unit(5, 4), unit(5, 4, seed=1)
    valid = torch.tensor([True, False, True, True, False])
    expected = ClipLoss()(a[valid], b[valid], SCALE)
    torch.testing.assert_close(info_nce(a, b, valid, SCALE), expected)


def test_soft_targets_by_hand():
    similarity = torch.tensor([[1.0, 0.5, math.nan], [0.5, 1.0, math.nan], [math.nan] * 3])
    target = soft_targets(similarity, 0.5, temperature=0.5)
    p = math.exp(2) / (math.exp(2) + math.exp(1))
    torch.testing.assert_close(
        target,
        torch.tensor(
            [[0.5 + 0.5 * p, 0.5 * (1 - p), 0], [0.5 * (1 - p), 0.5 + 0.5 * p, 0], [0, 0, 1.0]]
        ),
    )
    torch.testing.assert_close(soft_targets(similarity, 0.0), torch.eye(3))


def test_one_hot_soft_targets_give_the_loss_without_them():
    images, texts, mask, _ = batch()
    hard = make_loss(images, texts, mask, None, SCALE)
    soft = make_loss(images, texts, mask, None, SCALE, soft=torch.eye(3))
    torch.testing.assert_close(soft, hard)


def test_uniform_soft_targets_by_hand():
    images, texts = unit(3, 4), unit(3, 3, 4, seed=1)
    mask = torch.tensor([[True, False, False]]).expand(3, 3)
    logits = SCALE * images @ texts[:, 0].T
    expected = -(logits.log_softmax(1).mean() + logits.T.log_softmax(1).mean()) / 2
    found = make_loss(images, texts, mask, None, SCALE, soft=torch.full((3, 3), 1 / 3))
    torch.testing.assert_close(found.contrastive, expected)


def test_shapes_that_do_not_fit():
    images, texts, mask, _ = batch()
    with pytest.raises(ValueError, match="are no views"):
        make_loss(images, texts, mask[:, :4], None, SCALE)
    with pytest.raises(ValueError, match="are no views"):
        make_loss(images, texts[:, :2], mask[:, :2], None, SCALE)
    with pytest.raises(ValueError, match='denominator = "view"'):
        make_loss(images, texts, mask, None, SCALE, MakeSwitches("all"), torch.eye(3))
