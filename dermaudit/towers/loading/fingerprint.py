"""One hash for a model: its weights as they compute, and how images are prepared for it.

sha256 over, for every tensor of the state dict in the order of its names: the name, the shape, and
the bytes (floating tensors as little-endian float32, others as int64), each length-prefixed; then
the canonical JSON of the preprocess configuration. A file in fp16 and the fp32 model loaded from it
have the same fingerprint, since it is the loaded values that are hashed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, float32, int64

from dermaudit.files import canonical_json


def tower_fingerprint(state: dict[str, Tensor], preprocess: dict[str, Any]) -> str:
    """64 hex digits. `state`: an open_clip state dict; `preprocess`: JSON-able."""
    digest = hashlib.sha256(b"dermaudit tower 1\n")
    for name in sorted(state):
        tensor = state[name].detach().cpu()
        tensor = tensor.to(float32 if tensor.is_floating_point() else int64).contiguous()
        array = tensor.numpy().astype("<f4" if tensor.is_floating_point() else "<i8", copy=False)
        for part in (name.encode(), repr(tuple(tensor.shape)).encode(), array.tobytes()):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
    digest.update(canonical_json(preprocess))
    return digest.hexdigest()
