"""The closed form against the full path, and the identity, bit for bit, where nothing fires."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sae_rows import random_sae, random_topk

from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.sae import LatentSuppressor, ThresholdSAE
from dermaudit.sae.inference.suppressor import MODES, reactive_level


def bits(x: torch.Tensor) -> np.ndarray:
    return x.numpy().view(np.uint32)


def full_path(sae, x, latents, change):
    """decode(z') + (x − decode(z)), in float64."""
    wide = {name: getattr(sae, name).double() for name in sae.tensors}
    sae = replace(sae, **wide)
    x = x.double()
    z = sae.encode(x)
    edited = z.clone()
    edited[..., latents] = change(z[..., latents])
    return sae.decode(edited) + (x - sae.decode(z))


LEVEL = torch.tensor([0.25, 2.0, 0.0], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)


def gated(z):
    """The image's score decides for all of its rows."""
    score = ((z.amax(-2) if z.ndim > 2 else z) * WEIGHT).sum(-1)
    keep = (score <= 1.5)[..., None, None] if z.ndim > 2 else (score <= 1.5)[..., None]
    return torch.where(keep, z, 0.0)


CHANGES = {
    "subtract": lambda z: torch.zeros_like(z),
    "mean": lambda z: torch.where(z > 0, LEVEL, 0.0),
    "clamp": lambda z: torch.minimum(z, LEVEL),
    "scale": lambda z: z * LEVEL,
    "reactive": gated,
}
SAES = {
    "threshold": lambda: random_sae(8, 12, threshold=0.5),
    "topk": lambda: random_topk(8, 12, 4),
}


def suppressor(sae, latents=(2, 7, 11), mode="subtract", **options):
    options = {"level": LEVEL, "gate_weight": WEIGHT, "gate_level": 1.5, **options}
    return LatentSuppressor(sae, latents, mode=mode, **options)


@pytest.mark.parametrize("kind", SAES)
@pytest.mark.parametrize("shape", [(200, 8), (40, 5, 8)], ids=["rows", "tokens"])
@pytest.mark.parametrize("mode", MODES)
def test_closed_form_equals_the_full_path(mode, shape, kind):
    sae, latents = SAES[kind](), [2, 7, 11]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = suppressor(sae, latents, mode, renormalise=False).apply_to(x)
    expected = full_path(sae, x, latents, CHANGES[mode])
    torch.testing.assert_close(out.x.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.z, sae.encode(x)[..., latents], atol=1e-5, rtol=0)
    changed = (expected - x).abs().amax(-1) > 1e-6
    assert torch.equal(out.fired, changed) and 0 < changed.sum() < changed.numel()


def test_topk_whether_a_latent_fires_depends_on_the_others():
    """What the closed form on |S| latents alone would get wrong."""
    sae = random_topk(8, 12, 2)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    alone = torch.relu(sae.pre(x)[:, [4]])
    z = suppressor(sae, [4], level=None, gate_weight=None).encode(x)
    assert (alone > 0).sum() > 1.5 * (z > 0).sum() > 0


def test_reactive_by_hand():
    eye = torch.eye(3)
    sae = ThresholdSAE(eye, eye, torch.zeros(3), torch.zeros(3), torch.zeros(3))
    module = LatentSuppressor(
        sae,
        [0, 1],
        mode="reactive",
        gate_weight=torch.tensor([1.0, 3.0]),
        gate_level=4.0,
        renormalise=False,
    )
    # Scores 1 + 3 = 4 (not over 4), 1.5 + 3 = 4.5, 0.
    x = torch.tensor([[1.0, 1.0, 5.0], [1.5, 1.0, 5.0], [-1.0, -1.0, 5.0]])
    out = module.apply_to(x)
    assert out.fired.tolist() == [False, True, False]
    assert torch.equal(out.x, torch.tensor([[1.0, 1.0, 5.0], [0.0, 0.0, 5.0], [-1.0, -1.0, 5.0]]))
    # As three tokens of one image the maxima count, 1.5 + 3: all its tokens are edited.
    assert module.apply_to(x[None]).fired.tolist() == [[True, True, False]]


def test_reactive_level_keeps_the_given_share_of_artifact_free_rows():
    sae = random_sae(8, 12, threshold=0.2)
    free = torch.randn(4000, 8, generator=torch.Generator().manual_seed(3))
    plain = LatentSuppressor(sae, [2, 7, 11])
    level = reactive_level(plain.encode(free))
    assert plain.apply_to(free).fired.float().mean() > 0.5
    gate = LatentSuppressor(sae, [2, 7, 11], mode="reactive", gate_level=level)
    assert gate.apply_to(free).fired.float().mean() == pytest.approx(0.05, abs=0.001)
    with pytest.raises(EvidenceError, match="29 artifact-free rows are too few") as refused:
        reactive_level(torch.rand(29, 3))
    assert refused.value.numbers == {"n": 29, "needed": 30}


# ---- which tokens


@pytest.mark.parametrize(
    ("positions", "n_prefix", "edited"),
    [
        ("all", 2, [0, 1, 2, 3, 4]),
        ("patch", 2, [2, 3, 4]),
        ("cls", 2, [0]),
        ("prefix", 2, [0, 1]),
        ("patch", 0, [0, 1, 2, 3, 4]),
        ("patch", 1, [1, 2, 3, 4]),
        (torch.tensor([False, True, False, True, False]), 1, [1, 3]),
    ],
)
def test_positions_only_those_tokens_change(positions, n_prefix, edited):
    sae = random_sae(8, 12, threshold=0.3)
    x = torch.randn(30, 5, 8, generator=torch.Generator().manual_seed(0))
    everywhere = suppressor(sae).apply_to(x)
    module = suppressor(sae, positions=positions, n_prefix=n_prefix)
    out = module.apply_to(x)
    others = [t for t in range(5) if t not in edited]
    np.testing.assert_array_equal(bits(out.x[:, others]), bits(x[:, others]))
    assert torch.equal(out.x[:, edited], everywhere.x[:, edited])
    assert torch.equal(out.fired[:, edited], everywhere.fired[:, edited])
    assert not out.fired[:, others].any() and out.fired.any()
    # Codes are returned for all tokens; a call may select other positions.
    assert torch.equal(out.z, everywhere.z)
    assert torch.equal(module(x, positions="all"), everywhere.x)


def test_positions_a_mask_of_every_row():
    sae = random_sae(8, 12, threshold=0.3)
    x = torch.randn(30, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(30, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    out, everywhere = suppressor(sae).apply_to(x, mask), suppressor(sae).apply_to(x)
    assert torch.equal(out.fired, everywhere.fired & mask)
    assert torch.equal(out.x, torch.where(mask[..., None], everywhere.x, x))


def test_positions_of_a_gate_only_what_may_change_is_scored():
    eye = torch.eye(2)
    sae = ThresholdSAE(eye, eye, torch.zeros(2), torch.zeros(2), torch.zeros(2))
    module = LatentSuppressor(
        sae, [0], mode="reactive", gate_level=5.0, positions="patch", renormalise=False
    )
    loud_cls = torch.tensor([[[9.0, 1.0], [2.0, 1.0]]])
    assert not module.apply_to(loud_cls).fired.any()
    assert module.apply_to(loud_cls.flip(1)).fired.tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("positions", "n_prefix", "shape", "message"),
    [
        ("patches", 1, (4, 5, 8), "positions 'patches': one of all, patch, cls, prefix"),
        ("patch", 1, (4, 8), r"needs tokens \(n, tokens, d\); x has the shape \(4, 8\)"),
        ("cls", 0, (4, 5, 8), "no token before the patches"),
        (torch.ones(4), 1, (4, 8), "torch.float32, not boolean"),
        (torch.ones(4, dtype=torch.bool), 1, (4, 5, 8), r"the shape \(4,\), x \(4, 5, 8\)"),
    ],
)
def test_positions_that_do_not_fit_are_refused(positions, n_prefix, shape, message):
    with pytest.raises(UserInputError, match=message):
        suppressor(random_sae(), positions=positions, n_prefix=n_prefix).apply_to(
            torch.randn(shape)
        )


def test_renormalise_length_kept_and_only_where_fired():
    sae = random_sae(8, 12, threshold=0.8)
    x = torch.nn.functional.normalize(torch.randn(500, 8), dim=1)
    out = LatentSuppressor(sae, [1, 4]).apply_to(x)
    assert 0 < out.fired.sum() < 500
    torch.testing.assert_close(out.x.norm(dim=1), x.norm(dim=1), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(bits(out.x[~out.fired]), bits(x[~out.fired]))
    plain = LatentSuppressor(sae, [1, 4], renormalise=False).apply_to(x).x
    torch.testing.assert_close(
        out.x, torch.nn.functional.normalize(plain, dim=1), atol=1e-5, rtol=0
    )
    # The identity is no accident of these numbers: dividing by the length changes bits.
    again = torch.nn.functional.normalize(x, dim=1)
    assert (bits(again) != bits(x)).any()


@given(
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-2, 2, width=32)),
    st.sampled_from(MODES),
    st.booleans(),
    st.booleans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
)
@settings(max_examples=150, deadline=None)
def test_identity_bit_for_bit_where_nothing_fires(x, mode, renormalise, topk, latents):
    x[0] = [-0.0, 0.0, -0.0, 1.0]  # adding zero would turn −0.0 to 0.0
    x[1] = x[1] / (np.linalg.norm(x[1]) + 1e-9)  # a unit row, that re-normalising would change
    sae = random_topk(4, 10, 2) if topk else random_sae(4, 10, threshold=1.5)
    module = LatentSuppressor(
        sae, latents, mode=mode, level=0.5, gate_level=0.7, renormalise=renormalise
    )
    rows = torch.from_numpy(x.copy())
    out = module.apply_to(rows)
    silent = ~(sae.encode(rows)[:, latents] > 0).any(1)
    np.testing.assert_array_equal(bits(out.x[silent]), x.view(np.uint32)[silent.numpy()])
    assert not out.fired[silent].any() and torch.isfinite(out.x).all()
    np.testing.assert_array_equal(bits(rows), x.view(np.uint32))  # the input is not touched


def test_a_row_that_is_removed_completely_has_no_nan():
    sae = random_sae(4, 1, threshold=0.0)
    sae.b_enc.zero_(), sae.b_dec.zero_()
    sae.W_enc = sae.W_dec.T.contiguous()
    x = 0.7 * sae.W_dec  # decode(encode(x)) is x itself
    out = LatentSuppressor(sae, [0]).apply_to(x)
    assert out.fired.all() and torch.isfinite(out.x).all()


def test_forward_batches_of_tokens():
    sae = random_sae(8, 12)
    x = torch.randn(3, 5, 8)
    module = LatentSuppressor(sae, [0, 3])
    torch.testing.assert_close(module(x), module(x.view(15, 8)).view(3, 5, 8), atol=1e-6, rtol=0)


def test_suppressor_state_dict_save_load_equal(tmp_path):
    from safetensors.torch import load_file, save_file

    x = torch.randn(50, 8)
    one = LatentSuppressor(random_sae(seed=1), [2, 5], mode="mean", level=torch.tensor([0.1, 0.2]))
    other = LatentSuppressor(random_sae(seed=2), [0, 1], mode="mean")
    assert not torch.equal(one(x), other(x))
    save_file(one.state_dict(), tmp_path / "s.safetensors")
    other.load_state_dict(load_file(tmp_path / "s.safetensors"))
    assert torch.equal(one(x), other(x))


def test_a_row_that_is_not_finite_stays_and_affects_no_other():
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for sae in (SAES["threshold"](), SAES["topk"]()):
        module = suppressor(sae)
        expected = module.apply_to(x).x
        broken = x.clone()
        broken[2, 5] = torch.nan
        out = module.apply_to(broken)
        np.testing.assert_array_equal(bits(out.x[2]), bits(broken[2]))
        assert not out.fired[2] and (out.z[2] == 0).all()
        others = [0, 1, 3, 4, 5]
        torch.testing.assert_close(out.x[others], expected[others], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SAES)
@pytest.mark.parametrize("mode", MODES)
def test_float64_and_the_dtype_of_x_is_kept(mode, kind):
    sae = SAES[kind]()
    x = torch.randn(100, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = suppressor(sae, mode=mode, renormalise=False).double().apply_to(x)
    assert wide.x.dtype == torch.float64
    expected = full_path(sae, x, [2, 7, 11], CHANGES[mode])
    torch.testing.assert_close(wide.x, expected, atol=1e-12, rtol=0)
    single = suppressor(sae, mode=mode, renormalise=False)
    for dtype in (torch.float64, torch.float16):
        out = single.apply_to(x.to(dtype))
        assert out.x.dtype == dtype
        assert torch.equal(out.x[~out.fired], x.to(dtype)[~out.fired])


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("kind", SAES)
@pytest.mark.parametrize("mode", MODES)
def test_forward_gradients_are_those_of_the_formula(mode, kind, renormalise):
    module = suppressor(SAES[kind](), mode=mode, renormalise=renormalise).double()
    x = torch.randn(7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert module.apply_to(x).fired.any() and not module.apply_to(x).fired.all()
    assert torch.autograd.gradcheck(module, x.requires_grad_())
    assert not module.apply_to(x).x.requires_grad


def test_the_gradient_of_a_row_that_is_removed_completely_is_finite():
    eye = torch.eye(2)
    sae = ThresholdSAE(eye, eye, torch.zeros(2), torch.zeros(2), torch.zeros(2))
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    LatentSuppressor(sae, [0, 1])(x).sum().backward()
    assert torch.isfinite(x.grad).all()


# ---- in a model

BLOCK = "visual.blocks.1.hook_resid_post"
PREPROCESS = {
    "size": 32,
    "mode": "RGB",
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}


@pytest.fixture(scope="module")
def tower():
    """A random ViT of 3 blocks of width 16 over 2 x 2 patches."""
    import open_clip

    from dermaudit.towers.hooked import HookedTower

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={
            "image_size": 32,
            "patch_size": 16,
            "width": 16,
            "layers": 3,
            "head_width": 8,
        },
        text_cfg={"width": 16, "heads": 2, "layers": 1, "vocab_size": 20, "context_length": 4},
    )
    return HookedTower(model, tokenizer=None, preprocess_cfg=PREPROCESS, name="tiny")


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_attach_is_the_hook_written_by_hand_and_gone_afterwards(tower, images):
    module = suppressor(random_sae(16, 12), renormalise=False)
    before = tower.encode_image(images)
    by_hand = tower.run_with_hooks(images, fwd_hooks=[(BLOCK, lambda value, hook: module(value))])
    with module.attach(tower, BLOCK) as inside:
        assert inside is tower
        torch.testing.assert_close(tower.encode_image(images), by_hand, atol=1e-6, rtol=0)
    assert (by_hand - before).abs().max() > 1e-3
    np.testing.assert_array_equal(bits(tower.encode_image(images)), bits(before))


def test_attach_at_the_pooled_site_is_the_module_on_the_embedding(tower, images):
    module = suppressor(random_sae(8, 12, threshold=0.05))
    before = tower.encode_image(images)
    with module.attach(tower, "visual.pooled"):
        after = tower.encode_image(images)
    assert torch.equal(after, module(before)) and not torch.equal(after, before)


def test_attach_patches_alone_by_the_prefix_of_the_tower(tower, images):
    module = suppressor(random_sae(16, 12), renormalise=False, n_prefix=3)
    _, plain = tower.run_with_cache(images, names_filter=BLOCK)
    with module.attach(tower, BLOCK, positions="patch"):
        _, cache = tower.run_with_cache(images, names_filter=BLOCK)
    assert torch.equal(cache[BLOCK][:, 0], plain[BLOCK][:, 0])
    assert (cache[BLOCK][:, 1:] - plain[BLOCK][:, 1:]).abs().amax((0, 2)).gt(1e-3).all()
    assert module.n_prefix == 3


def test_attach_bit_for_bit_where_nothing_fires(tower, images):
    module = suppressor(random_sae(16, 12, threshold=1e6))
    before = tower.encode_image(images)
    seen = []

    def look(value, hook):
        seen.append(value)

    with tower.hooks([(BLOCK, look)]), module.attach(tower, BLOCK), tower.hooks([(BLOCK, look)]):
        np.testing.assert_array_equal(bits(tower.encode_image(images)), bits(before))
    assert len(seen) == 2 and seen[0] is seen[1]  # the very tensor, its strides too


def test_attach_removed_after_an_exception(tower, images):
    module = suppressor(random_sae(16, 12), renormalise=False)
    before = tower.encode_image(images)
    with pytest.raises(ZeroDivisionError), module.attach(tower, BLOCK):
        raise ZeroDivisionError
    # Inside a forward too: this mask does not fit the five tokens.
    wrong = torch.ones(9, dtype=torch.bool)
    with pytest.raises(UserInputError, match="mask"), module.attach(tower, BLOCK, positions=wrong):
        tower.encode_image(images)
    np.testing.assert_array_equal(bits(tower.encode_image(images)), bits(before))


def test_attach_another_site_or_model(tower):
    module = suppressor(random_sae(8, 12))
    with pytest.raises(UserInputError, match="visual.pooled"), module.attach(tower, "visual.poled"):
        pass
    with (
        pytest.raises(ForeignArtifactError, match="d_in 8.*'tiny' has 16"),
        module.attach(tower, BLOCK),
    ):
        pass


def plain_model(kind: str):
    import open_clip

    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 3, "head_width": 8}
    text = {"width": 16, "heads": 2, "layers": 1, "vocab_size": 20, "context_length": 4}
    torch.manual_seed(0)
    if kind == "CLIP":
        return open_clip.CLIP(8, vision, text)
    if kind == "CoCa":
        pool = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        own_text = {**text, "embed_cls": True, "output_tokens": True}
        return open_clip.CoCa(8, text, own_text, {**vision, **pool})
    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "image_size": 224}
    return open_clip.CustomTextCLIP(8, vision, text)


