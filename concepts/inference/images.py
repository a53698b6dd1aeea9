"""Where images come from: a folder, a data set, webdataset shards, a list on stdin, or embeddings of a run.

Every source is an iterator that is read once, in an order that is always the same, so that memory does not
grow with the number of images and a stopped prediction continues where it was.
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from dermaudit.data import BadImage, Manifest
from dermaudit.data.images.decode import DEFAULT_LIMITS, decode_image
from dermaudit.data.images.parallel import map_images
from dermaudit.errors import UserInputError
from dermaudit.sae.embed.shard import activations, read_with_hash
from dermaudit.sae.run_data import POOLED, RunData

if TYPE_CHECKING:
    from dermaudit.towers import HookedTower

STDIN = "-"
BATCH = 64
CACHED_ROWS = 4096  # stored embeddings that are read at a time
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
T = TypeVar("T")


@dataclass(frozen=True)
class ImageFile:
    """One image that is not read yet. `read` gives its pixels and the sha256 of the file, or BadImage."""

    name: str
    read: Callable[[], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class Embedded:
    """Images that were read: names, sha256 of the files, unit embeddings x (n, d); those that were not, each with the
    reason; and the name of the `last` image of both kinds, after which a stopped prediction continues.
    """

    names: list[str]
    sha256: list[str]
    x: np.ndarray
    skipped: list[tuple[str, str]] = field(default_factory=list)
    last: str = ""


def image_files(source: str) -> Iterator[ImageFile]:
    """Return the images of a source, in order. UserInputError where there is none."""
    if source == STDIN:
        return _listed(sys.stdin)
    path = Path(source)
    shards = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    if shards:
        return _of_shards(shards)
    manifest = Manifest.load(path)
    names, paths = manifest.column("image"), manifest.paths()
    return (_file(str(name), path) for name, path in zip(names, paths, strict=True))


def _file(name: str, path: Path) -> ImageFile:
    return ImageFile(name, partial(read_with_hash, str(path)))


def _listed(lines: Iterable[str]) -> Iterator[ImageFile]:
    for line in lines:
        name = line.rstrip("\r\n")
        if name:
            yield _file(name, Path(name))


def _of_shards(shards: list[Path]) -> Iterator[ImageFile]:
    """Read tar files from front to back: one image is in memory at a time."""
    for shard in shards:
        try:
            with tarfile.open(shard, "r|") as tar:
                for member in tar:
                    if not member.isfile() or not member.name.lower().endswith(_IMAGE_SUFFIXES):
                        continue
                    name = f"{shard.name}/{member.name}"
                    if member.size > DEFAULT_LIMITS.max_bytes:
                        yield ImageFile(name, partial(_too_large, member.size))
                        continue
                    opened = tar.extractfile(member)
                    assert opened is not None  # a regular file
                    yield ImageFile(name, partial(_decoded, name, opened.read()))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise UserInputError(
                f"{shard} cannot be read as a tar file ({error})", "copy the shard again"
            ) from error


def _decoded(name: str, data: bytes) -> tuple[np.ndarray, str]:
    return decode_image(data, name=name), hashlib.sha256(data).hexdigest()


def _too_large(size: int) -> tuple[np.ndarray, str]:
    raise BadImage(f"has {size} bytes, more than {DEFAULT_LIMITS.max_bytes}", kind="huge")


def embedded_images(
    files: Iterable[ImageFile], tower: HookedTower, readers: int = 1, batch: int = BATCH
) -> Iterator[Embedded]:
    """Yield the embeddings of images, `batch` at a time; one batch is read while another is computed."""
    for read in _one_ahead(_batches(files, readers, batch)):
        images = [image for _, image, _ in read.read]
        x = (
            activations(tower, images, [POOLED])[POOLED]
            if images
            else np.empty((0, tower.d_pooled), np.float32)
        )
        yield Embedded(
            [name for name, _, _ in read.read],
            [digest for _, _, digest in read.read],
            x,
            read.skipped,
            read.last,
        )


@dataclass
class _Batch:
    read: list[tuple[str, np.ndarray, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    last: str = ""


def _batches(files: Iterable[ImageFile], readers: int, size: int) -> Iterator[_Batch]:
    batch = _Batch()
    for result in map_images(_attempt, files, readers):
        assert not isinstance(result, BadImage)  # _attempt returns it with the name
        name, found = result
        batch.last = name
        if isinstance(found, BadImage):
            batch.skipped.append((name, found.reason))
        else:
            pixels, digest = found
            batch.read.append((name, pixels, digest))
        if len(batch.read) + len(batch.skipped) == size:
            yield batch
            batch = _Batch()
    if batch.read or batch.skipped:
        yield batch


def _attempt(file: ImageFile) -> tuple[str, tuple[np.ndarray, str] | BadImage]:
    try:
        return file.name, file.read()
    except BadImage as error:
        return file.name, error


def _one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items; the next one is made in another thread meanwhile."""
    nothing = object()
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        waiting = pool.submit(next, items, nothing)
        while (item := waiting.result()) is not nothing:
            waiting = pool.submit(next, items, nothing)
            yield item  # type: ignore[misc]


def stored_embeddings(data: RunData, start: int = 0) -> Iterator[Embedded]:
    """Yield the images of a run with their stored embeddings, CACHED_ROWS at a time, from row `start`."""
    rows = data.store(POOLED).rows()
    place = np.argsort(rows.image_rows)
    names = data.images["image"]
    hashes = data.images["sha256"] if "sha256" in data.images.column_names else None
    for first in range(start, rows.n, CACHED_ROWS):
        end = min(first + CACHED_ROWS, rows.n)
        here = [str(name) for name in names[first:end].to_pylist()]
        digests = hashes[first:end].to_pylist() if hashes is not None else [""] * len(here)
        yield Embedded(here, digests, rows.take(place[first:end]), last=here[-1])
        rows.release()
