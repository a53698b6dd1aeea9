"""All images of a manifest as one array. Bad files are listed and left out; the run continues."""

from __future__ import annotations

import numpy as np

from dermaudit.console import say, track
from dermaudit.failpoints import hit

from ..manifest.manifest import Manifest
from .decode import DEFAULT_LIMITS, BadImage, ImageLimits, Mode, no_readable_image, read_image
from .parallel import map_images

SkippedImage = tuple[int, str, str]


def decode_all(
    manifest: Manifest,
    size: int,
    *,
    mode: Mode = "squash",
    strict: bool = False,
    threads: int = 1,
    limits: ImageLimits = DEFAULT_LIMITS,
    what: str = "decoding images",
) -> tuple[np.ndarray, np.ndarray, list[SkippedImage]]:
    """Decode every image to a square: (pixels, kept, skipped).

    `pixels` uint8 (n_kept, size, size, 3); `kept` int64 (n_kept,), the manifest rows of `pixels`,
    ascending; `skipped` [(row, image, reason)]. The result does not depend on `threads`.
    Errors: BadImage at the first bad file if `strict`; UserInputError when no image could be read.
    """
    pixels = np.empty((manifest.n, size, size, 3), dtype=np.uint8)
    kept: list[int] = []
    skipped: list[SkippedImage] = []
    names = manifest.column("image")
    results = map_images(
        lambda path: read_image(path, size, mode, limits), manifest.paths(), threads
    )
    for row, found in enumerate(track(results, what, total=manifest.n)):
        if isinstance(found, BadImage):
            if strict:
                raise found
            skipped.append((row, names[row], found.reason))
        else:
            pixels[len(kept)] = found
            kept.append(row)
        hit("decode")
    if not kept:
        raise no_readable_image(manifest.n, manifest.path, *(skipped[0][1:] if skipped else ()))
    if skipped:
        say(
            f"  {len(skipped)} of {manifest.n} images skipped, the first: "
            f"{skipped[0][1]}: {skipped[0][2]}"
        )
    return pixels[: len(kept)], np.array(kept, dtype=np.int64), skipped
