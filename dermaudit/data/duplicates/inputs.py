"""An image set to compare: its rows, embeddings and perceptual hashes, from images or from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import say, track
from dermaudit.errors import UserInputError

from ..images.decode import BadImage, Mode, no_readable_image, read_image
from ..images.parallel import map_images
from ..manifest.manifest import Manifest
from ..manifest.missing_path import missing
from ..manifest.tables import SHARDS_FILE
from ..shards.read import Shards
from .embeddings import Features
from .hashes import pack_hashes, perceptual_hash, turns
from .options import DedupOptions, GivenEmbeddings

#: the side to which an image is decoded at least: four times the side that the hash uses.
_SIDE = 128
_BATCH = 64


@dataclass(frozen=True)
class ReadableImages:
    """A data set at `path`: its manifest, and `read(row, size, mode)`, which decodes one image."""

    path: Path
    manifest: Manifest
    read: Callable[[int, int, Mode], np.ndarray]


@dataclass(frozen=True)
class ComparedImages:
    """The `rows` of `images` that are compared with their features; `skipped` [(row, image, reason)]."""

    images: ReadableImages
    rows: np.ndarray
    features: Features
    skipped: list[tuple[int, str, str]]

    def column(self, name: str) -> list[Any]:
        """Return the values of a manifest column for `rows`, all None if it is absent."""
        values = self.images.manifest.column(name)
        return [None] * len(self.rows) if values is None else [values[i] for i in self.rows]

    def without_embeddings(self) -> ComparedImages:
        """Return the set with its hashes only."""
        return replace(self, features=self.features._replace(embeddings=None))


def open_images(path: Path, *, skip_lost: bool = False) -> ReadableImages:
    """Open a data set or a folder of shards.

    With `skip_lost`, shards that are missing or cut off are reported and left out.
    """
    if (path / SHARDS_FILE).is_file():
        shards = Shards.load(path, strict=not skip_lost)
        for one in shards.lost:
            say(f"  {path / one['file']}: {one['reason']}; its {one['n']} images are left out")
        return ReadableImages(path, shards.manifest, shards.decode)
    manifest = Manifest.load(path)
    paths = manifest.paths()
    return ReadableImages(
        path, manifest, lambda row, size, mode: read_image(paths[row], size, mode)
    )


def read_images(
    images: ReadableImages,
    options: DedupOptions,
    tower: Any,
    given: GivenEmbeddings | None,
    *,
    turned: bool,
) -> ComparedImages:
    """Compute the features that are compared.

    Hashes of the images, with `turned` also of each mirrored and rotated; embeddings by `tower` (a
    HookedTower) or from a file. Images that cannot be read are skipped and listed. Errors: UserInputError
    when none can be read.
    """
    manifest = images.manifest
    array, rows = None, np.arange(manifest.n)
    if given is not None:
        array = load_embeddings(given.file)
        rows = _rows_of(manifest, array, given)
    if not options.use_hash and tower is None:
        return ComparedImages(images, rows, Features(array), [])
    side = max(_SIDE, tower.image_size if tower is not None else 0)
    pixels_of = map_images(
        lambda row: images.read(row, side, "squash"), rows.tolist(), options.threads
    )
    decoded = track(pixels_of, f"reading {manifest.path}", total=len(rows))
    collected = _Collected(tower, options.use_hash, turned)
    for position, pixels in enumerate(decoded):
        collected.add(position, pixels)
    hashes, embeddings = collected.finish()
    names = manifest.column("image")
    skipped = [(int(rows[at]), names[rows[at]], reason) for at, reason in collected.failed]
    kept = collected.kept
    if not kept:
        raise no_readable_image(len(rows), images.path, *(skipped[0][1:] if skipped else ()))
    if skipped:
        say(
            f"  {images.path}: {len(skipped)} images skipped, the first: {skipped[0][1]}: {skipped[0][2]}"
        )
    if array is not None:
        # An array that is used whole stays memory-mapped.
        embeddings = array if len(kept) == len(rows) else array[kept]
    features = Features(embeddings)
    if hashes is not None:
        features = Features(embeddings, hashes[:, 0].copy(), hashes[:, 1:] if turned else None)
    return ComparedImages(images, rows[kept], features, skipped)


class _Collected:
    """The features of decoded images, added one at a time."""

    def __init__(self, tower: Any, use_hash: bool, turned: bool) -> None:
        self.tower, self.use_hash, self.turned = tower, use_hash, turned
        self.kept: list[int] = []
        self.failed: list[tuple[int, str]] = []
        self._hashes: list[np.ndarray] = []
        self._embeddings: list[np.ndarray] = []
        self._batch: list[np.ndarray] = []

    def add(self, position: int, pixels: np.ndarray | BadImage) -> None:
        """Hash an image and put it into the next batch, or note why it cannot be read."""
        if isinstance(pixels, BadImage):
            self.failed.append((position, pixels.reason))
            return
        self.kept.append(position)
        if self.use_hash:
            orientations = [pixels, *(turns(pixels) if self.turned else ())]
            self._hashes.append(pack_hashes(np.stack([perceptual_hash(o) for o in orientations])))
        if self.tower is not None:
            self._batch.append(pixels)
            if len(self._batch) == _BATCH:
                self._embed()

    def finish(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Return (hashes (n, 1 or 8, 4), embeddings (n, d)); None where not asked for."""
        if self._batch:
            self._embed()
        return (
            np.stack(self._hashes) if self._hashes else None,
            np.concatenate(self._embeddings) if self._embeddings else None,
        )

    def _embed(self) -> None:
        import torch

        with torch.no_grad():
            x = self.tower.encode_image(self.tower.preprocess(self._batch))
        self._embeddings.append(x.cpu().numpy())
        self._batch = []


