"""The activation store of one site: `store.json` and shards of safetensors (docs/formats.md).

A shard holds `acts` (n, d), or (n, tokens, d) for patch tokens, `row` (n,) int64 (the position of the
image in the list that the store was made from), `group` (n,) int64 (`group_number`), and in its header
the image ids and the sha256 of the image files. `Identity` is what a store was made from; the store of
another model is refused. `store.json` lists the checksums and is written last (shard_plan.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, sha256_json, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import EmbeddingRows

FORMAT_VERSION = 2  # 1 had no image ids and no identity; it is still read
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
AGAIN = "make it again: dermaudit embed, with --force if it refuses"


def group_number(group: str) -> int:
    """Return a stable 63-bit number for a group name, which is stored with the rows."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Identity:
    """What the values of a store depend on, besides the images.

    `token_kind` is pooled, cls or patch; `dtype` is float32, float16 or bfloat16.
    """

    model_fingerprint: str
    preprocess_sha256: str
    site: str
    token_kind: str
    dtype: str

    @property
    def key(self) -> str:
        """64 hex digits; rows of two stores with the same key may be combined."""
        return sha256_json(asdict(self))

    def folder(self, root: Path) -> Path:
        """Return the folder of this store below `root`: `<site>-<12 digits of the key>`."""
        return root / f"{self.site}-{self.key[:12]}"


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class ShardHeader:
    """The header of a shard: its tensors, and `images` / `sha256` (empty in format 1)."""

    tensors: dict[str, TensorPlace]
    images: list[str]
    sha256: list[str]

    @property
    def n(self) -> int:
        """The number of images."""
        return self.tensors["acts"].shape[0]


