"""Images of a run with an artifact drawn onto them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dermaudit.sae.run_data import POOLED, RunData

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from dermaudit.towers import HookedTower

BATCH = 32


def drawn_embeddings(
    data: RunData, concept: str, rows: Int[np.ndarray, " n"], tower: HookedTower, seed: int
) -> Float[np.ndarray, "n d"]:
    """Return the embeddings (n, d) of images of the run with the artifact drawn onto them."""
    from dermaudit.data import read_image
    from dermaudit.phantom import draw_artifact
    from dermaudit.sae.embed.embed import activations

    found = []
    for start in range(0, len(rows), BATCH):
        drawn = [
            draw_artifact(
                concept, read_image(data.image_path(row)), seed=seed * 1_000_003 + int(row)
            )[0]
            for row in rows[start : start + BATCH]
        ]
        found.append(activations(tower, drawn, [POOLED])[POOLED])
    return np.concatenate(found)
