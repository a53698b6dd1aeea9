"""One shard of every site: read its images, run the tower, write.

`embed_shard` is the one function under all engines: the loop of one process, workers started by
torchrun or SLURM, and Ray. A shard depends on its part, the model, the batch and the threads only,
never on who makes it.
"""

from __future__ import annotations

import hashlib
import itertools
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
from dermaudit.data.images.decode import decode_image
from dermaudit.errors import UserInputError
from dermaudit.files import sha256_file

from ..store.shard_plan import ShardPart, StoreTarget, write_shard

POOLED = "visual.pooled"
BATCH = 64
_AHEAD = 3  # batches a reading thread may be in front
_PIECE = 8  # images of the first batch that a thread reads at a time


@dataclass(frozen=True)
class Batch:
    """Images of a part as the tower takes them: x (len(kept), 3, s, s); `kept` their places in the
    part, `sha256` of their files; `skipped` {image_id: why} of those that could not be read.
    """

    x: Tensor
    kept: list[int]
    sha256: list[str]
    skipped: dict[str, str]


def read_batch(tower: Any, part: ShardPart, at: int, size: int, strict: bool = False) -> Batch:
    """Decode and prepare images at … at + size - 1 of a part. Errors: BadImage if `strict`."""
    pixels, kept, digests, skipped = [], [], [], {}
    for i in range(at, min(at + size, len(part.ids))):
        known = part.sha256[i] if part.sha256 is not None else None
        try:
            image, digest = read_with_hash(part.paths[i], known)
        except BadImage as error:
            if strict:
                raise UserInputError(
                    f"{part.paths[i]} (row {part.rows[i]}): {error.reason}",
                    "repair or remove it, or leave out --strict",
                ) from error
            skipped[part.ids[i]] = error.reason
            continue
        pixels.append(image)
        kept.append(i)
        digests.append(digest)
    return Batch(tower.preprocess(pixels), kept, digests, skipped)


def read_with_hash(path: str, known: str | None = None) -> tuple[np.ndarray, str]:
    """Return the pixels of an image and the sha256 of its file, or `known` instead of it. What is not a local
    file is read through pyarrow. Errors: BadImage.
    """
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


def n_batches(part: ShardPart, size: int) -> int:
    """Return in how many batches of `size` images a part is embedded."""
    return -(-len(part.ids) // size)


def batches_ahead(
    tower: Any, parts: Iterable[ShardPart], size: int, *, strict: bool = False, readers: int = 1
) -> Iterator[Batch]:
    """The batches of all parts, in order, read by `readers` threads while others are computed.

    A reader is never more than three batches in front, whatever the size of a shard. The first batch,
    for which there is nothing else to do, is read by this thread too.
    """
    jobs = ((part, at) for part in parts for at in range(0, len(part.ids), size))
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(readers, thread_name_prefix="read") as pool:

        def order(n: int) -> None:
            """Have n batches in the queue, as far as there are."""
            for part, at in itertools.islice(jobs, n - len(waiting)):
                waiting.append(pool.submit(read_batch, tower, part, at, size, strict))

        try:
            for part, at in itertools.islice(jobs, 1):
                pieces = _Pieces(pool, tower, part, at, size, strict)
                order(_AHEAD * readers)  # what they read while the tower has the first
                yield pieces.batch()
            while True:
                order(_AHEAD * readers + 1)
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Pieces:
    """`read_batch`, some images at a time, by the threads of `pool` and the one that asks for the batch."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        tower: Any,
        part: ShardPart,
        at: int,
        size: int,
        strict: bool,
    ) -> None:
        end = min(at + size, len(part.ids))
        self.jobs = [
            (tower, part, first, min(_PIECE, end - first), strict)
            for first in range(at, end, _PIECE)
        ]
        self.pieces: list[Future[Batch]] = [pool.submit(read_batch, *job) for job in self.jobs]

    def batch(self) -> Batch:
        for i, job in reversed(list(enumerate(self.jobs))):  # the pool begins at the front
            if self.pieces[i].cancel():
                self.pieces[i] = Future()
                try:
                    self.pieces[i].set_result(read_batch(*job))
                except (
                    UserInputError
                ) as error:  # raised in the order of the images: the first bad one is named
                    self.pieces[i].set_exception(error)
        found = [piece.result() for piece in self.pieces]
        return Batch(
            torch.cat([piece.x for piece in found]),
            [i for piece in found for i in piece.kept],
            [digest for piece in found for digest in piece.sha256],
            {image: why for piece in found for image, why in piece.skipped.items()},
        )


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


@dataclass(frozen=True)
class Values:
    """What a part's images give at each site, before it is written: `acts` {site: (len(kept), …)};
    `kept`, `sha256`, `skipped` as in `Batch`.
    """

    part: ShardPart
    sites: Sequence[StoreTarget]
    acts: dict[str, Tensor]
    kept: list[int]
    sha256: list[str]
    skipped: dict[str, str]

    def write(self) -> dict[str, dict[str, Any]]:
        """Write the shard of every site: {site: its note}. Errors: NoSpaceError, nothing half-written."""
        return {
            site.name: write_shard(
                site, self.part, self.kept, self.acts[site.name], self.sha256, self.skipped
            )
            for site in self.sites
        }


def shard_values(
    tower: Any, part: ShardPart, sites: Sequence[StoreTarget], batches: Iterable[Batch]
) -> Values:
    """Run the tower over the images of a part, read in `batches`.

    Errors: UserInputError for a site whose values are not rows, and those of `batches`.
    """
    kinds = {site.name: site.identity.token_kind for site in sites}
    acts: dict[str, Tensor] = {}
    kept: list[int] = []
    digests: list[str] = []
    skipped: dict[str, str] = {}
    for one in batches:
        if one.kept:
            here = slice(len(kept), len(kept) + len(one.kept))
            for site, value in zip(sites, site_values(tower, one.x, kinds).values(), strict=True):
                _check_shape(site, value)
                value = value.to(getattr(torch, site.identity.dtype))
                if site.name not in acts:  # in its place at once: a shard is never in memory twice
                    acts[site.name] = torch.empty(
                        (len(part.ids), *value.shape[1:]), dtype=value.dtype
                    )
                acts[site.name][here] = value.cpu()
        kept += one.kept
        digests += one.sha256
        skipped.update(one.skipped)
    rows = {site.name: acts.get(site.name, torch.empty(0))[: len(kept)] for site in sites}
    return Values(part, sites, rows, kept, digests, skipped)


def embed_shard(
    tower: Any,
    part: ShardPart,
    sites: Sequence[StoreTarget],
    *,
    batch: int = BATCH,
    strict: bool = False,
) -> dict[str, dict[str, Any]]:
    """Read the images of `part`, and make its shard at each of `sites`; returns {site: its note}.

    Errors: UserInputError naming a file that cannot be read, if `strict`, or a site whose values are
    not rows; NoSpaceError, with nothing half-written.
    """
    batches = (read_batch(tower, part, at, batch, strict) for at in range(0, len(part.ids), batch))
    return shard_values(tower, part, sites, batches).write()


def _check_shape(site: StoreTarget, value: Tensor) -> None:
    d, tokens = site.facts["d"], site.facts["tokens"]
    wanted = (d,) if site.identity.token_kind != "patch" else (tokens, d)
    if value.shape[1:] != wanted:
        raise UserInputError(
            f"site '{site.name}' gives {tuple(value.shape[1:])} an image, not {wanted}",
            "name a hook point of the residual stream: visual.blocks.<i>.hook_resid_post",
        )
