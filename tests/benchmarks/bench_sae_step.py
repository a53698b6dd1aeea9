"""One training step of a TopK SAE, ours beside the published trainers, and beside what the machine could do.

    python tests/benchmarks/bench_sae_step.py [--sizes 768,6144,32,2048 512,4096,32,512 1024,32768,64,2048]
        [--threads 1 2] [--pairs 5] [--only NAME ...] [--clock wall|cpu] [--device cpu|cuda] [--peers .peers]
        [--together 10]

A step is select, forward, backward, clip at norm 1 and Adam, on the same rows, float32, no dead latents. Each
contender takes turns with ours in one run; the figure is the median over the pairs of its time through ours. The
limit is max-speed arithmetic plus memory traffic, `FLOP / peak + bytes / bandwidth`: the peak from the encoder's own
matrix product and the bandwidth from a copy as large as the weights, both measured here between the steps. FLOP
are 2Bdh + 8Bkd; bytes are Adam's 28 to a parameter, 4 for the clip's norm, 8 for the weights read and the gradients
written, and 8 to a pre-activation. `--clock cpu` counts this process's processor seconds instead of the wall's: on a
machine that others use, with one thread, it is what the wall would say on a quiet one. The last line of each size is
a step of `--together` SAEs in one call, as `fit --seeds` takes it: its time for one of them.

sae-lens is required by dermaudit; the other peers are looked for where it is, then in the folder `--peers`, which
`make bench-peers` fills: without what they require, whose pins would change ours. What they import only to draw, or
for language models, is left out while they are imported. A peer that is not there is a line with the command that
installs it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from unittest.mock import MagicMock

import torch

Sizes = tuple[int, int, int, int]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def lens_trainer(
    sae, lr: float = 3e-4
) -> tuple[torch.optim.Optimizer, Callable[[torch.Tensor], None]]:
    """(optimizer, step) of a sae-lens training SAE as its trainer drives it: dense autograd, clip, torch's Adam."""
    from sae_lens.saes.sae import TrainStepInput

    optimizer = torch.optim.Adam(sae.parameters(), lr=lr)

    def step(x: torch.Tensor) -> None:
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={},
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return optimizer, step


def our_trainer(
    sae, lr: float = 3e-4
) -> tuple[torch.optim.Optimizer, Callable[[torch.Tensor], None]]:
    """The same of ours, on the same class."""
    from dermaudit.sae.training.adam import Adam, clip_and_step
    from dermaudit.sae.training.sparse_step import sparse_step, transpose_storage

    transpose_storage(sae)
    optimizer = Adam(sae.parameters(), lr=lr)

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        sparse_step(sae, x).loss.backward()
        clip_and_step(optimizer, 1.0)

    return optimizer, step


def training_sae(kind: str, sizes: Sizes, device: str, **options):
    import sae_lens

    d, h, k, _ = sizes
    config = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    return getattr(sae_lens, f"{kind}TrainingSAE")(
        config(d_in=d, d_sae=h, k=k, device=device, **options)
    )


def sae_lens_step(
    kind: str, sizes: Sizes, device: str, **options
) -> Callable[[torch.Tensor], None]:
    return lens_trainer(training_sae(kind, sizes, device, **options))[1]


def our_step(kind: str, sizes: Sizes, device: str, **options) -> Callable[[torch.Tensor], None]:
    return our_trainer(training_sae(kind, sizes, device, **options))[1]


