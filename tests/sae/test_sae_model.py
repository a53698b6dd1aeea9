"""The two kinds of SAE, their files, and stock sae-lens on the same files."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_rows import random_relu, random_sae, random_topk

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.sae.inference.model import ReLUSAE, ThresholdSAE, TopKSAE, load_sae


def rewrite(folder, **changes):
    path = folder / "cfg.json"
    cfg = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in cfg.items() if v is not None}))


def test_topk_by_hand():
    eye = torch.eye(4)
    sae = TopKSAE(eye, 2 * eye, torch.zeros(4), torch.tensor([1.0, 0, 0, 0]), k=2)
    x = torch.tensor([[4.0, 1.0, 2.0, -5.0], [0.0, -1.0, 0.5, -2.0]])
    # p = x - b_dec: (3, 1, 2, -5) and (-1, -1, .5, -2); the second row has one positive entry only.
    expected = torch.tensor([[3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.5, 0.0]])
    assert torch.equal(sae.encode(x), expected)
    assert torch.equal(sae.decode(expected), 2 * expected + sae.b_dec)


@given(st.integers(1, 12), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_topk_codes_are_the_largest_positive_pre_activations(k, seed):
    sae = random_topk(k=k)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed))
    z, pre = sae.encode(x), sae.pre(x)
    fires = z > 0
    assert (z >= 0).all() and torch.equal(z[fires], pre[fires])
    assert torch.equal(fires.sum(-1), (pre > 0).sum(-1).clamp(max=k))
    silent = torch.where(fires, -torch.inf, pre).amax(-1)
    loudest_kept = torch.where(fires, pre, torch.inf).amin(-1)
    assert ((silent <= loudest_kept) | (silent <= 0)).all()


@pytest.mark.parametrize("make", [random_sae, random_relu, random_topk])
def test_save_load_equal_and_stock_sae_lens_agrees(make, tmp_path):
    from sae_lens import SAE

    sae = make()
    sae.save(tmp_path)
    again = load_sae(tmp_path)
    assert type(again) is type(sae) and again.metadata == sae.metadata
    for name in sae.tensors:
        assert torch.equal(getattr(again, name), getattr(sae, name)), name
    assert getattr(again, "k", None) == getattr(sae, "k", None)
    stock = SAE.load_from_disk(tmp_path)
    assert stock.cfg.architecture() == sae.architecture
    assert stock.cfg.metadata.hook_name == "visual.pooled"  # lost where the version is missing
    x = torch.randn(300, 8)
    z = stock.encode(x).detach()
    torch.testing.assert_close(again.encode(x), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.decode(z), stock.decode(z).detach(), atol=1e-5, rtol=0)


def test_relu_by_hand_and_a_threshold_of_zero_is_the_same():
    eye = torch.eye(3)
    relu = ReLUSAE(eye, eye, torch.tensor([0.0, 0.5, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    x = torch.tensor([[4.0, -0.25, -1.0], [1.0, -0.5, 2.0]])
    assert torch.equal(relu.encode(x), torch.tensor([[3.0, 0.25, 0.0], [0.0, 0.0, 2.0]]))
    assert isinstance(relu, ThresholdSAE) and not relu.threshold.any()
    old = ThresholdSAE(relu.W_enc, relu.W_dec, relu.b_enc, relu.b_dec, torch.zeros(3))
    assert torch.equal(old.encode(x), relu.encode(x))


def test_save_load_save_the_kind_stays(tmp_path):
    """A jumprelu of threshold 0, as relu_l1 was once written, is read and stays what it is."""
    old = random_sae(threshold=0.0)
    for kind, sae in (("standard", random_relu()), ("jumprelu", old)):
        files = sae.save(tmp_path / kind)
        again = ThresholdSAE.load(tmp_path / kind).save(tmp_path / f"{kind}-again")
        assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
        assert json.loads(files[0].read_text())["architecture"] == kind
    x = torch.randn(50, 8)
    assert torch.equal(
        load_sae(tmp_path / "standard").encode(x), load_sae(tmp_path / "jumprelu").encode(x)
    )


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
def test_load_topk_of_sae_lens(tmp_path, rescale, apply_b_dec):
    from sae_lens import SAE, TopKSAEConfig
    from sae_lens import TopKSAE as Stock

    torch.manual_seed(0)
    stock = Stock(
        TopKSAEConfig(
            d_in=8,
            d_sae=20,
            k=4,
            rescale_acts_by_decoder_norm=rescale,
            apply_b_dec_to_input=apply_b_dec,
        )
    )
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.copy_(torch.randn_like(parameter))
    stock.save_model(tmp_path)
    ours, stock = load_sae(tmp_path), SAE.load_from_disk(tmp_path)
    x = torch.randn(200, 8)
    z = stock.encode(x).detach()
    torch.testing.assert_close(ours.encode(x), z, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(ours.decode(z), stock.decode(z).detach(), atol=2e-5, rtol=1e-5)
    unit = (ours.W_dec.norm(dim=1) - 1).abs().max() < 1e-5
    assert unit == rescale  # without it, the norms must not enter the selection


def test_load_a_topk_is_refused_where_codes_must_be_pointwise(tmp_path):
    random_topk().save(tmp_path)
    with pytest.raises(ForeignArtifactError, match="is a 'topk' SAE") as refused:
        ThresholdSAE.load(tmp_path)
    assert "pointwise" in refused.value.hint
    assert isinstance(TopKSAE.load(tmp_path), TopKSAE)
    random_sae().save(tmp_path)
    with pytest.raises(ForeignArtifactError, match="is a 'jumprelu' SAE; 'topk' can be opened"):
        TopKSAE.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gated"}, "is a 'gated' SAE"),
        ({"architecture": None}, "is a 'None' SAE"),
        ({"k": 13}, "k = 13: a per-sample TopK needs a whole number of 1 … 12"),
        ({"k": 2.5}, "k = 2.5"),
        ({"k": None}, "k = None"),
        ({"d_sae": 13}, "d_sae 13.*of another shape W_enc, W_dec, b_enc"),
        ({"normalize_activations": "expected_average_only_in"}, "scales its input"),
    ],
)
def test_load_refuses_configs_that_do_not_fit(tmp_path, changes, message):
    random_topk().save(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ForeignArtifactError, match=message):
        load_sae(tmp_path)


def test_load_refuses_absent_truncated_or_not_finite_weights(tmp_path):
    with pytest.raises(UserInputError, match="there is no sparse autoencoder at"):
        load_sae(tmp_path / "none")
    sae = random_topk()
    sae.W_dec[3, 2] = torch.nan
    sae.save(tmp_path)
    with pytest.raises(ForeignArtifactError, match="not finite in W_dec"):
        load_sae(tmp_path)
    weights = tmp_path / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ForeignArtifactError, match="cut off"):
        load_sae(tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    weights.write_bytes(b"")
    with pytest.raises(ForeignArtifactError, match="not the config"):
        load_sae(tmp_path)
