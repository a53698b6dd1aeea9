"""sae-lens SAEs in the path of a tower: error term, closed form, and putting things back."""

from __future__ import annotations

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.saes.sae import SAEMetadata

from dermaudit.errors import UserInputError

BLOCK = "visual.blocks.1.hook_resid_post"


def make_sae(site, d_in, d_sae=64, seed=0) -> SAE:
    """A random jumprelu SAE in which about half of the latents fire."""
    cfg = JumpReLUSAEConfig(
        d_in=d_in, d_sae=d_sae, metadata=SAEMetadata(model_name="tiny", hook_name=site)
    )
    sae = JumpReLUSAE(cfg)
    draw = torch.Generator().manual_seed(seed)
    for value in sae.parameters():
        value.data = torch.randn(value.shape, generator=draw) * 0.2
    sae.threshold.data.fill_(0.01)
    return sae.requires_grad_(False)


@pytest.fixture
def pooled_sae(tower):
    return make_sae("visual.pooled", tower.d_pooled)


@pytest.fixture
def block_sae(tower):
    return make_sae(BLOCK, tower.d_block)


@pytest.mark.parametrize("which", ["pooled_sae", "block_sae"])
def test_identity_with_the_error_term_and_not_without(tower, images, which, request):
    sae = request.getfixturevalue(which)
    before = tower.encode_image(images)
    kept = tower.run_with_saes(images, saes=[sae])
    assert (kept - before).abs().max() < 1e-6
    dropped = tower.run_with_saes(images, saes=[sae], use_error_term=False)
    assert (dropped - before).abs().max() > 1e-2
    assert torch.equal(tower.encode_image(images), before)


def zeroing(latent):
    def hook(codes, hook):
        codes = codes.clone()
        codes[..., latent] = 0
        return codes

    return hook


def test_zeroing_a_latent_is_the_closed_form(tower, images, pooled_sae):
    x = tower.encode_image(images)
    codes = pooled_sae.encode(x)
    latent = int(codes.amin(0).argmax())
    assert codes[:, latent].min() > 0, "the latent must fire in every image"
    with tower.saes([pooled_sae]):
        edited = tower.run_with_hooks(
            images, fwd_hooks=[("visual.pooled.hook_sae_acts_post", zeroing(latent))]
        )
    expected = x - codes[:, latent, None] * pooled_sae.W_dec[latent]
    assert (edited - expected).abs().max() < 1e-6


def test_zeroing_a_latent_in_a_block_is_the_closed_form_there(tower, images, block_sae):
    _, cache = tower.run_with_cache(images)
    codes = block_sae.encode(cache[BLOCK])
    expected = cache[BLOCK] - codes[..., 5, None] * block_sae.W_dec[5]
    by_hand = tower.run_with_hooks(images, fwd_hooks=[(BLOCK, lambda value, hook: expected)])
    with tower.saes([block_sae]):
        hooks = [(f"{BLOCK}.hook_sae_acts_post", zeroing(5))]
        edited = tower.run_with_hooks(images, fwd_hooks=hooks)
    assert (edited - by_hand).abs().max() < 1e-6
    assert (edited - tower.encode_image(images)).abs().max() > 1e-5


def test_cache_holds_the_codes_under_the_sites_name(tower, images, pooled_sae):
    plain = tower.encode_image(images)
    with tower.saes([pooled_sae]):
        _, cache = tower.run_with_cache(images)
    assert torch.equal(cache["visual.pooled.hook_sae_input"], plain)
    assert torch.equal(cache["visual.pooled.hook_sae_acts_post"], pooled_sae.encode(plain))
    assert torch.equal(cache["visual.pooled.hook_sae_output"], cache["visual.pooled"])
    _, after = tower.run_with_cache(images)
    assert not any("hook_sae" in site for site in after)


def test_positions_leave_the_other_tokens_alone(tower, images, block_sae):
    seen = {}

    def keep(value, hook):
        seen[hook.name] = value

    _, cache = tower.run_with_cache(images)
    with tower.saes([block_sae], use_error_term=False, positions="patch"):
        tower.run_with_hooks(images, fwd_hooks=[("visual.blocks.2.hook_resid_pre", keep)])
    given = seen["visual.blocks.2.hook_resid_pre"]
    assert torch.equal(given[:, 0], cache[BLOCK][:, 0])
    assert torch.allclose(given[:, 1:], block_sae(cache[BLOCK])[:, 1:], atol=1e-6)
    assert not torch.allclose(given[:, 1:], cache[BLOCK][:, 1:], atol=1e-3)


def test_everything_is_restored_after_an_exception(tower, images, pooled_sae, block_sae):
    before = tower.encode_image(images)
    sites, names = list(tower.hook_dict), {k: p.name for k, p in pooled_sae.hook_dict.items()}

    def fail(value, hook):
        raise KeyError("stop")

    with pytest.raises(KeyError), tower.saes([pooled_sae, block_sae]):
        tower.run_with_hooks(images, fwd_hooks=[(f"{BLOCK}.hook_sae_acts_pre", fail)])
    assert list(tower.hook_dict) == sites
    assert {k: p.name for k, p in pooled_sae.hook_dict.items()} == names
    assert pooled_sae.use_error_term is False
    assert torch.equal(tower.encode_image(images), before)


def test_nested_sets_are_removed_in_order(tower, images, pooled_sae, block_sae):
    with tower.saes([pooled_sae], use_error_term=False):
        outer = tower.encode_image(images)
        with tower.saes([block_sae], use_error_term=False):
            assert not torch.allclose(tower.encode_image(images), outer, atol=1e-4)
        assert torch.equal(tower.encode_image(images), outer)


def test_wrong_sites_and_widths_are_refused(tower, pooled_sae):
    with pytest.raises(UserInputError, match="two SAEs"), tower.saes([pooled_sae, pooled_sae]):
        pass
    with (
        pytest.raises(UserInputError, match="d_in 7"),
        tower.saes([make_sae("visual.pooled", 7)]),
    ):
        pass
    with (
        pytest.raises(UserInputError, match="did you mean 'visual.pooled'"),
        tower.saes([make_sae("visual.poled", tower.d_pooled)]),
    ):
        pass
    with pytest.raises(UserInputError, match="positions"), tower.saes([], positions="tokens"):
        pass
