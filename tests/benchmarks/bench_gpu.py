"""What a GPU changes: the same commands on the CPU and on the GPU of one machine, in one run.

    python tests/benchmarks/bench_gpu.py [--out docs/results/data/gpu.json] [--images 2000]

Without a GPU it ends with exit code 3. Every figure is the median of three runs after one that is not
counted, in one process: images/s of the forward pass and of `embed`, rows/s of a fit of a
TopK SAE, and one training step of an SAE beside sae-lens. The page docs/results/gpu.md shows them.
`difference` is the largest absolute difference between the embeddings of the two devices.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_sae_step
import numpy as np
import torch

MODEL = "dermoscopy-small"
SIZES = [(768, 6144, 32, 2048), (1024, 32768, 64, 2048)]
DEVICES = ("cpu", "cuda")


def rate(n: int, run: Callable[[], object], runs: int = 3) -> float:
    """Return n per second: the median of `runs` runs after one that is not counted."""
    seconds = []
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return n / statistics.median(seconds[1:])


def embedding(folder: Path) -> dict[str, Any]:
    """Images/s of the forward pass and of `embed` with its reading, and how far the devices differ."""
    from dermaudit.data import Manifest
    from dermaudit.sae.embed.embed import POOLED, EmbedSettings, embed_into
    from dermaudit.sae.embed.shard import read_batch
    from dermaudit.sae.store.shard_plan import ImageList, ShardPart
    from dermaudit.towers import load_model

    manifest = Manifest.load(folder)
    images = ImageList(manifest.ids, manifest.groups, [str(path) for path in manifest.paths()])
    rows, found = {}, {}
    for device in DEVICES:
        tower = load_model(MODEL, device)
        n = min(512, images.n)
        part = ShardPart(
            0, tuple(range(n)), tuple(images.ids[:n]), tuple(images.groups[:n]),
            tuple(images.paths[:n]), None,
        )  # fmt: skip
        x = read_batch(tower, part, 0, n).x.to(device)
        with torch.no_grad():
            forward = rate(n, lambda tower=tower, x=x: tower.model.encode_image(x))
        settings = EmbedSettings([POOLED])
        engine = settings.engine(tower, readers=8)
        store = folder / f"store-{device}"
        loop = rate(
            images.n,
            lambda tower=tower, store=store, settings=settings, engine=engine: embed_into(
                store, tower, images, settings, engine=engine, force=True
            ),
        )
        store_of_device = embed_into(store, tower, images, settings, engine=engine, force=True)
        assert store_of_device is not None  # this process is the only worker
        rows[device] = store_of_device[0].rows().read(0, images.n)
        found[device] = {"forward": forward, "embed": loop}
    return {**found, "difference": float(np.abs(rows["cpu"] - rows["cuda"]).max())}


def fitting() -> dict[str, Any]:
    """Rows/s of a fit of a TopK SAE (d = 768, h = 6144, k = 32, batch 2048), and its held-out FVU."""
    from dermaudit.distributed import World
    from dermaudit.sae import SAERecipe, fit_saes
    from dermaudit.sae.store.rows import EmbeddingRows
    from dermaudit.sae.training.loop import FitSession

    generator = torch.Generator().manual_seed(0)
    dictionary = torch.randn(512, 768, generator=generator)
    codes = torch.rand(40_000, 512, generator=generator)
    x = ((codes * (codes > 0.97)) @ dictionary).numpy()
    rows, held = EmbeddingRows.of(x), x[:512]
    found = {}
    for device, samples in zip(DEVICES, (40_960, 409_600), strict=True):
        recipe = SAERecipe(architecture="topk", d_sae=6144, k=32, samples=samples, batch=2048)

        def fit(recipe: SAERecipe = recipe, device: str = device) -> None:
            session = FitSession(world=World(device=torch.device(device)))
            fit_saes(
                rows, held, [recipe], site="synthetic", model_name="synthetic", session=session
            )

        found[device] = rate(samples, fit, 1 if device == "cpu" else 3)
    return found


def steps() -> list[dict[str, Any]]:
    """One training step of ours beside sae-lens on the GPU,."""
    timer = bench_sae_step.Timer("wall", "cuda")
    lines = []
    for sizes in SIZES:
        for name, entry in bench_sae_step.contenders(sizes, "cuda").items():
            if name.startswith("sae-lens"):
                times = bench_sae_step.step_times(entry, sizes, 5, "cuda", timer)
                lines.append({"sizes": sizes, "name": name, **times})
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/results/data/gpu.json"))
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("no GPU is available\n")
        return 3
    os.environ["DERMAUDIT_QUIET"] = "1"
    from dermaudit.phantom import load_bias_table
    from dermaudit.phantom.make import make_data_set

    result: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text) / "phantoms"
        make_data_set(folder, options.images, seed=7, size=128, table=load_bias_table())
        parts: dict[str, Callable[[], Any]] = {
            "steps": steps,
            "fit": fitting,
            "embed": lambda: embedding(folder),
        }
        for name, part in parts.items():
            try:
                result[name] = part()
            except Exception as error:  # the other parts are measured all the same
                result[name] = {"error": f"{type(error).__name__}: {error}"}
            print(name, json.dumps(result[name]), flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
