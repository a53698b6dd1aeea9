"""Embeddings of images whose tokens at a site are replaced by their reconstructions.

The rest of the tower runs on from there: what counts is not how near the tokens are, but what the
embedding, and the zero-shot classifier on it, make of them. The error term is left out, because it
would put back what the dictionary misses. For comparison the tokens are also replaced by the mean train
token, and by zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dermaudit.console import track
from dermaudit.data import read_image
from dermaudit.towers.splice import replace_activation

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

    from .model import ThresholdSAE, TopKSAE

_BATCH = 64


@torch.no_grad()
def spliced_embeddings(
    tower: HookedTower,
    site: str,
    kind: str,
    sae: ThresholdSAE | TopKSAE,
    paths: Iterable[str | Path],
    mean: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return unit embeddings (n, d) of the images by what their tokens at `site` are replaced with.

    `clean`: nothing; `sae`: their reconstructions; `ablated`: the mean train token `mean` (d_in,);
    `zero`: zeros. `kind`: patch (all tokens but the prefix) or cls (the first token). Raises BadImage
    for a file that cannot be read.
    """
    paths = list(paths)
    average = torch.from_numpy(np.asarray(mean, dtype=np.float32))
    replacements: dict[str, Callable[[Tensor], Tensor] | None] = {
        "clean": None,
        "sae": lambda x: sae.decode(sae.encode(x)),
        "ablated": average.expand_as,
        "zero": torch.zeros_like,
    }
    embeddings: dict[str, list[np.ndarray]] = {name: [] for name in replacements}
    for start in track(range(0, len(paths), _BATCH), f"through {site}"):
        x = tower.preprocess([read_image(Path(path)) for path in paths[start : start + _BATCH]])
        for name, replacement in replacements.items():
            block = (
                nullcontext()
                if replacement is None
                else replace_activation(tower, site, _in_float32(replacement), positions=kind)
            )
            with block:
                embeddings[name].append(tower.encode_image(x, normalize=True).numpy())
    return {name: np.concatenate(parts) for name, parts in embeddings.items()}


def _in_float32(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: change(x.float()).to(x.dtype)
