"""The pieces of training: facts and captions, augmented views, the aspect and caption losses."""

from __future__ import annotations

import copy
import math
import random

import numpy as np
import open_clip
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dermaudit.data import Manifest
from dermaudit.pretrain.data.augment import apply_views, draw_views
from dermaudit.pretrain.data.facts import Fact, absent_sentence, caption, corpus, facts_of
from dermaudit.pretrain.losses.contrastive import (
    AspectLoss,
    aspect_sentences,
    caption_loss,
    fact_weights,
    soft_maximum,
)
from dermaudit.pretrain.recipe import AugmentSection

# ---- facts and captions


def manifest(**columns) -> Manifest:
    n = len(next(iter(columns.values())))
    table = pa.table({"image": [f"{i}.png" for i in range(n)], **columns})
    return Manifest(table, None, None)


def test_facts_truth_labels_and_columns():
    facts = facts_of(
        manifest(
            **{
                "artifact:ruler": [1.0, 0.0, None],
                "label": ["mel", None, "nv"],
                "localization": ["back", "face", None],
            }
        ),
        ("localization", "absent_column"),
    )
    by_name = {f.name: f for f in facts}
    assert set(by_name) == {
        "ruler",
        "label=mel",
        "label=nv",
        "localization=back",
        "localization=face",
    }
    np.testing.assert_array_equal(by_name["ruler"].values, [1, 0, np.nan])
    np.testing.assert_array_equal(by_name["label=mel"].values, [1, np.nan, 0])
    np.testing.assert_array_equal(by_name["localization=back"].values, [1, 0, np.nan])
    assert by_name["ruler"].denials and all(d.startswith("no ") for d in by_name["ruler"].denials)
    assert by_name["label=mel"].denials == () and "melanoma" in " ".join(
        by_name["label=mel"].wordings
    )


def three_facts(values) -> list[Fact]:
    return [
        Fact(name, np.array([value], dtype=np.float32), (f"{name}1", f"{name}2"), (f"not-{name}",))
        for name, value in zip(("ruler", "ink", "hair"), values, strict=True)
    ]


@given(
    st.lists(st.sampled_from([0.0, 1.0, math.nan]), min_size=3, max_size=3),
    st.integers(0, 10_000),
    st.floats(0, 1),
    st.floats(0, 1),
)
@settings(max_examples=150, deadline=None)
def test_captions_contain_only_true_and_known_facts(values, seed, keep, deny):
    facts = three_facts(values)
    text = caption(facts, 0, random.Random(seed), keep, deny)
    for fact, value in zip(facts, values, strict=True):
        affirmed = any(word in text for word in fact.wordings)
        denied = fact.denials[0] in text
        assert not (affirmed and value != 1) and not (denied and value != 0)
    assert text == caption(facts, 0, random.Random(seed), keep, deny)


def test_caption_keep_and_deny_at_their_ends():
    facts = three_facts([1.0, 0.0, math.nan])
    for seed in range(20):
        everything = caption(facts, 0, random.Random(seed), 1.0, 1.0)
        assert "ruler" in everything and "not-ink" in everything and "hair" not in everything
        nothing = caption(facts, 0, random.Random(seed), 0.0, 0.0)
        assert "skin" in nothing and "ruler" not in nothing
    no_denial = [Fact("label=mel", np.array([0.0]), ("melanoma",), ())]
    assert "melanoma" not in caption(no_denial, 0, random.Random(0), 1.0, 1.0)


def test_corpus_holds_every_word_a_caption_can_use():
    facts = three_facts([1.0, 0.0, 1.0])
    known = set(" ".join(corpus(facts)).replace(",", " ").split())
    for seed in range(50):
        text = caption(facts, 0, random.Random(seed), 0.8, 0.8).replace(",", " ")
        assert set(text.split()) <= known | {"skin"}
    said, denied = aspect_sentences(facts, random.Random(0))
    assert set(said) | set(denied) <= set(corpus(facts))
    assert (
        absent_sentence(Fact("label=mel", np.zeros(1), ("melanoma",), ()), random.Random(0))
        == "a lesion"
    )


