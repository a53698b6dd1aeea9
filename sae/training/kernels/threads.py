"""Work handed to as many threads as torch uses, without the GIL: loops, and whole products.

A pool of our own, because its threads sleep between calls: those of OpenMP spin for milliseconds
on the cores that the next work needs, torch's own as well. So the large products too are made
here, each by one thread, and what searches a product comes right behind it, without waiting for
the others. A part is never split further, so the sums do not depend on how many threads there are.
"""

from __future__ import annotations

import functools
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
    """One pool a size and process: the threads of a parent do not come along through a fork.

    In its threads torch computes with one thread.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sae")
    together = Barrier(threads)  # or one thread would do it for all

    def alone() -> None:
        torch.get_num_threads()  # torch sets a thread's number when it is first asked for
        torch.set_num_threads(1)
        together.wait()

    for started in [pool.submit(alone) for _ in range(threads)]:
        started.result()
    torch.set_num_threads(threads)  # what threads that are yet to come will use
    return pool


def lanes() -> int:
    """How many products torch can make side by side, each with one thread."""
    return torch.get_num_threads() if torch.backends.mkl.is_available() else 1


def each(work: Callable[[One], Result], items: Sequence[One]) -> list[Result]:
    """`work` of each item, in order; whoever is free takes the next.

    Side by side if there is enough for all threads; else one after the other, and what torch and
    `share_out` do in `work` has all threads.
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
    """`loop(*args, lo, hi)` over parts of range(n); the results in order of the parts.

    `load` (n + 1,) ascending: the work before each index (a CSR start), to cut parts of equal work.
    `numbers` that one index reads, where that is all there is to do: too few for what it takes to
    wake a thread, and the parts are fewer.
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
    spans = [(int(lo), int(hi)) for lo, hi in zip(cuts[:-1], cuts[1:], strict=True) if hi > lo]
    pool = _pool(torch.get_num_threads(), os.getpid())
    waiting = [pool.submit(loop, *args, lo, hi) for lo, hi in spans[1:]]
    return [loop(*args, *spans[0]), *(one.result() for one in waiting)]
