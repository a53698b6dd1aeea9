"""The closed form against the full path, and the identity, bit for bit, where nothing fires."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sae_rows import random_sae

from dermaudit.errors import UserInputError
from dermaudit.sae import LatentSuppressor


def bits(x: torch.Tensor) -> np.ndarray:
    return x.numpy().view(np.uint32)


def full_path(sae, x, latents, change):
    """decode(z') + (x − decode(z)), in float64."""
    sae = type(sae)(*(t.double() for t in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec, sae.threshold)))
    x = x.double()
    z = sae.encode(x)
    edited = z.clone()
    edited[:, latents] = change(z[:, latents])
    return sae.decode(edited) + (x - sae.decode(z))


LEVEL = torch.tensor([0.3, 2.0, 0.0])
CHANGES = {
    "subtract": lambda z: torch.zeros_like(z),
    "mean": lambda z: torch.where(z > 0, LEVEL.double(), 0.0),
    "clamp": lambda z: torch.minimum(z, LEVEL.double()),
}


@pytest.mark.parametrize("mode", list(CHANGES))
def test_closed_form__equals_the_full_path(mode):
    sae, latents = random_sae(8, 12, threshold=0.5), [2, 7, 11]
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    module = LatentSuppressor(sae, latents, mode=mode, level=LEVEL, renormalise=False)
    out = module.apply_to(x)
    expected = full_path(sae, x, latents, CHANGES[mode])
    torch.testing.assert_close(out.x.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.z, sae.encode(x)[:, latents], atol=1e-5, rtol=0)
    changed = (expected - x).abs().amax(1) > 1e-6
    assert torch.equal(out.fired, changed) and 0 < changed.sum() < 200


def test_renormalise__length_kept_and_only_where_fired():
    sae = random_sae(8, 12, threshold=0.8)
    x = torch.nn.functional.normalize(torch.randn(500, 8), dim=1)
    out = LatentSuppressor(sae, [1, 4]).apply_to(x)
    assert 0 < out.fired.sum() < 500
    torch.testing.assert_close(out.x.norm(dim=1), x.norm(dim=1), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(bits(out.x[~out.fired]), bits(x[~out.fired]))
    plain = LatentSuppressor(sae, [1, 4], renormalise=False).apply_to(x).x
    torch.testing.assert_close(out.x, torch.nn.functional.normalize(plain, dim=1), atol=1e-5, rtol=0)
    # The identity is no accident of these numbers: dividing by the length changes bits.
    again = torch.nn.functional.normalize(x, dim=1)
    assert (bits(again) != bits(x)).any()


@given(
    hnp.arrays(np.float32, (6, 4), elements=st.floats(-2, 2, width=32)),
    st.sampled_from(["subtract", "mean", "clamp"]),
    st.booleans(),
    st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
)
@settings(max_examples=100, deadline=None)
def test_identity__bit_for_bit_where_nothing_fires(x, mode, renormalise, latents):
    x[0] = [-0.0, 0.0, -0.0, 1.0]  # adding zero would turn −0.0 to 0.0
    x[1] = x[1] / (np.linalg.norm(x[1]) + 1e-9)  # a unit row, that re-normalising would change
    sae = random_sae(4, 10, threshold=1.5)
    module = LatentSuppressor(sae, latents, mode=mode, renormalise=renormalise)
    rows = torch.from_numpy(x.copy())
    out = module.apply_to(rows)
    silent = ~(sae.encode(rows)[:, latents] > 0).any(1)
    np.testing.assert_array_equal(bits(out.x[silent]), x.view(np.uint32)[silent.numpy()])
    assert not out.fired[silent].any() and torch.isfinite(out.x).all()
    np.testing.assert_array_equal(bits(rows), x.view(np.uint32))  # the input is not touched


def test_all_of_a_row_taken_off__no_nan():
    sae = random_sae(4, 1, threshold=0.0)
    sae.b_enc.zero_(), sae.b_dec.zero_()
    sae.W_enc = sae.W_dec.T.contiguous()
    x = 0.7 * sae.W_dec  # decode(encode(x)) is x itself
    out = LatentSuppressor(sae, [0]).apply_to(x)
    assert out.fired.all() and torch.isfinite(out.x).all()


def test_forward__batches_of_tokens():
    sae = random_sae(8, 12)
    x = torch.randn(3, 5, 8)
    module = LatentSuppressor(sae, [0, 3])
    torch.testing.assert_close(module(x), module(x.view(15, 8)).view(3, 5, 8), atol=1e-6, rtol=0)


def test_suppressor__state_dict_save_load_equal(tmp_path):
    from safetensors.torch import load_file, save_file

    x = torch.randn(50, 8)
    one = LatentSuppressor(random_sae(seed=1), [2, 5], mode="mean", level=torch.tensor([0.1, 0.2]))
    other = LatentSuppressor(random_sae(seed=2), [0, 1], mode="mean")
    assert not torch.equal(one(x), other(x))
    save_file(one.state_dict(), tmp_path / "s.safetensors")
    other.load_state_dict(load_file(tmp_path / "s.safetensors"))
    assert torch.equal(one(x), other(x))


def test_bad_arguments():
    sae = random_sae(8, 12)
    with pytest.raises(UserInputError, match="unknown suppression mode 'zero'") as refused:
        LatentSuppressor(sae, [0], mode="zero")
    assert "subtract" in refused.value.hint
    for latents in ([], [12], [-1]):
        with pytest.raises(UserInputError, match=r"0 … 11"):
            LatentSuppressor(sae, latents)
    with pytest.raises(UserInputError, match="one twice"):
        LatentSuppressor(sae, [3, 3])
