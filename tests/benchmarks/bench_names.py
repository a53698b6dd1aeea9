"""Time and memory of naming many latents: python tests/benchmarks/bench_names.py [--latents 6144] [--words 1000]

Random codes with 32 active latents in each image, random embeddings of width 768. One thread. Goal: 6,144 latents and
1,000 words on 10,000 images in 30 s and 2 GB.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from dermaudit.concepts.naming.methods.fused import name_latents
from dermaudit.concepts.naming.methods.registry import NamingEvidence
from dermaudit.concepts.vocabulary.vocabulary import Concept, Vocabulary

WIDTH, ACTIVE = 768, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latents", type=int, default=6144)
    parser.add_argument("--words", type=int, default=1000)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = np.zeros((options.images, options.latents), np.float32)
    active = rng.integers(0, options.latents, (options.images, ACTIVE))
    codes[np.arange(options.images)[:, None], active] = rng.random((options.images, ACTIVE))
    pooled, words = (rng.normal(size=(n, WIDTH)) for n in (options.images, options.words))
    concepts = tuple(Concept(f"w{i}", "artifact", (f"w{i}",)) for i in range(options.words))
    evidence = NamingEvidence(
        codes,
        (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).astype(np.float32),
        words / np.linalg.norm(words, axis=1, keepdims=True),
        np.zeros((0, WIDTH)),
        Vocabulary("random", concepts, ("{}",), ()),
    )
    started = time.monotonic()
    names = name_latents(evidence)
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{options.latents} latents, {options.words} words, {options.images} images: {seconds:.1f} s, "
        f"peak {peak:.2f} GB; {(names.word >= 0).sum()} are named (nothing is in them)"
    )


if __name__ == "__main__":
    main()
