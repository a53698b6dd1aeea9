"""Embeddings of a run's images at its sites: one forward pass a batch, written shard by shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.console import track
from dermaudit.data import read_image
from dermaudit.failpoints import hit
from dermaudit.files import sha256_file
from dermaudit.rundir import Run

from .store import ActivationStore, group_number

POOLED = "visual.pooled"
SHARD = 1024
BATCH = 64


def default_sites(tower: Any) -> list[str]:
    """The pooled embedding, and the patch tokens of the last block whose tokens are used: the last
    where they are averaged into the embedding, the last but one of a class-token tower (its last
    patch tokens go nowhere and get no gradient)."""
    if tower.n_blocks == 0:
        return [POOLED]
    visual = tower.model.visual
    trunk = getattr(visual, "trunk", None)
    averaged = (
        tower.family == "timm convolutional"
        or hasattr(trunk, "cls_attn_blocks")
        or "avg" in (getattr(visual, "pool_type", ""), getattr(trunk, "global_pool", ""))
    )
    block = tower.n_blocks - 1 if averaged else max(0, tower.n_blocks - 2)
    return [POOLED, f"visual.blocks.{block}.hook_resid_post"]


@torch.no_grad()
def activations(tower: Any, images: list[np.ndarray], sites: list[str]) -> dict[str, np.ndarray]:
    """{site: (n, d) float32 or (n, tokens, d) float32} of uint8 images; prefix tokens are dropped."""
    x = tower.preprocess(images)
    blocks = [site for site in sites if site != POOLED]
    if blocks:
        pooled, cache = tower.run_with_cache(x, names_filter=lambda name: name in blocks)
    else:
        pooled, cache = tower.encode_image(x, normalize=True), {}
    found = {site: cache[site][:, tower.n_prefix_tokens :].numpy() for site in blocks}
    if POOLED in sites:
        found[POOLED] = pooled.numpy()
    return found


def embed_run(
    run: Run,
    tower: Any,
    paths: list[Path],
    groups: list[str],
    sites: list[str],
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Write the store of every site; a stopped run goes on with its next shard."""
    images = sha256_file(run.file("images.parquet"))
    key = {"model_fingerprint": tower.fingerprint, "images_sha256": images}

    def make() -> tuple[list[Path], dict[str, Any]]:
        stores = {site: _store(run, tower, site, key) for site in sites}
        starts = range(0, len(paths), SHARD)
        work = [
            (i, s)
            for i, s in enumerate(starts)
            if not all(store.has_shard(i) for store in stores.values())
        ]
        batches = [(i, s, b) for i, s in work for b in range(s, min(s + SHARD, len(paths)), BATCH)]
        parts: dict[str, list[np.ndarray]] = {site: [] for site in sites}
        for i, start, at in track(batches, "embedding batches"):
            stop = min(start + SHARD, len(paths))
            pixels = [read_image(path) for path in paths[at : min(at + BATCH, stop)]]
            for site, value in activations(tower, pixels, sites).items():
                parts[site].append(value)
            if at + BATCH < stop:
                continue
            rows = np.arange(start, stop)
            numbers = np.array([group_number(groups[row]) for row in rows])
            for site, store in stores.items():
                acts = np.concatenate(parts[site])
                if not store.has_shard(i):
                    store.write_shard(i, acts.astype(store.meta["dtype"]), rows, numbers)
                parts[site] = []
            hit("embed")
        files = [file for store in stores.values() for file in store.files()]
        return files, {"sites": sites, "n": len(paths)}

    return run.stage("embed", {**key, "sites": sites}, make, upstream=["images"], force=force)


def _store(run: Run, tower: Any, site: str, key: dict[str, str]) -> ActivationStore:
    pooled = site == POOLED
    grid = None if pooled else list(tower.site_grid(site))
    meta = {
        **key,
        "site": site,
        "d": tower.site_width(site),
        "grid": grid,
        "tokens": 1 if pooled else grid[0] * grid[1],
        "dtype": "float32" if pooled else "float16",
    }
    return ActivationStore.create(run.file("embeddings", site), meta)
