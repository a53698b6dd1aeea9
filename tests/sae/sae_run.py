"""A run on disk with planted activations at two sites, whose stages images and embed are done."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from activation_stores import write_store
from sae_rows import planted

from dermaudit.files import write_parquet
from dermaudit.run.directory import Run

POOLED, PATCHES = "visual.pooled", "visual.blocks.1.hook_resid_post"
TOKENS = 4
#: The flags of a fit that takes a second.
SHORT = [
    "--d-sae",
    "16",
    "--k",
    "3",
    "--samples",
    "20000",
    "--set",
    "lr=5e-3",
    "--set",
    "batch=128",
]


def write_run(path: Path, n: int = 600, bad: tuple[int, ...] = (), sites=(POOLED,)) -> Run:
    """Images of groups of three, split 70/10/20 by group; the images `bad` have NaN in their rows."""
    run = Run.create(path)
    run.meta["model"] = {"name": "toy", "fingerprint": "f" * 64, "preprocess": {"size": 8}}
    groups = np.arange(n) // 3
    splits = np.array(["train"] * 7 + ["val"] + ["test"] * 2, dtype=object)[groups % 10]
    table = {
        "image": [f"{i}.png" for i in range(n)],
        "image_id": [f"ISIC_{i}" for i in range(n)],
        "group": [f"g{g}" for g in groups],
        "split": list(splits),
    }
    write_parquet(run.file("images.parquet"), pa.table(table))
    run.record("images", {}, [run.file("images.parquet")])
    files = []
    for site in sites:
        tokens = 1 if site == POOLED else TOKENS
        acts = planted(n * tokens, 0)
        acts = acts if tokens == 1 else acts.reshape(n, tokens, -1)
        acts[list(bad)] = np.nan
        halves = np.array_split(np.arange(n), 2)
        store = write_store(
            run.file("embeddings", site),
            [(acts[rows], rows, groups[rows]) for rows in halves],
            site=site,
            dtype="float32",
        )
        files += store.files()
    run.record("embed", {}, files, upstream=["images"], summary={"sites": list(sites)})
    return run
