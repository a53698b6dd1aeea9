"""Quality at equal time: held-out FVU against seconds of training, our step beside sae-lens' own, on real embeddings.

    python tests/benchmarks/bench_sae_quality.py RUN [--site visual.blocks.11.hook_resid_post] [--d-sae 2048] [--k 16]
        [--batch 1024] [--samples 400000] [--threads 1] [--clock wall|cpu]

Both train the same sae-lens BatchTopK class from the same weights on the same batches of the run's train rows
(scaled to mean norm √d about their mean, lr 1e-3 after 20 steps of warm-up, clip 1, Adam, no dead latents' loss) and
take turns, ten steps each; FVU is taken on val rows, with the batch's threshold as in training, while no clock runs.
Printed: FVU at equal samples and at equal seconds, and how many seconds sae-lens needs for what ours has reached.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from bench_sae_step import lens_trainer, our_trainer
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

from dermaudit.run.directory import open_run
from dermaudit.sae import ActivationStore

LR, WARMUP, TURN, CHECKS = 1e-3, 20, 10, 8


def rows_of(run: Path, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Train and (up to 16,384) val rows, float32, scaled to mean norm √d about the train mean."""
    opened = open_run(run)
    splits = np.array(
        pq.read_table(opened.file("images.parquet"))["split"].to_pylist(), dtype=object
    )
    rows = ActivationStore.open(opened.file("embeddings", site)).rows()
    train, val = (
        torch.from_numpy(rows.take(rows.of_images(splits == part))) for part in ("train", "val")
    )
    mean = train.mean(0)
    scale = math.sqrt(train.shape[1]) / float((train - mean).norm(dim=1).mean())
    picked = torch.linspace(0, len(val) - 1, min(len(val), 16_384)).long()
    return (train - mean) * scale, (val[picked] - mean) * scale


@torch.no_grad()
def held_out(sae: BatchTopKTrainingSAE, val: torch.Tensor) -> float:
    x = val.double()
    back = torch.cat([sae.decode(sae.encode(part)) for part in val.split(2048)]).double()
    return float(((x - back) ** 2).sum() / ((x - x.mean(0)) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--site", default="visual.blocks.11.hook_resid_post")
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--k", type=float, default=16)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    train, val = rows_of(options.run, options.site)
    torch.manual_seed(0)
    first = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(d_in=train.shape[1], d_sae=options.d_sae, k=options.k)
    )
    saes = {"ours": copy.deepcopy(first), "sae-lens": first}
    trainers = {"ours": our_trainer, "sae-lens": lens_trainer}
    steps = options.samples // options.batch
    generator = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(len(train), (options.batch,), generator=generator) for _ in range(steps)
    ]
    for (
        name,
        trainer,
    ) in trainers.items():  # what is compiled or allocated once is no part of a step
        trainer(copy.deepcopy(saes[name]), LR)[1](train[batches[0]])
    sides = {name: trainer(saes[name], LR) for name, trainer in trainers.items()}
    seconds = dict.fromkeys(sides, 0.0)
    curve: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    every = max(TURN, steps // CHECKS // TURN * TURN)
    for start in range(0, steps, TURN):
        for name, (optimizer, step) in sides.items():
            for at in range(start, min(start + TURN, steps)):
                optimizer.param_groups[0]["lr"] = LR * min(1.0, (at + 1) / WARMUP)
                x = train[batches[at]]
                began = clock()
                step(x)
                seconds[name] += clock() - began
        if (start + TURN) % every == 0 or start + TURN >= steps:
            for name, sae in saes.items():
                curve[name].append((seconds[name], held_out(sae, val)))
    print(
        f"{options.site}: {len(train):,} train rows of {train.shape[1]}, {options.d_sae} latents, k {options.k:g}, "
        f"batch {options.batch}, {options.threads} thread(s), {options.clock} seconds"
    )
    print("   samples    ours: s    FVU    sae-lens: s    FVU   at our seconds sae-lens has")
    theirs = np.array(curve["sae-lens"])
    for i, ((ours_s, ours_fvu), (their_s, their_fvu)) in enumerate(
        zip(*curve.values(), strict=True)
    ):
        samples = min(steps, (i + 1) * every) * options.batch
        then = (
            f"{np.interp(ours_s, *theirs.T):.4f}"
            if ours_s >= theirs[0, 0]
            else "not begun to be measured"
        )
        print(
            f"{samples:10,} {ours_s:10.1f} {ours_fvu:7.4f} {their_s:13.1f} {their_fvu:7.4f}   {then}"
        )
    ours_end, their_end = curve["ours"][-1], curve["sae-lens"][-1]
    print(
        f"at equal samples our FVU is {ours_end[1] / their_end[1] - 1:+.2%} of sae-lens'; "
        f"it needs {their_end[0] / ours_end[0]:.2f} times our seconds"
    )


if __name__ == "__main__":
    main()
