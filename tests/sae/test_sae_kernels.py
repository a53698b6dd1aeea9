"""Kernels compared with dense tensors, several threads with one, and Adam with that of torch."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dermaudit.sae.training.adam import Adam, clip_and_step, gradient_norm
from dermaudit.sae.training.kernels import Code, chunk_rows, cpu, pick, plain, searches
from dermaudit.sae.training.kernels import batch_topk as batch
from dermaudit.sae.training.kernels import threads as shares
from dermaudit.sae.training.kernels.buffers import lend

MODULES = pytest.mark.parametrize("module", [cpu, plain], ids=["cpu", "plain"])
N, D, H = 37, 11, 70


def weights(dtype=torch.float64, h=H, n=N, seed=0):
    """x (n, D), encoder (h, D), bias (h,), scale (h,), decoder (h, D), decoder bias (D,)."""
    g = torch.Generator().manual_seed(seed)
    shapes = (n, D), (h, D), (h,), (h,), (h, D), (D,)
    x, encoder, bias, scale, decoder, b_dec = (
        torch.randn(shape, generator=g, dtype=dtype) for shape in shapes
    )
    return x, encoder, bias, scale.abs() + 0.1, decoder, b_dec


def densed(code, h=H):
    dense = torch.zeros(code.n_rows, h, dtype=code.values.dtype)
    dense[code.rows(), code.latents.long()] = code.values
    return dense


def assert_is_csr(code):
    assert code.start[0] == 0 and code.start[-1] == len(code.latents) == len(code.values)
    for first, last in zip(code.start[:-1].tolist(), code.start[1:].tolist(), strict=True):
        assert (code.latents[first:last].diff() > 0).all()


@MODULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 5, 17, 18, 60, H])
def test_encode_rows_is_topk_then_relu(module, dtype, k):
    x, encoder, bias, scale, *_ = weights(dtype)
    also = torch.tensor([3, 40, 69])
    code, columns = module.encode_rows(x, encoder, bias, scale, k, also)
    pre = x @ encoder.t() + bias
    key = pre * scale
    want = torch.zeros_like(pre).scatter(1, key.topk(k, dim=1).indices, 1.0) * pre.relu()
    assert_is_csr(code)
    torch.testing.assert_close(densed(code), want)
    torch.testing.assert_close(columns, pre[:, also])


@MODULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_kept", [0, 1, 50, 400, N * H])
def test_encode_batch_is_topk_of_all_rows(module, dtype, n_kept, monkeypatch):
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 7)  # six chunks
    x, encoder, bias, scale, *_ = weights(dtype)
    also = torch.tensor([0, 33])
    code, columns = module.encode_batch(x, encoder, bias, scale, n_kept, also)
    pre = x @ encoder.t() + bias
    key = (pre * scale).flatten()
    want = torch.zeros_like(key).scatter(0, key.topk(n_kept).indices, 1.0).view_as(pre)
    assert_is_csr(code)
    torch.testing.assert_close(densed(code), want * pre.relu())
    torch.testing.assert_close(columns, pre[:, also])


@pytest.mark.parametrize("steep", [1.0, 30.0, 0.03])
def test_encode_batch_searches_chunks_again_if_some_estimates_fail(steep, monkeypatch):
    # Ten chunks, each larger (or smaller) than the one before it: a guess that is made of the
    # chunk alone is far above the bound in some, and those are searched again.
    monkeypatch.setattr(cpu, "chunk_rows", lambda *_: 32)
    x, encoder, bias, scale, *_ = weights(n=320)
    x *= torch.logspace(0, 3 * torch.tensor(steep).log10(), 320, dtype=x.dtype)[:, None]
    searched = 0

    def find(pre, *rest, inner=batch.select_above):
        nonlocal searched
        searched += 1
        return inner(pre, *rest)

    monkeypatch.setattr(batch, "select_above", find)
    for n_kept in (1, 300, 2000, 9000):
        code, _ = cpu.encode_batch(x, encoder, bias, scale, n_kept)
        want = ((x @ encoder.t() + bias) * scale).flatten().topk(n_kept).values
        got = code.values * scale[code.latents.long()]
        torch.testing.assert_close(got.sort(descending=True).values, want.clamp_min(0)[want > 0])
    assert searched > 40 if steep != 1 else searched >= 40


def test_encode_batch_is_exact_if_every_estimate_fails(monkeypatch):
    # Keys that are all equal: none is above a guess that is one of them.
    monkeypatch.setattr(cpu, "chunk_rows", lambda *_: 32)
    one = torch.ones(96, 1), torch.ones(70, 1), torch.zeros(70), torch.ones(70)
    code, _ = cpu.encode_batch(*one, 100)
    assert code.start[1:3].tolist() == [70, 100] and len(code.latents) == 100
    assert code.latents.tolist() == [*range(70), *range(30)]


@MODULES
def test_encode_batch_selects_the_first_of_equal_entries(module):
    x, one, equal = torch.ones(3, 2), torch.ones(8), torch.ones(8, 2)
    code, _ = module.encode_batch(x, equal, one, one, 10)
    assert code.start.tolist() == [0, 8, 10, 10] and code.latents[8:].tolist() == [0, 1]
    x = x * torch.tensor([1, 9, 1])[:, None]
    code, _ = module.encode_batch(x, equal, one, one, 10)
    assert code.start.tolist() == [0, 2, 10, 10] and code.latents[:2].tolist() == [0, 1]


def test_encode_rows_selects_the_first_of_equal_entries():
    x, one = torch.ones(3, 2), torch.ones(8)
    equal = torch.ones(8, 2)
    code, _ = cpu.encode_rows(x, equal, one, one, 3)
    assert code.latents.tolist() == [0, 1, 2] * 3
    kept = cpu.keep_top(equal, 1)
    assert kept.tolist() == [[True, False]] * 8


@pytest.mark.parametrize("values", ["ties", "spread", "tiny"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nth_largest_key_equals_that_of_a_sort(values, dtype):
    g = torch.Generator().manual_seed(0)
    keys = {
        "ties": torch.randint(1, 9, (500,), generator=g),
        "spread": torch.exp(20 * torch.randn(500, generator=g, dtype=torch.float64)),
        "tiny": 1e-30 * (1 + 1e-6 * torch.rand(500, generator=g, dtype=torch.float64)),
    }[values].to(dtype)
    ordered = keys.sort(descending=True).values
    for k in (1, 2, 77, 499, 500):
        bound, room = batch.nth_largest_key([batch.SelectedEntries(0, *4 * [keys.numpy()])], k)
        assert bound == ordered[k - 1]
        assert room == k - int((keys > bound).sum())
        assert searches.kth_largest(keys.clone().numpy(), len(keys), k) == bound


@MODULES
@pytest.mark.parametrize("k", [1, 9, 30])
def test_keep_top_selects_negative_entries_too(module, k):
    matrix = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) - 2
    kept = module.keep_top(matrix, k)
    assert kept.sum(1).tolist() == [k] * 20
    assert torch.equal(
        torch.where(kept, matrix, torch.inf).amin(1), matrix.topk(k, dim=1).values[:, -1]
    )


@MODULES
@pytest.mark.parametrize("edges", [[H], [4, 30, H]])
def test_decode_and_gradients_equal_autograd(module, edges):
    x, encoder, bias, scale, decoder, b_dec = weights()
    code, _ = module.encode_batch(x, encoder, bias, scale, 300)
    z = densed(code).requires_grad_()
    table = decoder.clone().requires_grad_()
    losses = [(z[:, :e] @ table[:e] + b_dec - x).pow(2).sum() for e in edges]
    sum(losses).backward()
    sums, squares, dots = module.decode(code, decoder, b_dec, x, edges)
    torch.testing.assert_close(squares, torch.stack(losses).detach())
    taken = code.rows(), code.latents.long()
    torch.testing.assert_close(2 * dots, z.grad[taken])
    got = module.weight_gradients(code, sums, x, dots, 2.0, edges)
    pull = torch.zeros_like(z).index_put(taken, z.grad[taken])
    want = pull.t() @ x, pull.sum(0), table.grad
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    again = module.weight_gradients(code, sums, x, dots, 2.0, edges, into=got)
    assert again[0] is got[0]
    torch.testing.assert_close(again[2], 2 * want[2])


@MODULES
def test_decode_handles_rows_without_entries(module):
    x, *_, decoder, b_dec = weights()
    empty = Code(
        torch.zeros(N + 1, dtype=torch.int64), torch.empty(0, dtype=torch.int32), x.new_empty(0)
    )
    sums, squares, dots = module.decode(empty, decoder, b_dec, x, [5, H])
    torch.testing.assert_close(squares, (b_dec - x).pow(2).sum().expand(2))
    got = module.weight_gradients(empty, sums, x, dots, 1.0, [5, H])
    assert not any(part.any() for part in got) and len(dots) == 0


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_number_of_threads_does_not_change_the_bits(threads):
    x, encoder, bias, scale, decoder, b_dec = weights(torch.float32, n=300)

    def run(n):
        threads(n)
        top, _ = cpu.encode_rows(x, encoder, bias, scale, 5)
        code, _ = cpu.encode_batch(x, encoder, bias, scale, 2000)
        sums, squares, dots = cpu.decode(code, decoder, b_dec, x, [20, H])
        made = cpu.weight_gradients(code, sums, x, dots, 0.3, [20, H])
        assert torch.get_num_threads() == n
        return (
            top.latents, top.values, code.latents, code.values, sums, squares, dots, *made,
            cpu.weighted_sum(x[:, 0], x), cpu.lengths(x), cpu.minus(x, x[0]), cpu.least_key(code, scale),
        )  # fmt: skip

    for n in (2, 3):
        for one, other in zip(run(1), run(n), strict=True):
            assert torch.equal(one, other)


def test_each_gives_every_task_one_thread_of_torch(threads):
    threads(2)
    ours = shares.each(lambda i: (i, torch.get_num_threads(), threading.get_ident()), range(6))
    assert [i for i, *_ in ours] == list(range(6))
    assert {n for _, n, _ in ours} == ({1} if torch.backends.mkl.is_available() else {2})
    assert torch.get_num_threads() == 2
    # Threads that come later are not held to one.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 2
    assert shares.each(lambda _: threading.get_ident(), [0]) == [threading.get_ident()]
    with pytest.raises(ZeroDivisionError):
        shares.each(lambda i: 1 // i, [1, 0, 2])


@pytest.mark.parametrize("lanes", [1, 2, 3, 16])
def test_chunk_rows_are_equal_and_large_enough(lanes):
    for n, h in (
        (2048, 6144),
        (512, 4096),
        (501, 48),
        (2048, 32768),
        (1, 10),
        (64, 10**7),
        (5000, 100),
    ):
        step = chunk_rows(n, h, lanes)
        assert 1 <= step <= max(n, 32)
        parts = [min(step, n - at) for at in range(0, n, step)]
        assert len(parts) == 1 or step % 32 == 0
        assert max(parts) <= 2048 + 32 and (
            max(parts) <= 256 + 32 or step * h <= (1 << 22) + 32 * h
        )
        if n >= 256 * lanes and n % (32 * lanes) == 0:
            assert len(parts) % lanes == 0


@MODULES
@pytest.mark.parametrize("n", [1, 300])
def test_small_operations_equal_torch(module, n):
    x, encoder, *_, decoder, b_dec = weights(n=n)
    torch.testing.assert_close(module.minus(x, b_dec), x - b_dec)
    torch.testing.assert_close(module.lengths(x), x.pow(2).sum(1).sqrt())
    torch.testing.assert_close(module.weighted_sum(x[:, 3], x), x[:, 3] @ x)
    scale = torch.linspace(0.1, 3, H, dtype=x.dtype)
    code, _ = module.encode_batch(x, encoder, scale, scale, 20)
    want = densed(code) * scale
    assert float(module.least_key(code, scale)) == pytest.approx(float(want[want > 0].min()))
    empty = Code(torch.zeros(2, dtype=torch.int64), code.latents[:0], code.values[:0])
    assert module.least_key(empty, scale) == torch.inf


def test_buffers_are_reused_only_after_their_tensor_is_deleted():
    one = lend((3, 1001), torch.float32)
    grad = one.t()  # shares the memory, as a parameter's gradient does
    place = one.data_ptr()
    del one
    assert lend((3, 1001), torch.float32).data_ptr() != place
    del grad
    assert lend((1001, 3), torch.float32).data_ptr() == place
    assert lend((3, 1001), torch.float64).dtype is torch.float64


def test_other_dtypes_use_plain_torch():
    assert pick(torch.zeros(1)) is cpu and pick(torch.zeros(1).double()) is cpu
    assert pick(torch.zeros(1, dtype=torch.bfloat16)) is plain


TRITON = """
import torch
from dermaudit.sae.training.kernels import gpu, plain
g = torch.Generator().manual_seed(0)
for d, h, edges in ((11, 40, [40]), (16, 40, [7, 20, 40])):
    one = {"generator": g, "dtype": torch.float64}
    x, encoder, decoder = (torch.randn(n, d, **one) for n in (13, h, h))
    bias, b_dec = torch.zeros(h).double(), torch.randn(d, **one)
    code, _ = gpu.encode_batch(x, encoder, bias, torch.ones(h).double(), 60)
    want, got = (m.decode(code, decoder, b_dec, x, edges) for m in (plain, gpu))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    sums, _, dots = want
    into = [torch.ones(*size).double() for size in ((h, d), (h,), (h, d))]
    for start in (None, into):
        want, got = (
            m.weight_gradients(
                code, sums, x, dots, 0.75, edges, start and [part.clone() for part in start]
            )
            for m in (plain, gpu)
        )
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other)
print("equal")
"""


def test_triton_in_its_interpreter_equals_plain(run_python, tmp_path):
    pytest.importorskip("triton")
    (tmp_path / "check.py").write_text(TRITON)
    done = run_python(tmp_path / "check.py", env={"TRITON_INTERPRET": "1"})
    assert done.rc == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "d, h, edges", [(16, 40, [7, 20, 40]), (192, 512, [512]), (768, 6144, [6144])]
)
def test_triton_on_a_gpu_equals_plain_and_repeats_its_bits(d, h, edges):
    from dermaudit.sae.training.kernels import gpu

    g = torch.Generator().manual_seed(0)
    x, encoder, decoder = (
        torch.randn(n, d, generator=g, dtype=torch.float64).cuda() for n in (64, h, h)
    )
    bias, b_dec = torch.zeros(h).double().cuda(), torch.randn(d, generator=g).double().cuda()
    code, _ = gpu.encode_batch(x, encoder, bias, torch.ones(h).double().cuda(), 60)
    want, got = (m.decode(code, decoder, b_dec, x, edges) for m in (plain, gpu))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)
    sums, _, dots = want
    want, got, again = (
        m.weight_gradients(code, sums, x, dots, 0.75, edges, None) for m in (plain, gpu, gpu)
    )
    for one, other, third in zip(got, want, again, strict=True):
        torch.testing.assert_close(one, other)
        assert torch.equal(one, third)


# ---- Adam


def parameters(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    wide = torch.randn(70, 30, generator=g, dtype=dtype).t()  # by columns, as W_enc is stored
    parts = wide, torch.randn(70, 30, generator=g, dtype=dtype), torch.zeros(70, dtype=dtype)
    return [torch.nn.Parameter(part) for part in parts]


def move(optimizers, steps, max_norm, first=0):
    for step in range(first, first + steps):
        for optimizer in optimizers:
            g = torch.Generator().manual_seed(step)
            for param in optimizer.param_groups[0]["params"]:
                param.grad = torch.randn(param.shape, generator=g, dtype=param.dtype)
            optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
            if isinstance(optimizer, Adam):
                clip_and_step(optimizer, max_norm)
            else:
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
                optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_adam_equals_torch(dtype, max_norm):
    ours, theirs = parameters(dtype), parameters(dtype)
    move([Adam(ours), torch.optim.Adam(theirs)], 50, max_norm)
    atol = 1e-6 if dtype is torch.float32 else 1e-9
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=atol)


def test_adam_loads_a_state_with_another_memory_layout():
    ours, theirs = parameters(), parameters()
    one, other = Adam(ours), torch.optim.Adam(theirs)
    move([one, other], 5, 1.0)
    saved, kept = copy.deepcopy(one.state_dict()), copy.deepcopy(one.state_dict())
    for state in saved["state"].values():  # what a file makes of it
        state["exp_avg"], state["exp_avg_sq"] = (
            state[name].contiguous() for name in ("exp_avg", "exp_avg_sq")
        )
    again = Adam(ours)
    again.load_state_dict(saved)
    assert again.state[ours[0]]["exp_avg"].stride() == ours[0].stride()
    crossed = torch.optim.Adam(theirs)
    crossed.load_state_dict(kept)  # torch's own reads ours
    move([again, crossed], 5, 1.0, first=5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_gradient_norm_is_exact_over_many_blocks():
    param = torch.nn.Parameter(torch.zeros(200_003))
    param.grad = torch.randn(200_003, generator=torch.Generator().manual_seed(0))
    want = float(param.grad.double().norm())
    assert float(gradient_norm([param])) == pytest.approx(want, rel=1e-6)


def test_adam_uses_torch_for_other_dtypes():
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]
    params[0].grad = torch.full((4,), 2.0, dtype=torch.bfloat16)
    assert float(clip_and_step(Adam(params, lr=0.5), 1.0)) == pytest.approx(4.0)
    assert (params[0] < 1).all()