# ---- views

OFF = AugmentSection(
    flip=False, rotate=0, scale=(1, 1), shift=0, brightness=0, contrast=0, colour=0
)


def pictures(n: int = 6, side: int = 16) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), generator=g, dtype=torch.uint8)


def augment(images, part, g):
    return apply_views(images, part, draw_views(len(images), part, g))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augment_shape_range_and_determinism():
    x, part = pictures(), AugmentSection()
    view = augment(x, part, generator())
    assert view.shape == x.shape and view.dtype == torch.float32
    assert view.min() >= 0 and view.max() <= 255
    assert torch.equal(view, augment(x, part, generator()))
    assert not torch.equal(view, augment(x, part, generator(1)))
    assert x.dtype == torch.uint8 and torch.equal(x, pictures())  # the input is not touched


def test_augment_off_is_the_image():
    torch.testing.assert_close(augment(pictures(), OFF, generator()), pictures().float())


def test_augment_flips_and_turns_move_pixels_only():
    x = pictures()
    seen = set()
    for seed in range(30):
        view = augment(x, OFF.model_copy(update={"flip": True}), generator(seed))
        assert torch.equal(view.flatten(2).sort().values, x.float().flatten(2).sort().values)
        seen.add(tuple(view[0, 0, 0, :4].tolist()))
    assert len(seen) == 8


def test_augment_borders_stay():
    # Rulers live at the border: a shift reflects it, it does not bring in black.
    x = torch.full((4, 3, 16, 16), 200, dtype=torch.uint8)
    view = augment(
        x, OFF.model_copy(update={"rotate": 0.4, "shift": 0.2, "scale": (0.8, 1.2)}), generator()
    )
    torch.testing.assert_close(view, torch.full_like(view, 200.0), atol=1e-2, rtol=0)


def test_augment_a_part_of_the_batch_has_the_views_of_the_whole():
    x, part = pictures(), AugmentSection(crop=(0.4, 1), grayscale=0.5, jitter_p=0.5, saturation=0.3)
    views = draw_views(6, part, generator())
    some = torch.tensor([4, 1])
    cut = apply_views(x[some], part, {name: value[some] for name, value in views.items()})
    torch.testing.assert_close(cut, apply_views(x, part, views)[some], atol=1e-3, rtol=0)


def test_augment_a_crop_shows_a_part_of_the_image_larger():
    # A ramp from left to right: a view of a part of it spans less than all of it, and never leaves it.
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).expand(40, 3, 64, 64).contiguous()
    view = augment(ramp, OFF.model_copy(update={"crop": (0.3, 0.5)}), generator())
    span = view[:, 0].amax((1, 2)) - view[:, 0].amin((1, 2))
    assert (span < 252 * 0.87).all() and (span > 252 * 0.4).all()
    assert view.min() >= 0 and view.max() <= 252
    starts = view[:, 0].amin((1, 2))
    assert starts.max() - starts.min() > 60  # anywhere in the image


def test_augment_grey_has_three_equal_channels():
    view = augment(pictures(40), OFF.model_copy(update={"grayscale": 0.5}), generator())
    grey = (view - view[:, :1]).abs().amax((1, 2, 3)) < 1e-3
    assert 8 < int(grey.sum()) < 32
    x = pictures(40)[grey].float()
    torch.testing.assert_close(
        view[grey][:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], atol=1e-3, rtol=0
    )


# ---- aspects


def test_aspect_by_hand():
    loss = AspectLoss()
    image, said, denied = (torch.eye(3)[i : i + 1] for i in (0, 0, 1))
    for truth, logit in ((1.0, 10.0), (0.0, 10.0)):
        expected = math.log1p(math.exp(-logit)) if truth else math.log1p(math.exp(logit))
        got = loss(image, said, denied, torch.tensor([[truth]]), torch.ones(2, 1))
        assert float(got.detach()) == pytest.approx(expected, rel=1e-5)