def read_shard_header(path: Path) -> ShardHeader:
    """Read the header alone, and check it against the size of the file.

    StaleArtifactError names a shard that is missing, cut off or not a shard.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("cut off in its header")
            header = json.loads(handle.read(length))
        start = 8 + length
        details = json.loads(header.pop("__metadata__", {}).get("dermaudit", "{}"))
        places, end = {}, start
        for name, entry in header.items():
            first, last = entry["data_offsets"]
            places[name] = TensorPlace(
                _SAFETENSORS[entry["dtype"]], tuple(entry["shape"]), start + first
            )
            end = max(end, start + last)
        if end != size:
            raise ValueError(f"{size} bytes instead of {end}")
        if not {"acts", "row", "group"} <= places.keys():
            raise ValueError("no acts, row and group in it")
    except OSError as error:
        raise StaleArtifactError(
            f"{path} is missing or altered ({error.strerror})", AGAIN
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StaleArtifactError(f"{path} is missing or altered ({error})", AGAIN) from error
    return ShardHeader(places, details.get("images", []), details.get("sha256", []))


def map_tensor(path: Path, place: TensorPlace) -> np.ndarray:
    """Return a tensor of a shard, memory-mapped and read-only; bfloat16 as its uint16 bits."""
    dtype = np.dtype("uint16" if place.dtype == "bfloat16" else place.dtype).newbyteorder("<")
    if not math.prod(place.shape):
        return np.empty(place.shape, dtype)
    return np.memmap(path, dtype, "r", place.offset, place.shape)


def write_shard_file(
    path: Path,
    acts: Tensor,
    rows: np.ndarray,
    groups: np.ndarray,
    images: list[str] | None = None,
    sha256: list[str] | None = None,
) -> None:
    """Write one shard completely or not at all; the same content gives the same bytes."""
    import torch

    details = {"images": images or [], "sha256": sha256 or []}
    tensors = {
        "acts": acts.contiguous(),
        "row": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
        "group": torch.from_numpy(np.array(groups, dtype=np.int64)),  # a copy: it may be `rows`
    }
    write_safetensors(path, tensors, {"dermaudit": json.dumps(details, ensure_ascii=False)})


class ActivationStore:
    """Activations of one site of one model over one set of images.

    `meta` has site, d, tokens (rows for each image; 1 for pooled and cls), grid ([h, w] or null), n
    (images), shards {file name: sha256}, the fields of `Identity`, skipped {image_id: reason},
    not_finite {shard: [image_id]} and how the store was made (batch, threads).
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.meta = meta

    @classmethod
    def open(
        cls, folder: Path, *, check: bool = False, model_fingerprint: str | None = None
    ) -> ActivationStore:
        """Open a finished store; `check` compares the checksum of every shard.

        Errors: UserInputError if there is none; StaleArtifactError for a shard that is missing, cut
        off or (with `check`) altered; ForeignArtifactError for a store of another format, or of
        another model than `model_fingerprint`.
        """
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            raise UserInputError(
                f"there are no activations at {folder}",
                "make them, or finish them: dermaudit embed DATA --model MODEL --run RUN",
            )
        meta = read_json(folder / "store.json", "store")
        known = isinstance(meta, dict) and meta.get("format_version") in (1, FORMAT_VERSION)
        if not known or not isinstance(meta.get("shards"), dict):
            raise ForeignArtifactError(
                f"{folder / 'store.json'} is not a store of this version",
                "make it again with this version: dermaudit embed DATA --model MODEL --run RUN --force",
            )
        store = cls(folder, meta)
        if model_fingerprint is not None:
            store.require_model(model_fingerprint)
        for path in store.shard_paths():
            read_shard_header(path)
            if check and sha256_file(path) != meta["shards"][path.name]:
                raise StaleArtifactError(f"{path} is missing or altered (its checksum)", AGAIN)
        store.image_rows()
        return store

    def require_model(self, fingerprint: str | None) -> None:
        """Raise ForeignArtifactError unless the store was made with the model of this fingerprint."""
        stored = self.meta.get("model_fingerprint")
        if fingerprint and stored and stored != fingerprint:
            raise ForeignArtifactError(
                f"{self.folder} holds activations of another model ({stored[:12]}…), "
                f"not of {fingerprint[:12]}…",
                "name another folder, or make it again with --force",
            )

    def intact_shards(self) -> dict[str, ShardHeader]:
        """Return the listed shards whose checksum is unchanged: {file name: header}."""
        found = {}
        for path in self.shard_paths():
            if path.is_file() and sha256_file(path) == self.meta["shards"][path.name]:
                found[path.name] = read_shard_header(path)
        return found

    def shard_paths(self) -> list[Path]:
        """Return the files of the shards, in the order of storage."""
        return [self.folder / name for name in sorted(self.meta["shards"])]

    def files(self) -> list[Path]:
        """Return every file of the store."""
        rows = [self.folder / "rows.npy"] if self.meta.get("rows_sha256") else []
        return [self.folder / "store.json", *rows, *self.shard_paths()]

    def image_rows(self) -> np.ndarray:
        """Return the row number of each stored image, in the order of storage: (n,) int64.

        They are stored in the shards; after images were inserted into the list, `rows.npy` has the
        present numbers. StaleArtifactError if that file is not the one of the store.
        """
        if digest := self.meta.get("rows_sha256"):
            path = self.folder / "rows.npy"
            if not path.is_file() or sha256_file(path) != digest:
                raise StaleArtifactError(f"{path} is missing or altered", AGAIN)
            return np.load(path, allow_pickle=False)
        return self._column("row")

    def image_groups(self) -> np.ndarray:
        """Return `group_number` of each stored image, in the order of storage: (n,) int64."""
        return self._column("group")

    def image_ids(self) -> list[str]:
        """Return the image_id of each stored image, in the order of storage.

        StaleArtifactError for a store of format 1, which has none.
        """
        ids: list[str] = []
        for path in self.shard_paths():
            header = read_shard_header(path)
            if len(header.images) != header.n:
                raise StaleArtifactError(
                    f"{self.folder} has no image ids: an older dermaudit wrote it",
                    "make it again: dermaudit embed DATA --model MODEL --run RUN --force",
                )
            ids += header.images
        return ids

    def rows(self) -> EmbeddingRows:
        """Return the rows of the store (tokens, or images of a pooled site), memory-mapped."""
        from .rows import EmbeddingRows

        return EmbeddingRows.of_store(self)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (acts, rows) of all shards in memory, in row order; `rows()` is for larger stores.

        acts (n, d) or (n, tokens, d) as stored, bfloat16 as float32.
        """
        from .rows import as_float32

        arrays = []
        for path in self.shard_paths():
            place = read_shard_header(path).tensors["acts"]
            array = map_tensor(path, place)
            arrays.append(as_float32(array) if place.dtype == "bfloat16" else array)
        if not arrays:
            tokens = () if self.meta["tokens"] == 1 else (self.meta["tokens"],)
            return np.empty((0, *tokens, self.meta["d"]), np.float32), np.empty(0, np.int64)
        acts, rows = np.concatenate(arrays), self.image_rows()
        order = np.argsort(rows, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return acts, rows
        return acts[order], rows[order]

    def _column(self, name: str) -> np.ndarray:
        arrays = [
            np.array(map_tensor(path, read_shard_header(path).tensors[name]))
            for path in self.shard_paths()
        ]
        return np.concatenate(arrays) if arrays else np.empty(0, np.int64)


def shard_name(index: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{index:06d}.safetensors"


def shard_index(name: str) -> int:
    """Return the index of a shard from its file name."""
    return int(name.removeprefix("shard-").removesuffix(".safetensors"))
