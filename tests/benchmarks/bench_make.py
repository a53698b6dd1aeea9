"""A step of MAKE beside a step of plain CLIP at a batch of 256: the losses alone, and with the towers.

    python tests/benchmarks/bench_make.py [--threads 2] [--pairs 3] [--arch ViT-B-16]

Towers cost the same for each row, so they are timed forward and backward on 32 of the 256 rows, times 8; the
losses, which compare all rows, are timed at 256. Texts have the lengths of Derm1M's captions (41 words on
average, here cut into sub-captions), so a MAKE image has about three times the words of a CLIP one. Plain
CLIP is timed twice: as stock open_clip does it (77 tokens each) and with our encoder (as long as the texts).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import open_clip
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss

from dermaudit.pretrain.losses.make import MakeSwitches, make_loss, pool_patches
from dermaudit.pretrain.tokens import TokenReader, encode_texts

B, ROWS, K = 256, 32, 8
SCALE = torch.tensor(14.3)


def captions(n: int, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """n raw captions of 20 … 60 words, and for each its 3 + K views."""
    rng = random.Random(seed)
    words = [
        "papule",
        "red",
        "scaly",
        "plaque",
        "on",
        "the",
        "left",
        "arm",
        "with",
        "network",
        "brown",
    ]
    raw, views = [], []
    for _ in range(n):
        text = [rng.choice(words) for _ in range(rng.randint(20, 60))]
        n_subs = rng.randint(2, K)
        cuts = sorted(rng.sample(range(1, len(text)), n_subs - 1))
        subs = [" ".join(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        raw.append(" ".join(text))
        full = [" ".join(rng.choice(words) for _ in range(12)) for _ in range(2)]
        views.append([raw[-1], *full, *subs])
    return raw, views


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def losses_alone(d: int, cells: int, pairs: int) -> tuple[float, float]:
    """Median seconds of plain CLIP's and MAKE's loss, forward and backward, B = 256."""
    g = torch.Generator().manual_seed(0)

    def unit(*shape):
        return F.normalize(torch.randn(*shape, generator=g), dim=-1).requires_grad_()

    images, texts, patches = unit(B, d), unit(B, 3 + K, d), unit(B, cells, d)
    mask = torch.rand(B, 3 + K, generator=g) < 0.8
    mask[:, 0] = True

    def clip():
        ClipLoss()(images, texts[:, 0], SCALE).backward()

    def make():
        pooled = pool_patches(patches, texts[:, 0], mask[:, 0], MakeSwitches())
        sum(make_loss(images, texts, mask, pooled, SCALE)).backward()

    clip(), make()
    found = [(seconds(clip), seconds(make)) for _ in range(pairs)]
    return tuple(statistics.median(column) for column in zip(*found, strict=True))


def towers(arch: str, pairs: int) -> dict[str, float]:
    """Median seconds, forward and backward, of 32 rows through the towers, for each way."""
    torch.manual_seed(0)
    model = open_clip.create_model(arch).train()
    tokenize = open_clip.get_tokenizer(arch)
    size = model.visual.image_size
    size = size if isinstance(size, int) else size[0]
    reader = TokenReader(model.visual, size)
    x = torch.randn(ROWS, 3, size, size)
    raw, views = captions(ROWS)
    flat = list(dict.fromkeys(text for row in views for text in row))

    def stock():
        (model.encode_image(x).sum() + model.encode_text(tokenize(raw)).sum()).backward()

    def ours():
        (model.encode_image(x).sum() + encode_texts(model, tokenize(raw)).sum()).backward()

    def make():
        tokens = reader.read(model.visual, x)
        cells = reader.project(model.visual, tokens.cells)
        texts = encode_texts(model, tokenize(flat))
        (tokens.embedding.sum() + cells.sum() + texts.sum()).backward()

    ways = {"stock": stock, "ours": ours, "make": make}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(pairs):
        for name, way in ways.items():
            model.zero_grad(set_to_none=True)
            times[name].append(seconds(way))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--arch", default="ViT-B-16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clip, make = losses_alone(512, 196, 5 * options.pairs)
    print(f"threads {options.threads}; losses alone at B = {B}, K = {K}, d = 512, 196 patches:")
    print(f"  CLIP {1e3 * clip:.1f} ms, MAKE {1e3 * make:.1f} ms")
    found = towers(options.arch, options.pairs)
    times = B / ROWS
    steps = {
        "stock": times * found["stock"] + clip,
        "ours": times * found["ours"] + clip,
        "make": times * found["make"] + make,
    }
    print(f"{options.arch}, one step of {B} images (towers: {ROWS} rows, times {times:.0f}):")
    for name, said in (
        ("stock", "CLIP, open_clip's encoders"),
        ("ours", "CLIP, texts cut"),
        ("make", "MAKE"),
    ):
        print(f"  {said:28s} {steps[name]:7.1f} s")
    print(
        f"MAKE / CLIP: {steps['make'] / steps['stock']:.2f} (stock), {steps['make'] / steps['ours']:.2f} (texts cut)"
    )


if __name__ == "__main__":
    main()