@pytest.mark.parametrize("kind", ["CLIP", "CoCa", "timm"])
@pytest.mark.parametrize("site", [BLOCK, "visual.embedding", "visual.pooled"])
def test_attach_to_a_plain_model_is_attach_to_a_tower_and_leaves_the_model(kind, site, images):
    model = plain_model(kind)
    size = 224 if kind == "timm" else 32
    images = torch.nn.functional.interpolate(images, size)
    model.eval().visual.train()  # a mixture of modes and of frozen parameters, to be restored
    next(model.visual.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    width = 8 if site != BLOCK else 192 if kind == "timm" else 16
    module = suppressor(random_sae(width, 12), renormalise=site == "visual.pooled")
    with torch.no_grad():
        before = model.encode_image(images, normalize=True)
        with module.attach(model, site, "patch" if site == BLOCK else None) as inside:
            assert inside is model
            after = model.encode_image(images, normalize=True)
        again = model.encode_image(images, normalize=True)
        silent = suppressor(random_sae(width, 12, threshold=1e6))
        with silent.attach(model, site):
            assert torch.equal(model.encode_image(images, normalize=True), before)
    assert torch.equal(again, before) and (after - before).abs().max() > 1e-3
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == grads
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    from dermaudit.towers.hooked import HookedTower

    wrapped = HookedTower(model, tokenizer=None, preprocess_cfg={**PREPROCESS, "size": size})
    with module.attach(wrapped, site, "patch" if site == BLOCK else None), torch.no_grad():
        torch.testing.assert_close(wrapped.encode_image(images), after, atol=1e-6, rtol=0)


def test_attach_to_a_plain_model_at_the_site_of_the_sae(images):
    model = plain_model("CLIP")
    module = suppressor(random_sae(8, 12))  # its metadata name visual.pooled
    with torch.no_grad():
        expected = module(model.encode_image(images, normalize=True))
        with module.attach(model):
            edited = model.encode_image(images, normalize=True)
            assert torch.equal(model(images)[0], edited)
    torch.testing.assert_close(edited, expected, atol=1e-6, rtol=0)


def test_attach_refuses_what_is_no_model_and_what_does_not_fit(images):
    model = plain_model("CLIP")
    cases = [
        (
            torch.nn.Linear(2, 2),
            "visual.pooled",
            "Linear is neither a HookedTower nor an open_clip",
        ),
        (model, "visual.poled", "did you mean 'visual.pooled'"),
        (model, BLOCK, "the SAE has d_in 8, the model has 16"),
    ]
    for plain, site, message in cases:
        with (
            pytest.raises(UserInputError, match=message),
            suppressor(random_sae()).attach(plain, site),
        ):
            model.encode_image(images)
    nameless = suppressor(replace(random_sae(), metadata={}))
    with pytest.raises(UserInputError, match="does not name its site"), nameless.attach(model):
        pass


def test_bad_arguments():
    sae = random_sae(8, 12)
    with pytest.raises(UserInputError, match="unknown suppression mode 'zero'") as refused:
        LatentSuppressor(sae, [0], mode="zero")
    assert "subtract" in refused.value.hint
    for latents in ([], [12], [-1]):
        with pytest.raises(UserInputError, match=r"0 … 11"):
            LatentSuppressor(sae, latents)
    for latents in ([1.5], ["1"], [True], [None]):
        with pytest.raises(UserInputError, match="is not the number of a latent"):
            LatentSuppressor(sae, latents)
    assert LatentSuppressor(sae, torch.tensor([3, 1])).latents == [3, 1]
    with pytest.raises(UserInputError, match="mode 'scale' needs `level`"):
        LatentSuppressor(sae, [0], mode="scale")
    with pytest.raises(UserInputError, match="mode 'reactive' needs `gate_level`"):
        LatentSuppressor(sae, [0], mode="reactive")
    with pytest.raises(UserInputError, match=r"`level` has the shape \(2,\); there are 3 latents"):
        LatentSuppressor(sae, [0, 1, 2], mode="mean", level=torch.ones(2))
    with pytest.raises(UserInputError, match="one twice"):
        LatentSuppressor(sae, [3, 3])
