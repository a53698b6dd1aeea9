"""What the model says when the tokens of a site are replaced by their reconstructions.

The rest of the tower runs on from there, so that what counts is not how near the tokens are but what
the embedding, and the zero-shot classifier on it, make of them. The error term is left out: it would
put back what the dictionary misses. (towers/splice.py does it for sae-lens' modules, which nothing here loads.)
Ablated is the mean train token at every place, and the zero vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dermaudit.console import track
from dermaudit.data import read_image

if TYPE_CHECKING:
    from .model import LinearSAE

_BATCH = 64


@torch.no_grad()
def spliced_embeddings(
    tower: Any, site: str, kind: str, sae: LinearSAE, paths: Iterable[str | Path], mean: np.ndarray
) -> dict[str, np.ndarray]:
    """Unit embeddings (n, d) of the images `clean`, with reconstructed tokens (`sae`), with the `mean`
    (d_in,) train token for every token (`ablated`), and with zeros (`zero`).

    `kind`: patch (all tokens but the prefix) or cls (the first token). Errors: BadImage for a file that
    cannot be read.
    """
    paths = list(paths)
    average = torch.from_numpy(np.asarray(mean, dtype=np.float32))
    ways = {
        "clean": None,
        "sae": lambda x: sae.decode(sae.encode(x)),
        "ablated": lambda x: average.expand_as(x),
        "zero": torch.zeros_like,
    }
    found: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for start in track(range(0, len(paths), _BATCH), f"through {site}"):
        x = tower.preprocess([read_image(Path(path)) for path in paths[start : start + _BATCH]])
        for name, change in ways.items():
            with _replaced(tower, site, kind, change):
                found[name].append(tower.encode_image(x, normalize=True).numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


@contextmanager
def _replaced(tower: Any, site: str, kind: str, change: Any) -> Iterator[None]:
    """Within the block the tokens of `site` are what `change` (…, d) makes of them; None: as they are."""
    if change is None:
        yield
        return
    first = tower.n_prefix_tokens
    at = slice(0, 1) if kind == "cls" else slice(first, None)

    def hook(value: Tensor, hook: Any) -> Tensor:
        out = value.clone()
        out[:, at] = change(value[:, at].float()).to(value.dtype)
        return out

    with tower.hooks(fwd_hooks=[(site, hook)]):
        yield