def load_embeddings(path: Path) -> np.ndarray:
    """Return (n, d) floats from .npy (memory-mapped) or .safetensors (`embeddings`, or its only tensor).

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
            raise UserInputError(f"{path} is not a file of embeddings", "use .npy or .safetensors")
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
    images_a: ReadableImages,
    images_b: ReadableImages | None,
    given_a: GivenEmbeddings,
    given_b: GivenEmbeddings | None,
) -> np.ndarray:
    """Return the manifest rows of the embeddings of A; no image is read.

    Errors: UserInputError for files of embeddings that do not fit their images or each other.
    """
    array = load_embeddings(given_a.file)
    rows = _rows_of(images_a.manifest, array, given_a)
    if images_b is not None and given_b is not None:
        other = load_embeddings(given_b.file)
        _rows_of(images_b.manifest, other, given_b)
        if array.shape[1] != other.shape[1]:
            raise UserInputError(
                f"{given_a.file} has embeddings of {array.shape[1]} numbers, {given_b.file} of "
                f"{other.shape[1]}",
                "both sides need the same model",
            )
    return rows


def _rows_of(manifest: Manifest, array: np.ndarray, given: GivenEmbeddings) -> np.ndarray:
    """Return the manifest row of each embedding."""
    if given.ids is None:
        if len(array) != manifest.n:
            raise UserInputError(
                f"{given.file} has {len(array)} rows, {manifest.path} has {manifest.n} images",
                "give the image_id of each row: --ids-a / --ids-b, a text file with one a line",
            )
        return np.arange(manifest.n)
    if not given.ids.is_file():
        raise missing(given.ids)
    names = given.ids.read_text(encoding="utf-8").splitlines()
    if len(names) != len(array):
        raise UserInputError(
            f"{given.ids} has {len(names)} lines, {given.file} has {len(array)} rows",
            "write one image_id a line, in the order of the embeddings",
        )
    row_of = {name: row for row, name in enumerate(manifest.ids)}
    for line, name in enumerate(names, start=1):
        if name not in row_of:
            raise UserInputError(
                f"{given.ids}, line {line}: '{name}' is no image_id of {manifest.path}",
                "write one image_id a line, in the order of the embeddings",
            )
    return np.array([row_of[name] for name in names], dtype=np.int64)
