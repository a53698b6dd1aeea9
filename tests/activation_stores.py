"""Activation stores for tests, written shard by shard."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.files import sha256_file, write_json
from dermaudit.sae.store.activation_store import (
    FORMAT_VERSION,
    ActivationStore,
    shard_name,
    write_shard_file,
)

Shard = tuple[np.ndarray, np.ndarray, np.ndarray]


def write_store(folder: Path, shards: Iterable[Shard], **meta: Any) -> ActivationStore:
    """Write shards of (acts, rows, groups); `meta` is site, dtype, … of store.json."""
    sums, d, tokens, n = {}, 0, 1, 0
    for index, (acts, rows, groups) in enumerate(shards):
        tensor = torch.from_numpy(np.ascontiguousarray(acts))
        path = folder / shard_name(index)
        write_shard_file(
            path, tensor.bfloat16() if meta.get("dtype") == "bfloat16" else tensor, rows, groups
        )
        sums[path.name] = sha256_file(path)
        d, tokens, n = acts.shape[-1], acts.shape[1] if acts.ndim == 3 else 1, n + len(acts)
    meta = {"format_version": FORMAT_VERSION, "d": d, "tokens": tokens, "grid": None, **meta}
    write_json(folder / "store.json", {**meta, "shards": sums, "n": n})
    return ActivationStore.open(folder)
