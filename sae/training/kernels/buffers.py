"""Reused memory for gradients, which are as large as the weights and new at every step.

The operating system provides a new block of this size page by page, zeroed, which for d = 768, h = 6144
costs as much as the sums that are written to it. A buffer is reused only when the tensor over it, and
everything that shares its memory (the `.grad` of a parameter), is deleted.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import OrderedDict

import numpy as np
import torch

_MOST_SIZES = 8  # number of recently used sizes that are kept

_lock = threading.Lock()
_kept: OrderedDict[tuple, list[tuple[np.ndarray, weakref.ref]]] = OrderedDict()


def lend(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return an uninitialised CPU tensor, in the memory of a deleted tensor of the same size if any."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype
    key = (math.prod(shape), kind.str)
    with _lock:
        held = _kept.setdefault(key, [])
        _kept.move_to_end(key)
        while len(_kept) > _MOST_SIZES:
            _kept.popitem(last=False)
        idle = next((i for i, pair in enumerate(held) if pair[1]() is None), len(held))
        # Memory of torch is aligned to a cache line, that of numpy is not.
        buffer = torch.empty(key[0], dtype=dtype).numpy() if idle == len(held) else held[idle][0]
        view = buffer.view()  # only the storage of the tensor refers to it
        held[idle : idle + 1] = [(buffer, weakref.ref(view))]
    return torch.from_numpy(view).view(shape)
