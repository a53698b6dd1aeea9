"""The sparse step against dense autograd through sae-lens' own training classes, in float64."""

from __future__ import annotations

import copy

import pytest
import torch

from dermaudit.errors import UserInputError
from dermaudit.sae.training.adam import Adam, clip_and_step
from dermaudit.sae.training.sparse_step import sparse_step, transpose_storage

D, H, B = 20, 90, 40


def make(kind, *, dtype="float64", seed=0, k=4, **options):
    """A sae-lens training SAE with every parameter moved off its symmetric start."""
    import sae_lens

    name = {
        "topk": "TopK", "batchtopk": "BatchTopK", "matryoshka": "MatryoshkaBatchTopK",
        "jumprelu": "JumpReLU",
    }[kind]  # fmt: skip
    if kind == "matryoshka":
        options = {"matryoshka_widths": [10, 33, 60, H], **options}
    if kind != "jumprelu":
        options = {"k": k, "aux_loss_coefficient": 0.7, **options}
    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(
        d_in=D, d_sae=H, dtype=dtype, device="cpu", **options
    )
    torch.manual_seed(seed)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return sae


def rows(seed=1, n=B, dtype=torch.float64):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dense(sae, x, dead):
    from sae_lens.saes.sae import TrainStepInput

    return sae.training_forward_pass(
        TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=dead, n_training_steps=0,
            is_logging_step=False,
        )
    )  # fmt: skip


def dead_latents(n, seed=2):
    mask = torch.zeros(H, dtype=torch.bool)
    mask[torch.randperm(H, generator=torch.Generator().manual_seed(seed))[:n]] = True
    return mask


def assert_same_step(sae, x, dead, rtol=1e-6, upstream=None):
    other = copy.deepcopy(sae)
    want = dense(sae, x, dead)
    got = sparse_step(other, x, dead)
    for output in (want, got):
        loss = output.loss if upstream is None else output.loss * upstream
        loss.backward()
    torch.testing.assert_close(got.loss, want.loss, rtol=rtol, atol=0)
    assert set(got.losses) == set(want.losses)
    for name, loss in want.losses.items():
        torch.testing.assert_close(got.losses[name], loss.detach(), rtol=rtol, atol=0)
    grads = dict(other.named_parameters())
    for name, parameter in sae.named_parameters():
        scale = float(parameter.grad.abs().max())
        assert scale > 0
        torch.testing.assert_close(grads[name].grad, parameter.grad, rtol=0, atol=rtol * scale)
    codes = want.feature_acts > 0
    assert torch.equal(got.fired, codes.any(0))
    assert float(got.l0) == pytest.approx(float(codes.sum(1).double().mean()))
    if hasattr(sae, "topk_threshold"):
        assert sae.topk_threshold > 0
        close = 1e-12 if x.dtype == torch.float64 else 1e-6  # the norms are summed in another order
        torch.testing.assert_close(other.topk_threshold, sae.topk_threshold, rtol=close, atol=0)


KINDS = ("topk", "batchtopk", "matryoshka")


# k_aux is D // 2 = 10: no dead latents, fewer, more (masked), so many that AuxK is sparse.
@pytest.mark.parametrize("n_dead", [0, 6, 30, 85])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_step_equals_dense_autograd(kind, n_dead):
    dead = dead_latents(n_dead) if n_dead else None
    assert_same_step(make(kind), rows(), dead)


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sparse_step_supports_rescale_and_input_bias(kind, rescale, apply_b_dec):
    sae = make(kind, rescale_acts_by_decoder_norm=rescale, apply_b_dec_to_input=apply_b_dec)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.3, 3, H)[:, None])  # norms that decide which are taken
    assert_same_step(sae, rows(), dead_latents(25))


@pytest.mark.parametrize("n_dead", [3, 30, 88])
def test_matryoshka_aux_loss_uses_the_dead_latents_of_each_level(n_dead):
    only_last = torch.zeros(H, dtype=torch.bool)
    only_last[70:80] = True
    for dead in (dead_latents(n_dead), only_last):
        assert_same_step(make("matryoshka", use_matryoshka_aux_loss=True), rows(), dead)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_step_without_numba_equals_dense_autograd(kind, monkeypatch):
    from dermaudit.sae.training import kernels

    monkeypatch.setattr(kernels, "present", lambda package: False)
    assert kernels.pick(rows()).__name__.endswith(".plain")
    assert_same_step(make(kind), rows(), dead_latents(30))
    assert_same_step(make(kind), rows(), dead_latents(85))


def test_aux_gradient_reaches_the_encoder_of_dead_latents():
    sae, dead = make("topk"), dead_latents(9)
    with torch.no_grad():
        sae.b_enc[dead] = -50.0  # never among the k: only AuxK can move them
    step = sparse_step(sae, rows(), dead)
    assert not step.fired[dead].any()
    step.loss.backward()
    assert (sae.W_enc.grad[:, dead].norm(dim=0) > 0).all()
    assert (sae.b_enc.grad[dead].abs() > 0).all()
    sae.zero_grad()
    sparse_step(sae, rows(), None).loss.backward()
    assert not sae.W_enc.grad[:, dead].any() and not sae.W_dec.grad[dead].any()


