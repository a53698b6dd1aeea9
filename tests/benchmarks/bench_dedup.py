"""`data dedup`: its rate at a million rows beside the bare matrix product, and what it finds of planted copies.

    python tests/benchmarks/bench_dedup.py [DATA] [--rows 1000000] [--model dermoscopy-small] [--threads 1]

Rate: top-1 cosine of 10,000 rows among `--rows`, 192 wide, against the product of the same blocks and nothing
else, the median of three alternating runs on a tenth of the rows, then all of them once with the peak memory.
Copies (only with DATA, a data set): 400 of its images are left out, 400 of the others are planted again, changed
in one way each, at 512 px (the command reads them at 128); what the hash and the cosine of `--model` list of the
400, and of the 400 left out (chance).
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance

from dermaudit.data import Manifest, read_image
from dermaudit.data.duplicates.embeddings import (
    _BASE,
    _QUERY,
    Features,
    calibrate,
    find_pairs,
    top1,
)
from dermaudit.data.duplicates.hashes import pack_hashes, perceptual_hash, turns
from dermaudit.towers import load_model

N_QUERY, WIDTH, N_PLANTED = 10_000, 192, 400


def product_alone(query: np.ndarray, base: np.ndarray) -> None:
    """The matrix product of `top1` in the same tiles, nothing looked at."""
    tile = np.empty((_QUERY, _BASE), dtype=np.float32)
    for start in range(0, len(base), _BASE):
        block = base[start : start + _BASE]
        for first in range(0, len(query), _QUERY):
            rows = query[first : first + _QUERY]
            np.matmul(rows, block.T, out=tile[: len(rows), : len(block)])


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def rate(n_rows: int) -> None:
    rng = np.random.default_rng(0)
    query = rng.standard_normal((N_QUERY, WIDTH), dtype=np.float32)
    base = rng.standard_normal((n_rows, WIDTH), dtype=np.float32)
    part = base[: n_rows // 10]
    pairs = [
        (seconds(lambda: product_alone(query, part)), seconds(lambda: top1(query, part)))
        for _ in range(3)
    ]
    share = statistics.median(bare / ours for bare, ours in pairs)
    whole = seconds(lambda: top1(query, base))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"top-1 of {N_QUERY:,} among {n_rows:,} rows, {WIDTH} wide: {whole:.0f} s "
        f"({2e-9 * N_QUERY * n_rows * WIDTH / whole:.0f} GFLOP/s), {share:.0%} of the bare product, "
        f"peak {peak:.2f} GiB with the rows themselves"
    )


def cropped(image: Image.Image) -> Image.Image:
    """The middle 90 % of each side."""
    w, h = image.size
    return image.crop((w // 20, h // 20, w - w // 20, h - h // 20))


def jpeg(image: Image.Image) -> Image.Image:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=60)
    return Image.open(held).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half size": lambda image: image.resize(
        (image.width // 2, image.height // 2), Image.Resampling.LANCZOS
    ),
    "JPEG at 60": jpeg,
    "20 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "cropped to 90 %": cropped,
}


def witnesses(images: list[np.ndarray], tower, turned: bool) -> Features:
    """The hashes and embeddings that `data dedup` makes of decoded images."""
    hashes = pack_hashes(np.stack([perceptual_hash(image) for image in images]))
    ways = None
    if turned:
        ways = np.stack(
            [
                pack_hashes(np.stack([perceptual_hash(one) for one in turns(image)]))
                for image in images
            ]
        )
    with torch.no_grad():
        rows = [
            tower.encode_image(tower.preprocess(images[at : at + 64]), normalize=True).numpy()
            for at in range(0, len(images), 64)
        ]
    return Features(np.concatenate(rows), hashes, ways)


def copies(data: Path, model: str) -> None:
    manifest, tower = Manifest.load(data), load_model(model)
    paths, groups = manifest.paths(), np.asarray(manifest.groups)
    picked = np.random.default_rng(0).permutation(manifest.n)
    # Other pictures of a lesion that was left out must not stay: they are no unrelated images.
    left_out, rest = picked[:N_PLANTED], picked[N_PLANTED:]
    rest = rest[~np.isin(groups[rest], groups[left_out])]
    print(
        f"{len(rest):,} images of {data.name}, {N_PLANTED} of them planted again, changed; cosine of {model}"
    )
    a = witnesses([read_image(paths[i], 512) for i in rest], tower, turned=False)
    codes = np.unique(groups[rest], return_inverse=True)[1]
    known = calibrate(a.embeddings, codes)
    print(f"threshold {known.threshold:.4f}, passed by {known.false_share:.0%} of unrelated images")
    planted = rest[:N_PLANTED]
    for name, change in {**CHANGES, "not in the set": None}.items():
        images = []
        for i in left_out if change is None else planted:
            picture = read_image(paths[i], 512)
            images.append(
                picture if change is None else np.asarray(change(Image.fromarray(picture)))
            )
        pairs = find_pairs(a, witnesses(images, tower, turned=True), known.threshold)
        own = np.ones(len(pairs.a), bool) if change is None else pairs.a == pairs.b
        found = [
            len(np.unique(pairs.b[own & by])) / N_PLANTED for by in (pairs.by_hash, pairs.by_cosine)
        ]
        print(f"  {name:<16} hash {found[0]:.3f}   cosine {found[1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--model", default="dermoscopy-small")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rate(options.rows)
    if options.data is not None:
        copies(options.data, options.model)


if __name__ == "__main__":
    main()
