"""Does reading data hide behind computing? The training loop beside its own bare step.

    python tests/benchmarks/bench_pretrain.py [DATA] [--recipe phantom] [--steps 40] [--threads 1]

Without DATA, a data set or its shards, 2,000 phantoms are rendered.

Bare: `take_step` on one batch that is already decoded, again and again. Loop: `train` from image files (decoded
by one more thread while the step computes), from shards if DATA holds shards, and from memory. Rates in images/s,
alternating, the median of three; the step is the same in all of them.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dermaudit.data import decode_all
from dermaudit.distributed import World
from dermaudit.pretrain.commands import open_data
from dermaudit.pretrain.data.source import ImageFiles, ImagesFromShards, ImagesInMemory
from dermaudit.pretrain.recipe import load_recipe
from dermaudit.pretrain.training.build import _captions, _stages
from dermaudit.pretrain.training.loop import TrainingPlan, _parts, take_step, train
from dermaudit.pretrain.training.optimizer import make_optimizer
from dermaudit.pretrain.training.start import make_initial_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--recipe", default="phantom")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    work = Path(tempfile.mkdtemp())
    if options.data is None:
        from dermaudit.phantom import load_bias_table
        from dermaudit.phantom.make import make_data_set

        options.data = work / "phantoms"
        make_data_set(options.data, 2000, seed=7, size=96, table=load_bias_table())
    manifest, shards = open_data(options.data)
    recipe = load_recipe(options.recipe, ["masked.epochs=0", "contrastive.epochs=1"])
    n = recipe.batch * options.steps
    train_rows = [i for i, split in enumerate(manifest.splits) if split == "train"][:n]
    if len(train_rows) < n:
        raise SystemExit(f"{options.data} has {len(train_rows)} train images: fewer --steps")
    said = _captions(recipe, manifest.take(train_rows))
    size = recipe.decode_size
    sources = {}
    if shards is not None:
        sources["shards"] = ImagesFromShards(shards, train_rows, size)
        pixels = np.stack([shards.decode(row, size) for row in train_rows])
    else:
        sources["files"] = ImageFiles(said.data.paths(), size)
        pixels = decode_all(said.data, size)[0]
    sources["memory"] = ImagesInMemory(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())

    def stage(name: str):
        start = make_initial_model(recipe, said.corpus, work)
        one = _stages(recipe, start, said, World())[0]
        one.source = sources[name]
        return one

    def plan(name: str) -> TrainingPlan:
        identity = {"key": "bench", "processes": 1}
        return TrainingPlan(recipe, work / name, identity, World(), options.threads)

    def bare() -> float:
        one = stage("memory")
        optimizer = make_optimizer(recipe.optimizer, one.trained, one.lr, recipe.weight_decay)
        _, parts, _ = next(_parts(plan("memory"), one, 0, options.steps))
        take_step(one, optimizer, parts, recipe)
        started = time.perf_counter()
        for _ in range(options.steps - 1):
            take_step(one, optimizer, parts, recipe)
        return (options.steps - 1) * recipe.batch / (time.perf_counter() - started)

    def loop(name: str) -> float:
        one = stage(name)
        started = time.perf_counter()
        train(plan(name), [one])
        return n / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {"bare": [], **{name: [] for name in sources}}
    for _ in range(options.pairs):
        rates["bare"].append(bare())
        for name in sources:
            rates[name].append(loop(name))
    shutil.rmtree(work, ignore_errors=True)
    base = statistics.median(rates["bare"])
    print(f"{options.recipe}, batch {recipe.batch}, {n} images, {options.threads} torch threads:")
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"  {name:7s} {rate:6.1f} images/s  {100 * rate / base:5.1f} % of the bare step")


if __name__ == "__main__":
    main()
