"""The tower changes nothing, shows everything once, and cleans up after itself."""

from __future__ import annotations

import copy

import open_clip
import pytest
import torch

from dermaudit.errors import UserInputError
from dermaudit.towers import HookedTower


def test_output_is_bit_identical_to_the_bare_model(tower, tiny_model, images):
    bare = tiny_model.encode_image(images, normalize=True)
    assert torch.equal(tower.encode_image(images), bare)
    assert torch.equal(tower(images), bare)
    cached, _ = tower.run_with_cache(images)
    assert torch.equal(cached, bare)
    assert torch.equal(tower.run_with_hooks(images, fwd_hooks=[]), bare)
    assert torch.equal(tower.encode_image(images, normalize=False), tiny_model.encode_image(images))


def test_state_dict_of_the_model_keeps_its_keys_and_values(tower, tiny_model):
    ours, bare = tower.model.state_dict(), tiny_model.state_dict()
    assert list(ours) == list(bare)
    assert all(torch.equal(ours[key], bare[key]) for key in bare)


def test_no_module_of_the_model_is_touched_by_setup(tower):
    assert not any(hasattr(module, "name") for module in tower.model.modules())


def test_cache_holds_every_image_site_with_its_shape(tower, images):
    _, cache = tower.run_with_cache(images)
    assert set(cache) == {site for site in tower.sites if site.startswith("visual.")}
    assert cache["visual.pooled"].shape == (3, tower.d_pooled)
    tokens = tower.n_prefix_tokens + tower.patch_grid[0] * tower.patch_grid[1]
    for i in range(tower.n_blocks):
        assert cache[f"visual.blocks.{i}.hook_resid_post"].shape == (3, tokens, tower.d_block)


def test_pooled_is_the_normalised_embedding(tower, images):
    out, cache = tower.run_with_cache(images)
    assert torch.equal(cache["visual.pooled"], out)
    unit = torch.nn.functional.normalize(cache["visual.embedding"], dim=-1)
    assert torch.equal(unit, out)


def test_first_and_last_sites_hold_the_activations_of_their_names(tower, images):
    _, cache = tower.run_with_cache(images)
    assert torch.equal(cache["visual.embed"], cache["visual.blocks.0.hook_resid_pre"])
    visual = tower.model.visual
    final = visual.ln_post(cache["visual.blocks.2.hook_resid_post"])
    assert torch.equal(cache["visual.ln_final"], final)
    assert torch.equal(cache["visual.embedding"], final[:, 0] @ visual.proj)


def test_residual_stream_adds_up(tower, images):
    _, cache = tower.run_with_cache(images)
    for i in range(tower.n_blocks):
        block = f"visual.blocks.{i}."
        parts = cache[block + "hook_resid_pre"] + cache[block + "hook_attn_out"]
        assert torch.equal(parts + cache[block + "hook_mlp_out"], cache[block + "hook_resid_post"])


def test_taps_agree_with_open_clips_own_intermediates(tower, images):
    _, cache = tower.run_with_cache(images)
    intermediates = tower.model.visual.forward_intermediates(
        images, output_fmt="NLC", output_extra_tokens=True
    )
    for i in range(tower.n_blocks):
        theirs = torch.cat(
            [
                intermediates["image_intermediates_prefix"][i],
                intermediates["image_intermediates"][i],
            ],
            dim=1,
        )
        assert torch.equal(cache[f"visual.blocks.{i}.hook_resid_post"], theirs)


def test_text_taps_agree_with_open_clips_own_intermediates(tower):
    tokens = tower.tokenize(["a ruler", "melanoma"])
    _, cache = tower.run_with_cache(None, tokens)
    intermediates = tower.model.forward_intermediates(text=tokens)["text_intermediates"]
    for i, theirs in enumerate(intermediates):
        assert torch.equal(cache[f"text.blocks.{i}.hook_resid_post"], theirs)
    assert torch.equal(cache["text.pooled"], tower.encode_text(["a ruler", "melanoma"]))


