"""Threads without the GIL for loops and whole products, as many as torch uses.

It is a separate pool, because its threads sleep between calls: those of OpenMP, which torch uses, spin for
milliseconds on the cores that the next work needs. The large products are computed here too, each by one
thread, and searched by the same thread without waiting for the others. A part is never split further, so
the sums do not depend on the number of threads.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import numpy as np
import torch

One = TypeVar("One")
Result = TypeVar("Result")

_WORTH_WAKING = 1 << 18  # numbers read: about 50 µs


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return the pool of a size and process, because threads of a parent do not survive a fork.

    In its threads torch computes with one thread.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sae")
    together = Barrier(threads)  # otherwise one thread could run all tasks

    def alone() -> None:
        torch.get_num_threads()  # torch sets the number of a thread at the first call
        torch.set_num_threads(1)
        together.wait()

    for started in [pool.submit(alone) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # for threads that are started later
    return pool


def lanes() -> int:
    """Return how many products torch can compute at the same time, each with one thread."""
    return torch.get_num_threads() if torch.backends.mkl.is_available() else 1


def each(work: Callable[[One], Result], items: Sequence[One]) -> list[Result]:
    """Return `work` of each item, in order; a free thread takes the next item.

    In parallel if there are items for all threads; otherwise one after the other, and torch and `share_out`
    use all threads in `work`.
    """
    if not 1 < lanes() <= len(items):
        return [work(item) for item in items]
    return list(_pool(lanes(), os.getpid()).map(work, items))


def share_out(
    loop: Callable[..., Any],
    n: int,
    *args: Any,
    load: np.ndarray | None = None,
    numbers: int = 0,
) -> list[Any]:
    """Return `loop(*args, lo, hi)` of parts of range(n), in the order of the parts.

    `load` (n + 1,) ascending is the work before each index (a CSR start), for parts of equal work. `numbers`
    is how many numbers one index reads; with little work there are fewer parts, because waking a thread
    takes longer.
    """
    threads = min(torch.get_num_threads(), n)
    if numbers:
        threads = min(threads, n * numbers // _WORTH_WAKING)
    if threads <= 1:
        return [loop(*args, 0, n)]
    if load is None:
        cuts = np.linspace(0, n, threads + 1).astype(np.int64)
    else:
        wanted = np.linspace(load[0], load[-1], threads + 1)
        cuts = np.searchsorted(load, wanted)
        cuts[0], cuts[-1] = 0, n
    spans = [(int(lo), int(hi)) for lo, hi in itertools.pairwise(cuts) if hi > lo]
    pool = _pool(torch.get_num_threads(), os.getpid())
    waiting = [pool.submit(loop, *args, lo, hi) for lo, hi in spans[1:]]
    return [loop(*args, *spans[0]), *(one.result() for one in waiting)]