def overcomplete_step(sizes: Sizes, device: str) -> Callable[[torch.Tensor], None]:
    from overcomplete.sae import TopKSAE

    d, h, k, _ = sizes
    sae = TopKSAE(d, h, top_k=k, device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        x_hat = sae(x)[2]
        (x - x_hat).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def dictionary_learning_step(sizes: Sizes, device: str) -> Callable[[torch.Tensor], None]:
    from dictionary_learning.trainers.top_k import TopKTrainer

    d, h, k, _ = sizes
    trainer = TopKTrainer(
        steps=10_000,
        activation_dim=d,
        dict_size=h,
        k=k,
        layer=0,
        lm_name="none",
        lr=3e-4,
        device=device,
    )
    return lambda x: trainer.update(1, x)  # step 0 would also find a median


def sparsify_step(sizes: Sizes, device: str) -> Callable[[torch.Tensor], None]:
    from sparsify import SparseCoder, SparseCoderConfig

    d, h, k, _ = sizes
    sae = SparseCoder(d, SparseCoderConfig(num_latents=h, k=k), device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)

    def step(x: torch.Tensor) -> None:
        optimizer.zero_grad()
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()

    return step


def contenders(sizes: Sizes, device: str) -> dict[str, tuple[str | None, str, Callable, Callable]]:
    """name → (package to install or None, which of ours is beside it, its step, our step)."""

    def lens(kind: str, **options):
        return lambda: sae_lens_step(kind, sizes, device, **options)

    def ours(kind: str, **options):
        return lambda: our_step(kind, sizes, device, **options)

    d, h, *_ = sizes
    nested = {"matryoshka_widths": [h // 16, h // 4, h]}
    plain = {"rescale_acts_by_decoder_norm": False}
    return {
        "sae-lens TopK": (None, "TopK", lens("TopK"), ours("TopK")),
        "sae-lens TopK, sparse activations": (
            None, "TopK", lens("TopK", use_sparse_activations=True, **plain), ours("TopK", **plain),
        ),
        "sae-lens BatchTopK": (None, "BatchTopK", lens("BatchTopK"), ours("BatchTopK")),
        "sae-lens Matryoshka": (
            None, "Matryoshka", lens("MatryoshkaBatchTopK", **nested), ours("MatryoshkaBatchTopK", **nested),
        ),
        "overcomplete TopK": (
            "overcomplete", "TopK", lambda: overcomplete_step(sizes, device), ours("TopK"),
        ),
        "dictionary_learning TopK": (
            "dictionary_learning", "TopK", lambda: dictionary_learning_step(sizes, device), ours("TopK"),
        ),
        "sparsify TopK": ("sparsify", "TopK", lambda: sparsify_step(sizes, device), ours("TopK")),
    }  # fmt: skip


#: package → (what pip installs for a step of it, what it imports that a step does not need)
PEERS = {
    "overcomplete": (
        "overcomplete", ("cv2", "skimage", "matplotlib", "matplotlib.pyplot", "matplotlib.colors"),
    ),
    "dictionary_learning": ("dictionary-learning", ("nnsight",)),
    "sparsify": ("eai-sparsify natsort schedulefree", ()),
}  # fmt: skip


def missing(package: str, folder: str) -> str | None:
    """Import a peer; if it is not installed, or not whole: why, and the command that installs it."""
    words, unneeded = PEERS[package]
    command = f"pip install --no-deps --target {folder} {words}"
    if importlib.util.find_spec(package) is None:
        return f"not installed: {command}"
    before = {name: sys.modules.get(name) for name in unneeded}
    sys.modules.update({name: MagicMock() for name in unneeded})
    try:
        importlib.import_module(package)
    except ImportError as fault:
        return f"cannot be imported ({fault}): {command}"
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    return None


class Timer:
    def __init__(self, clock: str, device: str) -> None:
        self.clock, self.cuda = CLOCKS[clock], device.startswith("cuda")

    def __call__(self, function: Callable[[], object]) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        started = self.clock()
        function()
        if self.cuda:
            torch.cuda.synchronize()
        return self.clock() - started


def limit(sizes: Sizes, device: str, timer: Timer) -> tuple[float, float, float]:
    """(seconds of a step at the limit, FLOP/s of the product, bytes/s of a copy), measured once."""
    d, h, k, n = sizes
    x, w = torch.randn(n, d, device=device), torch.randn(h, d, device=device)
    out = torch.empty(n, h, device=device)
    source = torch.randn(2 * d * h, device=device)
    target = torch.empty_like(source)
    flop = 2 * n * d * h / min(timer(lambda: torch.mm(x, w.t(), out=out)) for _ in range(3))
    byte = 8 * source.numel() / min(timer(lambda: target.copy_(source)) for _ in range(5))
    moved = (28 + 4 + 8) * 2 * d * h + 8 * n * h
    return (2 * n * d * h + 8 * n * k * d) / flop + moved / byte, flop, byte


def step_times(
    entry: tuple, sizes: Sizes, pairs: int, device: str, timer: Timer
) -> dict[str, float]:
    """Medians over the pairs: ms of a step of theirs and of ours, their ratio, our share of the limit."""
    _, _, make_theirs, make_ours = entry
    x = torch.randn(sizes[3], sizes[0], generator=torch.Generator().manual_seed(0)).to(device)
    theirs, ours = make_theirs(), make_ours()
    for step in (theirs, ours):
        step(x)  # compiles, allocates
    taken = []
    for _ in range(pairs):
        least, *_ = limit(sizes, device, timer)
        taken.append((timer(lambda: theirs(x)), timer(lambda: ours(x)), least))
    return {
        "theirs_ms": 1e3 * statistics.median(a for a, _, _ in taken),
        "ours_ms": 1e3 * statistics.median(b for _, b, _ in taken),
        "ratio": statistics.median(a / b for a, b, _ in taken),
        "share_of_limit": statistics.median(least / b for _, b, least in taken),
    }


def measure(
    name: str, entry: tuple, sizes: Sizes, pairs: int, device: str, timer: Timer, folder: str
) -> str:
    package, kind, *_ = entry
    if package is not None and (why := missing(package, folder)) is not None:
        return f"  {name:<36} {why}"
    try:
        times = step_times(entry, sizes, pairs, device, timer)
    except Exception as fault:  # a peer that fails is a line of the table
        return (
            f"  {name:<36} does not run: {type(fault).__name__}: {str(fault).splitlines()[0][:90]}"
        )
    return (
        f"  {name:<36} {times['theirs_ms']:8.0f} ms   our {kind:<10} {times['ours_ms']:7.0f} ms   "
        f"{times['ratio']:5.2f}x   {times['share_of_limit']:.2f} of the limit"
    )


def measure_together(sizes: Sizes, count: int, pairs: int, timer: Timer) -> str:
    """Line of a step of `count` SAEs in one call, beside ours of one of them; its time is that for one."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from dermaudit.distributed import World
    from dermaudit.sae.store.loader import row_statistics
    from dermaudit.sae.store.rows import EmbeddingRows
    from dermaudit.sae.training.recipe import SAERecipe
    from dermaudit.sae.training.sae_in_training import SAEInTraining
    from dermaudit.sae.training.stack import SAEStack

    d, h, k, n = sizes
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    rows, alone = EmbeddingRows.of(x), our_step("TopK", sizes, "cpu")
    given = rows, torch.from_numpy(x), row_statistics(rows), World()
    recipe = SAERecipe(architecture="topk", d_sae=h, k=float(k), batch=n, samples=n * 10_000)
    stack = SAEStack([SAEInTraining(recipe.replaced({"seed": i}), *given) for i in range(count)])
    taken = []
    with threadpool_limits(1, "blas"):  # as in a fit; torch has its own
        for step in (lambda: stack.learn(x), lambda: alone(given[1])):
            step()
        for _ in range(pairs):
            least, *_ = limit(sizes, "cpu", timer)
            taken.append(
                (timer(lambda: alone(given[1])), timer(lambda: stack.learn(x)) / count, least)
            )
    one, together = (statistics.median(pair[i] for pair in taken) for i in (0, 1))
    share = statistics.median(least / b for _, b, least in taken)
    return (
        f"  {f'{count} of ours in one call':<36} {1e3 * one:8.0f} ms   our TopK       {1e3 * together:7.0f} ms   "
        f"{one / together:5.2f}x   {share:.2f} of the limit"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--sizes", nargs="+", default=["768,6144,32,2048", "512,4096,32,512", "1024,32768,64,2048"]
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="contenders whose name contains one of these")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--together", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peers", default=".peers", help="a folder with packages of peers")
    options = parser.parse_args()
    sys.path.append(options.peers)
    if options.device == "cpu":
        os.environ.setdefault(
            "SPARSIFY_DISABLE_TRITON", "1"
        )  # sparsify's own switch to embedding_bag
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    timer = Timer(options.clock, options.device)
    for text in options.sizes:
        d, h, k, n = sizes = tuple(int(part) for part in text.split(","))
        for threads in options.threads if options.device == "cpu" else [torch.get_num_threads()]:
            torch.set_num_threads(threads)
            _, flop, byte = limit(sizes, options.device, timer)
            print(
                f"(d, h, k, B) = ({d}, {h}, {k}, {n}), {options.device}, {threads} thread(s), {options.clock} clock, "
                f"product {flop / 1e9:.0f} GFLOP/s, copy {byte / 1e9:.1f} GB/s, median of {options.pairs} pairs",
                flush=True,
            )
            for name, entry in contenders(sizes, options.device).items():
                if not options.only or any(part in name for part in options.only):
                    print(
                        measure(
                            name, entry, sizes, options.pairs, options.device, timer, options.peers
                        ),
                        flush=True,
                    )
            if options.device == "cpu" and options.together > 1:
                line = measure_together(sizes, options.together, options.pairs, timer)
                print(line, flush=True)


if __name__ == "__main__":
    main()