def test_a_dead_tap_and_a_doubled_tap_are_found(tiny_model, tokenizer, preprocess_cfg):
    from dermaudit.towers.taps import Tap

    bare = copy.deepcopy(tiny_model)
    tower = HookedTower(bare, tokenizer=tokenizer, preprocess_cfg=preprocess_cfg)
    tower.assert_taps_fire()
    # nn.MultiheadAttention never calls its out_proj: a tap there would stay silent.
    tower._attach(Tap("visual.dead", bare.visual.transformer.resblocks[0].attn.out_proj))
    with pytest.raises(RuntimeError, match=r"visual\.dead"):
        tower.assert_taps_fire()
    doubled = HookedTower(
        copy.deepcopy(tiny_model), tokenizer=tokenizer, preprocess_cfg=preprocess_cfg
    )
    blocks = doubled.model.visual.transformer.resblocks
    blocks[1] = blocks[0]
    with pytest.raises(RuntimeError, match=r"blocks\.0\.hook_resid_pre': 2"):
        doubled.assert_taps_fire()


def test_an_edit_reaches_the_output_and_is_gone_afterwards(tower, images):
    before = tower.encode_image(images)

    def no_class_token(value, hook):
        value = value.clone()
        value[:, 0] = 0
        return value

    site = "visual.blocks.1.hook_resid_post"
    edited = tower.run_with_hooks(images, fwd_hooks=[(site, no_class_token)])
    assert (edited - before).abs().max() > 1e-3
    assert torch.equal(tower.encode_image(images), before)


def test_an_edit_before_a_block_equals_one_after_the_block_before(tower, images):
    def shift(value, hook):
        return value + 0.5

    first = tower.run_with_hooks(images, fwd_hooks=[("visual.blocks.0.hook_resid_post", shift)])
    second = tower.run_with_hooks(images, fwd_hooks=[("visual.blocks.1.hook_resid_pre", shift)])
    assert torch.equal(first, second)
    assert not torch.equal(first, tower.encode_image(images))


def test_hooks_are_cleared_after_an_exception(tower, images):
    before = tower.encode_image(images)

    def fail(value, hook):
        raise KeyError("inside a hook")

    with pytest.raises(KeyError, match="inside a hook"):
        tower.run_with_hooks(images, fwd_hooks=[("visual.blocks.0.hook_resid_post", fail)])
    assert not any(point.has_hooks() for point in tower.hook_dict.values())
    assert torch.equal(tower.encode_image(images), before)


def test_names_filter_and_unknown_sites(tower, images):
    _, cache = tower.run_with_cache(images, names_filter=["visual.pooled"])
    assert list(cache) == ["visual.pooled"]
    with pytest.raises(UserInputError, match="did you mean 'visual.pooled'"):
        tower.run_with_cache(images, names_filter="visual.poled")
    with pytest.raises(UserInputError, match="unknown site"):
        tower.run_with_hooks(images, fwd_hooks=[("visual.blocks.9.hook_resid_post", print)])


def test_gradients_flow_to_the_input_and_not_to_the_weights(tower, images):
    pixels = images.clone().requires_grad_(True)
    tower.encode_image(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in tower.model.parameters())


def test_copies_are_refused(tower):
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(tower)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.copy(tower)


def test_a_tower_stays_in_eval_mode(tower):
    assert not tower.train().model.training


def test_forward_with_both_sides_and_with_neither(tower, images):
    pair = tower(images, ["a ruler"])
    assert torch.equal(pair[0], tower.encode_image(images))
    assert torch.equal(pair[1], tower.encode_text(["a ruler"]))
    with pytest.raises(UserInputError, match="images, texts, or both"):
        tower()


def test_many_prompts_come_back_in_order(tower):
    words = ["ruler", "melanoma", "nevus"] * 100
    many = tower.encode_text(words)
    assert many.shape == (300, tower.d_pooled)
    # Not bit for bit: the rows go through batches of another size.
    assert torch.allclose(many[297:], tower.encode_text(words[:3]), atol=1e-6)
    assert tower.encode_text([]).shape == (0, tower.d_pooled)


def test_preprocess_is_the_checkpoints_own_transform(tower, tiny_folder, photos):
    from PIL import Image

    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_folder}")
    theirs = torch.stack([transform(Image.fromarray(photo)) for photo in photos])
    assert torch.equal(tower.preprocess(photos), theirs)
    assert torch.equal(tower.preprocess(photos[0]), theirs[0])
    assert torch.equal(tower.preprocess(list(photos)), theirs)
    assert theirs.shape == (3, 3, tower.image_size, tower.image_size)
