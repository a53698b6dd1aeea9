"""One side of a comparison: its rows, embeddings and perceptual hashes, from images or from files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import say, track
from dermaudit.errors import UserInputError

from ..images.decode import BadImage, Mode, read_image
from ..manifest.manifest import Manifest
from ..manifest.missing_path import missing
from ..manifest.tables import SHARDS_FILE
from ..shards.read import Shards
from .embeddings import Features
from .hashes import pack_hashes, perceptual_hash, turns

Read = Callable[[int, int, Mode], np.ndarray]
#: the side to which an image is decoded at least: four times what the hash looks at.
_SIDE = 128
_BATCH = 64


@dataclass(frozen=True)
class Side:
    """`rows` of `manifest` that take part, and what the witnesses know of each, in their order.
    `read(row, size, mode)` decodes one; `skipped` [(row, image, reason)]."""

    path: Path
    manifest: Manifest
    read: Read
    rows: np.ndarray
    known: Features
    skipped: list[tuple[int, str, str]]

    def column(self, name: str) -> list[Any]:
        values = self.manifest.column(name)
        return [None] * len(self.rows) if values is None else [values[i] for i in self.rows]


def open_images(path: Path, *, skip_lost: bool = False) -> tuple[Manifest, Read]:
    """A data set or a folder of shards: its manifest, and how one image of it is decoded. With
    `skip_lost` shards that are missing or cut off are told and left out."""
    if (path / SHARDS_FILE).is_file():
        shards = Shards.load(path, strict=not skip_lost)
        for one in shards.lost:
            say(f"  {path / one['file']}: {one['reason']}; its {one['n']} images are left out")
        return shards.manifest, lambda row, size, mode: shards.decode(row, size, mode)
    manifest = Manifest.load(path)
    paths = manifest.paths()
    return manifest, lambda row, size, mode: read_image(paths[row], size, mode)


def read_side(
    path: Path,
    images: tuple[Manifest, Read],
    *,
    tower: Any = None,
    hashes: bool = True,
    turned: bool = False,
    embeddings: Path | None = None,
    ids: Path | None = None,
    threads: int = 1,
) -> Side:
    """Read the `images` of `path` (`open_images`) with what is asked for: hashes of its images, and of
    each mirrored and `turned`; embeddings by `tower` (a HookedTower), or those of a file, a row for
    each of the manifest or for each of `ids`.

    Images that cannot be read are skipped and listed. Errors: UserInputError when none can be.
    """
    manifest, read = images
    given, rows = None, np.arange(manifest.n)
    if embeddings is not None:
        given = load_embeddings(embeddings)
        rows = _rows_of(manifest, given, embeddings, ids)
    if not hashes and tower is None:
        return Side(path, manifest, read, rows, Features(given), [])
    hashed, made, kept, skipped = _pass(manifest, read, rows, tower, (hashes, turned), threads)
    if not kept:
        first = f": {skipped[0][1]}: {skipped[0][2]}" if skipped else ""
        raise UserInputError(
            f"none of the {len(rows)} images of {path} could be read{first}",
            f"see what is wrong with: dermaudit data check {path}",
        )
    if skipped:
        say(f"  {path}: {len(skipped)} images skipped, the first: {skipped[0][1]}: {skipped[0][2]}")
    if given is not None:
        # A file that is used whole stays on disk.
        made = given if len(kept) == len(rows) else given[kept]
    known = Features(made)
    if hashed is not None:
        known = Features(made, hashed[:, 0].copy(), hashed[:, 1:] if turned else None)
    return Side(path, manifest, read, rows[kept], known, skipped)


def _pass(
    manifest: Manifest,
    read: Read,
    rows: np.ndarray,
    tower: Any,
    hashes: tuple[bool, bool],
    threads: int,
) -> tuple[np.ndarray | None, np.ndarray | None, list[int], list[tuple[int, str, str]]]:
    """Every image once: (hashes (n, 1 or 8, 4), embeddings, positions in `rows` that were read, skipped)."""
    side = max(_SIDE, tower.image_size if tower is not None else 0)
    names = manifest.column("image")
    kept: list[int] = []
    skipped: list[tuple[int, str, str]] = []
    found: list[np.ndarray] = []
    vectors: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    for position, pixels in enumerate(
        track(_decoded(read, rows, side, threads), f"reading {manifest.path}", total=len(rows))
    ):
        row = int(rows[position])
        if isinstance(pixels, BadImage):
            skipped.append((row, names[row], pixels.reason))
            continue
        kept.append(position)
        if hashes[0]:
            ways = [pixels, *(turns(pixels) if hashes[1] else ())]
            found.append(pack_hashes(np.stack([perceptual_hash(way) for way in ways])))
        if tower is not None:
            waiting.append(pixels)
            if len(waiting) == _BATCH:
                vectors.append(_embed(tower, waiting))
                waiting = []
    if waiting:
        vectors.append(_embed(tower, waiting))
    return (
        np.stack(found) if found else None,
        np.concatenate(vectors) if vectors else None,
        kept,
        skipped,
    )


def _decoded(
    read: Read, rows: np.ndarray, side: int, threads: int
) -> Iterator[np.ndarray | BadImage]:
    def one(row: int) -> np.ndarray | BadImage:
        try:
            return read(int(row), side, "squash")
        except BadImage as error:
            return error

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for start in range(0, len(rows), _BATCH):
            yield from pool.map(one, rows[start : start + _BATCH])


def _embed(tower: Any, images: list[np.ndarray]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return tower.encode_image(tower.preprocess(images)).cpu().numpy()


def load_embeddings(path: Path) -> np.ndarray:
    """(n, d) floats from .npy (memory-mapped) or .safetensors (`embeddings`, or its only tensor).

    Errors: UserInputError naming the file and what is wrong with it.
    """
    if not path.is_file():
        raise missing(path)
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".safetensors":
            array = _one_tensor(path)
        else:
            raise UserInputError(f"{path} is no file of embeddings", "use .npy or .safetensors")
    except UserInputError:
        raise
    except Exception as error:  # numpy and safetensors raise classes of their own
        raise UserInputError(f"{path} cannot be read as {path.suffix[1:]} ({error})") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise UserInputError(
            f"{path} holds {array.dtype} of shape {array.shape}", "embeddings are (n, d) floats"
        )
    return array


def _one_tensor(path: Path) -> np.ndarray:
    from safetensors.numpy import load_file

    tensors = load_file(path)
    if "embeddings" in tensors:
        return tensors["embeddings"]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    raise UserInputError(
        f"{path} holds {', '.join(sorted(tensors)[:6])} and no 'embeddings'", "name the tensor so"
    )


def embedded_rows(
    manifest_a: Manifest,
    manifest_b: Manifest | None,
    a: Path,
    b: Path | None,
    ids_a: Path | None = None,
    ids_b: Path | None = None,
) -> np.ndarray:
    """The manifest rows of the embeddings of A. Errors: UserInputError for files of embeddings that
    do not fit their images or each other, before an image is read."""
    given = load_embeddings(a)
    rows = _rows_of(manifest_a, given, a, ids_a)
    if manifest_b is not None and b is not None:
        other = load_embeddings(b)
        _rows_of(manifest_b, other, b, ids_b)
        if given.shape[1] != other.shape[1]:
            raise UserInputError(
                f"{a} has embeddings of {given.shape[1]} numbers, {b} of {other.shape[1]}",
                "both sides need the same model",
            )
    return rows


def _rows_of(manifest: Manifest, array: np.ndarray, file: Path, ids: Path | None) -> np.ndarray:
    """The manifest row of each embedding."""
    if ids is None:
        if len(array) != manifest.n:
            raise UserInputError(
                f"{file} has {len(array)} rows, {manifest.path} has {manifest.n} images",
                "give the image_id of each row: --ids-a / --ids-b, a text file with one a line",
            )
        return np.arange(manifest.n)
    if not ids.is_file():
        raise missing(ids)
    names = ids.read_text(encoding="utf-8").splitlines()
    if len(names) != len(array):
        raise UserInputError(f"{ids} has {len(names)} lines, {file} has {len(array)} rows")
    row_of = {name: row for row, name in enumerate(manifest.ids)}
    for line, name in enumerate(names, start=1):
        if name not in row_of:
            raise UserInputError(
                f"{ids}, line {line}: '{name}' is no image_id of {manifest.path}",
                "one image_id a line, in the order of the embeddings",
            )
    return np.array([row_of[name] for name in names], dtype=np.int64)
