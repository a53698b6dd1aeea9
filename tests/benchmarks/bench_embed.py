"""Does decoding hide behind the tower? `embed`'s loop beside a bare open_clip forward.

    python tests/benchmarks/bench_embed.py [DATA] [--model phantom-vit] [--images 512 …] [--threads 1]

Bare: `model.encode_image` of stock open_clip on batches that are decoded and prepared already. Loop:
`embed_into` a store from the image files (decode, prepare, hash, forward, write, checksum), pooled alone,
and with the default patch site. Images/s, alternating, the median of the pairs' ratios; the first pair
warms up and is not counted. Also the loop without reading ahead, to show what the reading thread saves.

The wall clock needs a core for the reading thread. `own core` is what it would show where there is one: the
same ratio in CPU seconds of the computing thread (true with one torch thread, whatever else the machine does),
which reads its share of the first batch, too. What comes before the first forward and after the last one (that
batch, and the last shard) does not grow with the images: `--images 512 2048` shows its part.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from dermaudit.data import Manifest
from dermaudit.sae.embed.embed import BATCH, POOLED, EmbedSettings, default_sites, embed_into
from dermaudit.sae.embed.shard import embed_shard, read_batch
from dermaudit.sae.store.shard_plan import ImageList
from dermaudit.towers import load_model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", default="phantom-vit")
    parser.add_argument("--images", type=int, nargs="+", default=[512])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--readers", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    os.environ["DERMAUDIT_QUIET"] = "1"
    torch.set_num_threads(options.threads)
    work = Path(tempfile.mkdtemp())
    try:
        if options.data is None:
            from dermaudit.phantom import load_bias_table
            from dermaudit.phantom.make import make_data_set

            options.data = work / "phantoms"
            make_data_set(
                options.data, max(options.images), seed=7, size=96, table=load_bias_table()
            )
        for n in options.images:
            _bench(options, n, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bench(options: argparse.Namespace, n: int, work: Path) -> None:
    manifest = Manifest.load(options.data)
    manifest = manifest.take(range(min(n, manifest.n)))
    images = ImageList(manifest.ids, manifest.groups, [str(path) for path in manifest.paths()])
    tower = load_model(options.model)
    stock = load_model(options.model).release()  # open_clip's own module, without our taps
    sites = {"pooled": [POOLED], "pooled and patches": default_sites(tower)}
    part = _one_part(images)
    batches = [read_batch(tower, part, at, BATCH).x for at in range(0, images.n, BATCH)]

    @torch.no_grad()
    def bare() -> Rates:
        clock = _Clock(images.n)
        for x in batches:
            stock.encode_image(x, normalize=True)
        return clock.rates()

    def loop(names: list[str], ahead: bool = True) -> Rates:
        order = EmbedSettings(names)

        def without(jobs) -> None:
            for one, places in jobs:
                embed_shard(tower, one, places, batch=BATCH)

        engine = order.engine(tower, readers=options.readers) if ahead else without
        clock = _Clock(images.n)
        embed_into(work / "store", tower, images, order, engine=engine, force=True)
        found = clock.rates()
        shutil.rmtree(work / "store")
        return found

    measured = {
        **{name: (lambda names=names: loop(names)) for name, names in sites.items()},
        "pooled, not read ahead": lambda: loop([POOLED], ahead=False),
    }
    rates: dict[str, list[tuple[Rates, Rates]]] = {name: [] for name in measured}
    for _ in range(options.pairs + 1):
        for name, run in measured.items():
            rates[name].append((bare(), run()))
    print(
        f"{options.model}, {images.n} images, batch {BATCH}, {options.threads} torch threads, "
        f"{options.readers} reading, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores:"
    )
    for name, pairs in rates.items():
        wall, cpu = (
            100 * statistics.median(ours[i] / base[i] for base, ours in pairs[1:]) for i in (0, 1)
        )
        base, ours = (
            statistics.median(r[0] for r in side) for side in zip(*pairs[1:], strict=True)
        )
        print(
            f"  {name:24s} bare {base:7.1f}  loop {ours:7.1f} images/s  {wall:6.1f} %"
            + (f"  own core {cpu:6.1f} %" if options.threads == 1 else "")
        )


#: images a second by the clock on the wall, and by the CPU seconds of this thread
Rates = tuple[float, float]


class _Clock:
    def __init__(self, n: int) -> None:
        self.n, self.wall, self.cpu = n, time.perf_counter(), time.thread_time()

    def rates(self) -> Rates:
        wall, cpu = time.perf_counter() - self.wall, time.thread_time() - self.cpu
        return self.n / wall, self.n / cpu


def _one_part(images: ImageList):
    from dermaudit.sae.store.shard_plan import ShardPart

    return ShardPart(
        0,
        tuple(range(images.n)),
        tuple(images.ids),
        tuple(images.groups),
        tuple(images.paths),
        None,
    )


if __name__ == "__main__":
    main()
