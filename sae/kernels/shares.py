"""Work handed to as many threads as torch uses, each part by one compiled loop without the GIL.

A pool of our own, because its threads sleep between calls: a second OpenMP pool beside torch's
would spin on the cores that the next product needs. A part is never split further, so the sums
do not depend on how many threads there are.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """One pool a size and process: the threads of a parent do not come along through a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sae")


def share_out(
    loop: Callable[..., Any], n: int, *args: Any, load: np.ndarray | None = None
) -> list[Any]:
    """`loop(*args, lo, hi)` over parts of range(n); the results in order of the parts.

    `load` (n + 1,) ascending: the work before each index (a CSR start), to cut parts of equal work.
    """
    threads = min(torch.get_num_threads(), n)
    if threads <= 1:
        return [loop(*args, 0, n)]
    if load is None:
        cuts = np.linspace(0, n, threads + 1).astype(np.int64)
    else:
        wanted = np.linspace(load[0], load[-1], threads + 1)
        cuts = np.searchsorted(load, wanted)
        cuts[0], cuts[-1] = 0, n
    spans = [(int(lo), int(hi)) for lo, hi in zip(cuts[:-1], cuts[1:], strict=True) if hi > lo]
    pool = _pool(threads - 1, os.getpid())
    waiting = [pool.submit(loop, *args, lo, hi) for lo, hi in spans[1:]]
    return [loop(*args, *spans[0]), *(one.result() for one in waiting)]
