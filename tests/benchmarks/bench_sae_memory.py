"""Peak memory of `dermaudit fit` on a store of a million rows of 768 numbers (goal: under 6 GB).

    python tests/benchmarks/bench_sae_memory.py [--rows 1000000] [--width 768] [--dtypes float32 float16]
        [--d-sae 1024] [--k 32] [--samples 100000] [--memory GB] [--folder DIR]

The store is written as `embed` writes it, in shards of 1,024 images, each image a group of its own, one row an
image, into a temporary folder of `--folder` (3.1 GB in float32) that is removed at the end. `fit` is the command, in
a process of its own: all of it is counted, from its imports to the codes of every row. Its process tree is looked
at every 20 ms. Anonymous memory is what it must have; resident memory counts the pages of the mapped store too,
which the system takes back when it is short of memory, and is what the goal is held against.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from bench_demo import tree_memory

from dermaudit.files import write_parquet
from dermaudit.run.directory import Run
from dermaudit.sae.embed.shard import POOLED
from dermaudit.sae.store.activation_store import Identity
from dermaudit.sae.store.shard_plan import (
    ImageList,
    StoreTarget,
    finish_store,
    plan_shards,
    write_shard,
)

GOAL = 6e9
SHARD = 1024
ATOMS, ACTIVE = 1024, 8  # the rows are sums of a few of so many directions, and noise
FINGERPRINT = "f" * 64


def rows(shard: int, n: int, directions: np.ndarray) -> np.ndarray:
    """n unit rows of a shard, float32: the same whenever they are asked for."""
    rng = np.random.default_rng([1, shard])
    out = (
        0.3
        / directions.shape[1] ** 0.5
        * rng.standard_normal((n, directions.shape[1]), dtype=np.float32)
    )
    for _ in range(ACTIVE):
        out += (0.5 + rng.random((n, 1), dtype=np.float32)) * directions[rng.integers(0, ATOMS, n)]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def make_run(path: Path, n: int, d: int, dtype: str) -> tuple[Run, int]:
    """A run whose images and embeddings are there, and the bytes of its store."""
    run = Run.create(path)
    run.meta["model"] = {"name": "made up", "fingerprint": FINGERPRINT, "preprocess": {"size": 224}}
    ids = [f"image-{i:08d}" for i in range(n)]
    splits = np.array(["train"] * 7 + ["val"] + ["test"] * 2, dtype=object)
    table = {"image": ids, "image_id": ids, "group": ids, "split": list(splits[np.arange(n) % 10])}
    write_parquet(run.file("images.parquet"), pa.table(table))
    run.record("images", {}, [run.file("images.parquet")])
    identity = Identity(FINGERPRINT, "0" * 64, POOLED, "pooled", dtype)
    site = StoreTarget(
        run.file("embeddings", POOLED), identity, {"d": d, "tokens": 1, "grid": None}
    )
    images = ImageList(ids, ids, ids)
    plan = plan_shards(site, images, SHARD)
    directions = np.random.default_rng(0).standard_normal((ATOMS, d), dtype=np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for part in plan.parts:
        acts = torch.from_numpy(rows(part.index, len(part.ids), directions)).to(
            getattr(torch, dtype)
        )
        write_shard(site, part, range(len(part.ids)), acts, ["0" * 64] * len(part.ids), {})
    store = finish_store(site, images, plan)
    assert store is not None
    run.record("embed", {}, store.files(), upstream=["images"], summary={"sites": [POOLED]})
    return run, sum(file.stat().st_size for file in store.files())


def watched(command: list[str]) -> tuple[int, int, float, float]:
    """(peak anonymous bytes, peak resident bytes, seconds until that peak, seconds in all) of a process tree."""
    started, anonymous, resident, when = time.perf_counter(), 0, 0, 0.0
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            anonymous = max(anonymous, tree_memory(process.pid, "RssAnon"))
            if (now := tree_memory(process.pid)) > resident:
                resident, when = now, time.perf_counter() - started
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"fit ended with {process.returncode}:\n{said.read()}")
    return anonymous, resident, when, seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument(
        "--dtypes", nargs="+", choices=["float32", "float16"], default=["float32", "float16"]
    )
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--memory", type=float, help="fit --memory, in GB (default its own)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    os.environ["DERMAUDIT_QUIET"] = "1"
    fit = [
        "--arch", "batchtopk", "--d-sae", str(options.d_sae), "--k", str(options.k), "--samples",
        str(options.samples), "--set", "batch=2048", "--threads", str(options.threads),
    ]  # fmt: skip
    if options.memory is not None:
        fit += ["--memory", str(options.memory)]
    print(
        f"dermaudit fit {' '.join(fit)}, {options.rows:,} rows of {options.width}, goal under {GOAL / 1e9:g} GB"
    )
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run, size = make_run(Path(folder) / "run", options.rows, options.width, dtype)
            command = [sys.executable, "-m", "dermaudit", "fit", "--run", str(run.path), *fit]
            anonymous, resident, when, seconds = watched(command)
        print(
            f"  {dtype}  {size / 1e9:.2f} GB on disk   anonymous {anonymous / 1e9:.2f} GB   resident with mapped "
            f"pages {resident / 1e9:.2f} GB ({'within' if resident < GOAL else 'OVER'} the goal; reached after "
            f"{when:.0f} of {seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
