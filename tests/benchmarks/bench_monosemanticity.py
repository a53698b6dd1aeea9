"""Monosemanticity: sums of one pass against the loop over pairs of images, in one thread.

    python tests/benchmarks/bench_monosemanticity.py [--n 2000] [--d-sae 1024] [--d 512] [--l0 32] [--threads 1]

The loop is the definition as it is usually run: image by image, its products with all later images,
dense, in torch. Median of alternating pairs of runs; the largest difference between the two is printed, and the
rate of a matrix product of the loop's shape, which no loop over pairs can beat.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from dermaudit.sae.evaluation import Monosemanticity

REPEATS = 3


def by_pairs(a: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """MS of each latent, a (n, h), e (n, d) unit: float32 sums over pairs, O(n² (d + h))."""
    low, high = a.min(0).values, a.max(0).values
    scaled = (a - low) / (high - low)
    top, bottom = torch.zeros(a.shape[1]), torch.zeros(a.shape[1])
    for i in range(len(a) - 1):
        cosine = e[i + 1 :] @ e[i]
        weight = scaled[i] * scaled[i + 1 :]
        top += cosine @ weight
        bottom += weight.sum(0)
    return top / bottom


def by_sums(a: csr_matrix, e: np.ndarray) -> np.ndarray:
    sums = Monosemanticity(a.shape[1], e.shape[1])
    sums.add(a, e)
    return sums.scores()


def timed(function: Callable[[], object]) -> tuple[float, object]:
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--d", type=int, default=512)
    parser.add_argument("--l0", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    n, h = options.n, options.d_sae
    dense = rng.exponential(size=(n, h)) * (rng.random((n, h)) < options.l0 / h)
    e = rng.normal(size=(n, options.d)) + 1.0
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    sparse = csr_matrix(dense)
    a32, e32 = torch.from_numpy(dense).float(), torch.from_numpy(e).float()
    with threadpool_limits(options.threads):
        by_sums(sparse, e)
        pairs = []
        for _ in range(REPEATS):
            loop, slow = timed(lambda: by_pairs(a32, e32))
            ours, fast = timed(lambda: by_sums(sparse, e))
            pairs.append((loop, ours))
        gemm, _ = timed(lambda: e32 @ e32.T)
    difference = float(np.nanmax(np.abs(np.asarray(slow) - np.asarray(fast))))
    print(f"n {n}, latents {h}, d {options.d}, L0 {options.l0}, {options.threads} thread(s)")
    print(f"pairs {statistics.median(p[0] for p in pairs):8.3f} s")
    print(f"sums  {statistics.median(p[1] for p in pairs):8.3f} s")
    print(f"ratio {statistics.median(p[0] / p[1] for p in pairs):8.1f}")
    print(f"all cosines at once, and nothing else: {gemm:.3f} s")
    print(f"largest difference {difference:.1e} (the loop is float32)")


if __name__ == "__main__":
    main()
