"""One shard of every site: read its images, run the tower, write.

`embed_shard` is the one function under all engines: the loop of one process, workers started by
torchrun or SLURM, and Ray. A shard depends on its part, the model, the batch and the threads only,
never on who makes it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dermaudit.data import BadImage, read_image
from dermaudit.data.images import decode_image
from dermaudit.errors import UserInputError
from dermaudit.files import sha256_file

from .parts import Part, Site, write_part

POOLED = "visual.pooled"
BATCH = 64
_AHEAD = 3  # batches a reading thread may be in front


@dataclass(frozen=True)
class Batch:
    """Images of a part as the tower takes them: x (len(kept), 3, s, s); `kept` their places in the
    part, `sha256` of their files; `skipped` {image_id: why} of those that could not be read."""

    x: Tensor
    kept: list[int]
    sha256: list[str]
    skipped: dict[str, str]


def read_batch(tower: Any, part: Part, at: int, size: int, strict: bool = False) -> Batch:
    """Decode and prepare images at … at + size - 1 of a part. Errors: BadImage if `strict`."""
    pixels, kept, digests, skipped = [], [], [], {}
    for i in range(at, min(at + size, len(part.ids))):
        known = part.sha256[i] if part.sha256 is not None else None
        try:
            image, digest = _read(part.paths[i], known)
        except BadImage as error:
            if strict:
                raise UserInputError(
                    f"{part.paths[i]} (row {part.rows[i]}): {error.reason}",
                    "mend or remove it, or leave out --strict",
                ) from error
            skipped[part.ids[i]] = error.reason
            continue
        pixels.append(image)
        kept.append(i)
        digests.append(digest)
    return Batch(tower.preprocess(pixels), kept, digests, skipped)


def _read(path: str, known: str | None) -> tuple[np.ndarray, str]:
    """(pixels, sha256 of the file); what is not a local file is read through pyarrow."""
    if "://" not in path:
        return read_image(Path(path)), known or sha256_file(path)
    import pyarrow as pa
    from pyarrow import fs

    try:
        system, inside = fs.FileSystem.from_uri(path)
        with system.open_input_file(inside) as handle:
            data = handle.read()
    except (OSError, pa.ArrowException, ValueError) as error:
        raise BadImage(f"cannot be fetched ({str(error).splitlines()[0]})", path) from error
    return decode_image(data, name=path), hashlib.sha256(data).hexdigest()


def n_batches(part: Part, size: int) -> int:
    return -(-len(part.ids) // size)


def batches_ahead(
    tower: Any, parts: Iterable[Part], size: int, *, strict: bool = False, readers: int = 1
) -> Iterator[Batch]:
    """The batches of all parts, in order, read by `readers` threads while others are computed.

    A reader is never more than three batches in front, whatever the size of a shard.
    """
    jobs = ((part, at) for part in parts for at in range(0, len(part.ids), size))
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="read") as pool:
        try:
            for part, at in jobs:
                waiting.append(pool.submit(read_batch, tower, part, at, size, strict))
                if len(waiting) > _AHEAD * readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@torch.no_grad()
def site_values(tower: Any, x: Tensor, kinds: dict[str, str]) -> dict[str, Tensor]:
    """{site: (n, d), or (n, tokens, d) of patch tokens} of prepared images, on the tower's device.

    `kinds`: {site: pooled, cls or patch}; the class token is the first of the prefix tokens, patch
    tokens are what follows them.
    """
    blocks = [site for site in kinds if site != POOLED]
    if blocks:
        pooled, cache = tower.run_with_cache(x, names_filter=lambda name: name in blocks)
    else:
        pooled, cache = tower.encode_image(x, normalize=True), {}
    return {
        site: pooled if site == POOLED else _tokens(cache[site], kind, tower.n_prefix_tokens)
        for site, kind in kinds.items()
    }


def _tokens(value: Tensor, kind: str, n_prefix: int) -> Tensor:
    if kind == "pooled":
        return value
    return value[:, 0] if kind == "cls" else value[:, n_prefix:]


def activations(
    tower: Any, images: Sequence[np.ndarray], sites: list[str]
) -> dict[str, np.ndarray]:
    """{site: (n, d) float32 or (n, tokens, d) float32} of uint8 images; prefix tokens are dropped."""
    kinds = {site: "pooled" if site == POOLED else "patch" for site in sites}
    values = site_values(tower, tower.preprocess(images), kinds)
    return {site: value.cpu().numpy() for site, value in values.items()}


def embed_shard(
    tower: Any,
    part: Part,
    sites: Sequence[Site],
    *,
    batch: int = BATCH,
    strict: bool = False,
    batches: Iterable[Batch] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the shard of `part` at each of `sites`; returns {site: its note}.

    `batches`: the part's images, read already; without, they are read here. Errors: UserInputError
    naming a file that cannot be read, if `strict`, or a site whose values are not rows;
    NoSpaceError, with nothing half-written.
    """
    if batches is None:
        batches = (
            read_batch(tower, part, at, batch, strict) for at in range(0, len(part.ids), batch)
        )
    kinds = {site.name: site.identity.token_kind for site in sites}
    found: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    kept: list[int] = []
    digests: list[str] = []
    skipped: dict[str, str] = {}
    for one in batches:
        kept += one.kept
        digests += one.sha256
        skipped.update(one.skipped)
        if not one.kept:
            continue
        for site, value in zip(sites, site_values(tower, one.x, kinds).values(), strict=True):
            _check_shape(site, value)
            found[site.name].append(value.to(getattr(torch, site.identity.dtype)).cpu())
    return {
        site.name: write_part(
            site,
            part,
            kept,
            torch.cat(found[site.name]) if kept else torch.empty(0),
            digests,
            skipped,
        )
        for site in sites
    }


def _check_shape(site: Site, value: Tensor) -> None:
    d, tokens = site.facts["d"], site.facts["tokens"]
    wanted = (d,) if site.identity.token_kind != "patch" else (tokens, d)
    if value.shape[1:] != wanted:
        raise UserInputError(
            f"site '{site.name}' gives {tuple(value.shape[1:])} an image, not {wanted}",
            "name a hook point of the residual stream: visual.blocks.<i>.hook_resid_post",
        )