def test_sparse_step_handles_few_positive_codes():
    # Most of the k largest are negative: zero in the code, no gradient. A whole batch without a
    # code leaves BatchTopK's threshold alone.
    sae = make("topk", k=30)
    with torch.no_grad():
        sae.b_enc.sub_(1.0)
    assert_same_step(sae, rows(), None)
    silent = make("batchtopk")
    with torch.no_grad():
        silent.b_enc.sub_(1e3)
    step = sparse_step(silent, rows())
    assert not step.fired.any() and float(step.l0) == 0 and float(silent.topk_threshold) == 0
    step.loss.backward()
    assert not silent.W_dec.grad.any() and silent.b_dec.grad.any()


def test_sparse_step_supports_an_upstream_factor_and_a_fractional_k():
    assert_same_step(make("batchtopk", k=3.3), rows(), dead_latents(8), upstream=2.5)
    assert_same_step(make("batchtopk", k=0.5), rows(), None)


@pytest.mark.parametrize("kind", KINDS)
def test_sparse_step_supports_float32_and_one_row(kind):
    x = rows(dtype=torch.float32)
    assert_same_step(make(kind, dtype="float32"), x, dead_latents(30), rtol=2e-5)
    assert_same_step(make(kind, dtype="float32"), x[:1], dead_latents(30), rtol=2e-5)


def test_sparse_step_error_equals_a_computation_by_hand():
    # Two latents along the axes, k = 1: x = (3, 1) keeps the first, the error is (0, -1).
    import sae_lens

    sae = sae_lens.TopKTrainingSAE(
        sae_lens.TopKTrainingSAEConfig(d_in=2, d_sae=2, k=1, device="cpu", dtype="float64")
    )
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(2))
        sae.W_dec.copy_(torch.eye(2))
    step = sparse_step(sae, torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    step.loss.backward()
    assert step.loss.item() == 1.0 and step.fired.tolist() == [True, False]
    assert sae.W_dec.grad.tolist() == [[0.0, -6.0], [0.0, 0.0]]  # 2 · error · value
    assert sae.b_dec.grad.tolist() == [0.0, -2.0]
    assert not sae.W_enc.grad.any()  # the error is at right angles to the row taken


def test_gradients_add_up_over_two_batches():
    # The second pass must not write into the memory of the first one's gradients.
    one, two = make("topk"), make("topk")
    for seed in (1, 2):
        sparse_step(one, rows(seed), dead_latents(8)).loss.backward()
        dense(two, rows(seed), dead_latents(8)).loss.backward()
    transpose_storage(three := make("topk"))
    steps = [sparse_step(three, rows(seed), dead_latents(8)) for seed in (1, 2)]
    sum(step.loss for step in steps).backward()
    want = dict(two.named_parameters())
    for sae in (one, three):
        for name, parameter in sae.named_parameters():
            torch.testing.assert_close(parameter.grad, want[name].grad, rtol=1e-9, atol=1e-9)


def test_no_gradient_is_computed_if_none_is_required():
    sae = make("topk")
    with torch.no_grad():
        step = sparse_step(sae, rows())
    assert not step.loss.requires_grad
    torch.testing.assert_close(step.loss, dense(sae, rows(), None).loss.detach())


def test_nan_row_reaches_the_loss():
    x = rows()
    x[3, 2] = torch.nan
    for kind in KINDS:
        assert sparse_step(make(kind), x).loss.isnan()


def test_sparse_step_refuses_unsupported_saes():
    with pytest.raises(UserInputError, match="'jumprelu'"):
        sparse_step(make("jumprelu"), rows())
    with pytest.raises(UserInputError, match="layer_norm"):
        sparse_step(make("topk", normalize_activations="layer_norm"), rows())
    with pytest.raises(UserInputError, match=r"\(40, 19\).*d_in 20"):
        sparse_step(make("topk"), rows()[:, :19])
    with pytest.raises(UserInputError, match="k 91"):
        sparse_step(make("topk", k=91), rows())


def test_dense_code_is_never_allocated(monkeypatch):
    # No tensor of a step has B · d_sae numbers or more: the product comes in chunks of rows.
    from torch.utils._python_dispatch import TorchDispatchMode

    from dermaudit.sae.training.kernels import cpu

    n, largest = 600, 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for one in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(one, torch.Tensor):
                    largest = max(largest, one.numel())
            return result

    sae, x = make("batchtopk"), rows(n=n)
    monkeypatch.setattr(
        cpu, "each", lambda work, spans: [work(at) for at in spans]
    )  # seen by Watch
    monkeypatch.setattr(cpu, "chunk_rows", lambda *_: 256)
    with Watch():
        sparse_step(sae, x, dead_latents(5)).loss.backward()
    assert 256 * H <= largest < n * H


@pytest.mark.parametrize("kind", ["topk", "matryoshka"])
def test_fifty_sparse_steps_end_like_dense_ones(kind):
    ours, theirs = make(kind), make(kind)
    transpose_storage(ours)
    assert ours.W_enc.shape == theirs.W_enc.shape and ours.W_enc.stride() == (1, D)
    one, other = Adam(ours.parameters(), lr=3e-3), torch.optim.Adam(theirs.parameters(), lr=3e-3)
    for step in range(50):
        x, dead = rows(seed=step), dead_latents(8, seed=step) if step % 2 else None
        for optimizer in (one, other):
            optimizer.zero_grad()
        sparse_step(ours, x, dead).loss.backward()
        assert ours.W_enc.grad.stride() == ours.W_enc.stride()
        dense(theirs, x, dead).loss.backward()
        norms = clip_and_step(one, 1.0), torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-6)
        other.step()
    want = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, want[name], rtol=1e-6, atol=1e-7)
