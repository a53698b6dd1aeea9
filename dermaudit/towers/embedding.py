"""Embeddings of the images of a bench, once per model; files that cannot be read are counted.

Images that the checkpoint was trained on are refused before any of them is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import say, track
from dermaudit.data import BadImage, Manifest, read_image
from dermaudit.errors import UserInputError
from dermaudit.files import sha256_file
from dermaudit.run.images import refuse_training_images

_BATCH = 64


@dataclass(frozen=True)
class Embedded:
    """`rows` (k,) of the manifest whose image can be read, `x` (k, d) their unit embeddings,
    `skipped` (image, reason) of the others.
    """

    rows: np.ndarray
    x: np.ndarray
    skipped: list[tuple[str, str]]


@torch.no_grad()
def embed_images(tower: Any, paths: Sequence[Path]) -> tuple[np.ndarray, dict[int, str]]:
    """Return unit embeddings (n, d) float32, with rows of nan for files that cannot be read; {row: why}."""
    x = np.full((len(paths), tower.d_pooled), np.nan, dtype=np.float32)
    failed: dict[int, str] = {}
    for start in track(range(0, len(paths), _BATCH), "embedding"):
        images, rows = [], []
        for row, path in enumerate(paths[start : start + _BATCH], start):
            try:
                images.append(read_image(path))
                rows.append(row)
            except BadImage as error:
                failed[row] = error.reason
        if images:
            x[rows] = tower.encode_image(tower.preprocess(images), normalize=True).cpu().numpy()
    return x, failed


def refuse_seen(tower: Any, manifest: Manifest, rows: Sequence[int] | np.ndarray) -> None:
    """UserInputError when one of these images was a training image of the model (design §4)."""
    if not tower.training_hashes():
        return
    paths, names = manifest.paths(), manifest.column("image")
    hashes = [sha256_file(paths[i]) if paths[i].is_file() else "" for i in rows]
    # Whatever split they are in, these are the images that are scored.
    scored = ["test"] * len(hashes)
    refuse_training_images(tower, scored, [names[i] for i in rows], hashes, manifest.path)


def embed_rows(tower: Any, manifest: Manifest, rows: Sequence[int] | np.ndarray) -> Embedded:
    """Embed the scored rows of a manifest. Errors: UserInputError when one was a training image, or
    when no image can be read.
    """
    scored = np.asarray(rows, dtype=int)
    refuse_seen(tower, manifest, scored)
    paths, names = manifest.paths(), manifest.column("image")
    x, failed = embed_images(tower, [paths[i] for i in scored])
    skipped = [(names[scored[i]], why) for i, why in failed.items()]
    if len(skipped) == len(scored):
        raise UserInputError(
            f"none of the {len(scored)} images of {manifest.path} can be read: "
            f"{skipped[0][0]}: {skipped[0][1]}",
            f"see what is wrong with: dermaudit data check {manifest.path}",
        )
    if skipped:
        say(
            f"  {len(skipped)} of {len(scored)} images cannot be read and are left out, the first: "
            f"{skipped[0][0]}: {skipped[0][1]}"
        )
    kept = np.isfinite(x).all(axis=1)
    return Embedded(scored[kept], x[kept], skipped)
