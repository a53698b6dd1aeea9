"""Memory lent again and again: gradients as large as the weights, made new at every step.

A fresh block of this size comes from the kernel page by page, zeroed: for d = 768, h = 6144 that
costs as much as the sums that go into it. A buffer is lent again only when the tensor over it, and
everything that shares its memory (a parameter's `.grad`), is gone.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict

import numpy as np
import torch

_MOST_SIZES = 8  # sizes that are kept, the ones used last

_lock = threading.Lock()
_kept: OrderedDict[tuple, list[tuple[np.ndarray, weakref.ref]]] = OrderedDict()


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised CPU tensor, over memory of a tensor of the same size that is gone, if any."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    key = (math.prod(shape), kind.str)
    with _lock:
        held = _kept.setdefault(key, [])
        _kept.move_to_end(key)
        while len(_kept) > _MOST_SIZES:
            _kept.popitem(last=False)
        idle = next((i for i, pair in enumerate(held) if pair[1]() is None), len(held))
        # torch's memory: it begins at a cache line, which numpy's does not.
        buffer = torch.empty(key[0], dtype=dtype).numpy() if idle == len(held) else held[idle][0]
        view = buffer.view()  # the tensor's storage holds it, and only it
        held[idle : idle + 1] = [(buffer, weakref.ref(view))]
    return torch.from_numpy(view).view(shape)