def test_a_rare_fact_counts_more_when_facts_are_balanced():
    # One of four known values is present: 1 / (2 * 1/4) = 2 and 1 / (2 * 3/4) = 2/3, whose mean is 1.
    truth = torch.tensor([[1.0], [0], [0], [0], [math.nan]])
    torch.testing.assert_close(fact_weights(truth, 1.0), torch.tensor([[2 / 3], [2.0]]))
    torch.testing.assert_close(fact_weights(truth, 0.0), torch.ones(2, 1))
    torch.testing.assert_close(fact_weights(torch.ones(3, 1), 1.0), torch.tensor([[0.0], [1.0]]))
    loss = AspectLoss()
    images, said, denied = torch.eye(3)[[2, 2]], torch.eye(3)[:1], torch.eye(3)[1:2]
    got = loss(images, said, denied, torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [1.5]]))
    assert float(got.detach()) == pytest.approx(math.log(2), rel=1e-6)


def test_aspect_unknown_facts_are_left_out():
    loss = AspectLoss()
    g = generator()
    images, said, denied = (
        nn.functional.normalize(torch.randn(n, 8, generator=g), dim=1) for n in (4, 3, 3)
    )
    truth = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]])
    hidden = truth.clone()
    hidden[:, 1] = math.nan
    torch.testing.assert_close(
        loss(images, said, denied, hidden, torch.ones(2, 3)),
        loss(images, said[[0, 2]], denied[[0, 2]], truth[:, [0, 2]], torch.ones(2, 2)),
    )
    images.requires_grad_(True)
    nothing = loss(images, said, denied, torch.full((4, 3), math.nan), torch.ones(2, 3))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not images.grad.any()


def test_aspect_temperature_is_capped():
    loss = AspectLoss()
    with torch.no_grad():
        loss.log_scale.fill_(50.0)
    x = torch.eye(2)
    assert torch.isfinite(loss(x, x, x.flip(0), torch.eye(2), torch.ones(2, 2)))


def test_aspect_of_cells_by_hand():
    # Two cells, one of which says the fact: log mean exp of (1, -1) times the sharpness of 8.
    loss = AspectLoss()
    said, denied = torch.eye(3)[:1], torch.eye(3)[1:2]
    cells = torch.stack([said[0], denied[0]])[None]
    best = math.log((math.exp(8) + math.exp(-8)) / 2) / 8
    ones = torch.ones(2, 1)
    got = float(loss(cells, said, denied, torch.tensor([[1.0]]), ones).detach())
    assert got == pytest.approx(math.log1p(math.exp(-10 * best)), rel=1e-5)
    cells.requires_grad_(True)
    loss(cells, said, denied, torch.tensor([[0.0]]), ones).backward()
    assert (cells.grad[0].abs().sum(1) > 0).all()  # every cell learns, the silent one too


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_soft_maximum_between_mean_and_maximum(values):
    x = torch.tensor(values)
    soft = float(soft_maximum(x, 0))
    assert float(x.mean()) - 1e-5 <= soft <= float(x.max()) + 1e-5
    assert float(soft_maximum(x, 0, 1e-3)) == pytest.approx(float(x.mean()), abs=2e-3)
    assert float(soft_maximum(x, 0, 1e4)) == pytest.approx(float(x.max()), abs=1e-3)


# ---- captions


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    return open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    )


def test_caption_loss_by_hand(clip):
    g = generator()
    a, b = (nn.functional.normalize(torch.randn(5, 16, generator=g), dim=1) for _ in range(2))
    logits = clip.logit_scale.exp() * a @ b.T
    rows = torch.arange(5)
    expected = (
        nn.functional.cross_entropy(logits, rows) + nn.functional.cross_entropy(logits.T, rows)
    ) / 2
    torch.testing.assert_close(caption_loss("clip", a, b, clip), expected)
    model = copy.deepcopy(clip)
    model.logit_bias = nn.Parameter(torch.tensor(-10.0))
    signs = 2 * torch.eye(5) - 1
    pairs = -nn.functional.logsigmoid(signs * (logits - 10)).sum() / 5
    torch.testing.assert_close(caption_loss("siglip", a, b, model), pairs)
