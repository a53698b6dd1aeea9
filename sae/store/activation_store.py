"""The activation store of one site: `store.json` and shards of safetensors (docs/formats.md).

A shard holds `acts` (n, d), or (n, tokens, d) for patch tokens, `row` (n,) int64 the image's place in
the list the store was made from, `group` (n,) int64 (`group_number`), and in its header the image ids
and the sha256 of the image files. What a store was made from is its `Identity`; another model's
store is refused. `store.json` appears when everything is there (parts.py) and lists the checksums.
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
from dermaudit.files import read_json, sha256_file, sha256_json, write_json, write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from .rows import Rows

FORMAT_VERSION = 2  # 1 had no image ids and no identity; it is still read
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_SAFETENSORS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
AGAIN = "make it again: dermaudit embed, with --force if it refuses"


def group_number(group: str) -> int:
    """A stable 63-bit number of a group name, to keep beside the rows."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Identity:
    """What the numbers of a store depend on, besides the images.

    `token_kind`: pooled, cls or patch; `dtype`: float32, float16 or bfloat16.
    """

    model_fingerprint: str
    preprocess_sha256: str
    site: str
    token_kind: str
    dtype: str

    @property
    def key(self) -> str:
        """64 hex digits; two stores of one key hold rows that may stand side by side."""
        return sha256_json(asdict(self))

    def folder(self, root: Path) -> Path:
        """Where the store of this content lies below `root`: `<site>-<12 digits of the key>`."""
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
        return self.tensors["acts"].shape[0]


def read_shard_header(path: Path) -> ShardHeader:
    """Read the header alone, and hold it against the size of the file.

    Errors: StaleArtifactError that names the shard when it is missing, cut off or no shard.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError("cut off in its header")
            header = json.loads(handle.read(length))
        start = 8 + length
        said = json.loads(header.pop("__metadata__", {}).get("dermaudit", "{}"))
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
    return ShardHeader(places, said.get("images", []), said.get("sha256", []))


def map_tensor(path: Path, place: TensorPlace) -> np.ndarray:
    """A tensor of a shard, memory-mapped and read-only; bfloat16 comes as its uint16 bits."""
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
    """Write one shard, whole or not at all; the same content gives the same bytes."""
    import torch

    said = {"images": images or [], "sha256": sha256 or []}
    tensors = {
        "acts": acts.contiguous(),
        "row": torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
        "group": torch.from_numpy(np.array(groups, dtype=np.int64)),  # a copy: it may be `rows`
    }
    write_safetensors(path, tensors, {"dermaudit": json.dumps(said, ensure_ascii=False)})


class ActivationStore:
    """Activations of one site of one model over one set of images.

    `meta`: site, d, tokens (rows an image; 1 for pooled and cls), grid ([h, w] or null), n (images),
    shards {file name: sha256}, the fields of `Identity`, skipped {image_id: reason}, not_finite
    {shard: [image_id]} and facts of how it was made (batch, threads).
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.meta = meta

    # ---- by one writer, a shard at a time (many writers: parts.py)

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> ActivationStore:
        """Start a store, or go on with the intact shards of one that was made from the same things.

        Errors: ForeignArtifactError when the folder holds another model's store.
        """
        meta = {"format_version": FORMAT_VERSION, **meta}
        if (folder / "store.json").is_file():
            old = cls(folder, read_json(folder / "store.json", "store"))
            old.require_model(meta.get("model_fingerprint"))
            if all(old.meta.get(name) == value for name, value in meta.items()):
                intact = old.intact_shards()
                old.meta["shards"] = {name: old.meta["shards"][name] for name in intact}
                old._save()
                return old
            for shard in folder.glob("shard-*.safetensors"):
                shard.unlink()
        store = cls(folder, {**meta, "shards": {}, "n": 0})
        store._save()
        return store

    def write_shard(
        self,
        index: int,
        acts: np.ndarray,
        rows: np.ndarray,
        groups: np.ndarray,
        images: list[str] | None = None,
    ) -> None:
        """Write a shard and list it. acts (n, d) or (n, tokens, d); rows, groups (n,).

        Errors: NoSpaceError; what was listed before stays as it is.
        """
        import torch

        path = self.folder / shard_name(index)
        tensor = torch.from_numpy(np.ascontiguousarray(acts))
        if self.meta.get("dtype") == "bfloat16":
            tensor = tensor.bfloat16()
        write_shard_file(path, tensor, rows, groups, images)
        self.meta["shards"] = dict(
            sorted({**self.meta["shards"], path.name: sha256_file(path)}.items())
        )
        self._save()

    def _save(self) -> None:
        self.meta["n"] = sum(read_shard_header(p).n for p in self.shard_paths())
        write_json(self.folder / "store.json", self.meta)

    # ---- reading

    @classmethod
    def open(
        cls, folder: Path, *, check: bool = False, model_fingerprint: str | None = None
    ) -> ActivationStore:
        """Open a finished store; `check` compares the checksum of every shard.

        Errors: UserInputError when there is none; StaleArtifactError naming a shard that is
        missing, cut off or (with `check`) altered; ForeignArtifactError for a store of another
        format, or of another model than `model_fingerprint`.
        """
        folder = Path(folder)
        if not (folder / "store.json").is_file():
            raise UserInputError(
                f"there are no activations at {folder}",
                "make them, or finish what was begun: dermaudit embed --run RUN",
            )
        meta = read_json(folder / "store.json", "store")
        known = isinstance(meta, dict) and meta.get("format_version") in (1, FORMAT_VERSION)
        if not known or not isinstance(meta.get("shards"), dict):
            raise ForeignArtifactError(
                f"{folder / 'store.json'} is not a store of this version",
                "make it again with this version: dermaudit embed --force",
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
        """ForeignArtifactError unless the store was made with the model of this fingerprint."""
        mine = self.meta.get("model_fingerprint")
        if fingerprint and mine and mine != fingerprint:
            raise ForeignArtifactError(
                f"{self.folder} holds activations of another model ({mine[:12]}…), "
                f"not of {fingerprint[:12]}…",
                "name another folder, or make it again with --force",
            )

    def intact_shards(self) -> dict[str, ShardHeader]:
        """The listed shards whose bytes are what they were: {file name: header}."""
        found = {}
        for path in self.shard_paths():
            if path.is_file() and sha256_file(path) == self.meta["shards"][path.name]:
                found[path.name] = read_shard_header(path)
        return found

    def shard_paths(self) -> list[Path]:
        return [self.folder / name for name in sorted(self.meta["shards"])]

    def files(self) -> list[Path]:
        """Everything the store consists of."""
        rows = [self.folder / "rows.npy"] if self.meta.get("rows_sha256") else []
        return [self.folder / "store.json", *rows, *self.shard_paths()]

    def image_rows(self) -> np.ndarray:
        """The row number of each stored image, in the order of storage: (n,) int64.

        They stand in the shards; where images were added in the midst of the list, `rows.npy` has
        the numbers of today. Errors: StaleArtifactError when that file is not the store's.
        """
        if digest := self.meta.get("rows_sha256"):
            path = self.folder / "rows.npy"
            if not path.is_file() or sha256_file(path) != digest:
                raise StaleArtifactError(f"{path} is missing or altered", AGAIN)
            return np.load(path, allow_pickle=False)
        return self._column("row")

    def image_groups(self) -> np.ndarray:
        """`group_number` of each stored image, in the order of storage: (n,) int64."""
        return self._column("group")

    def image_ids(self) -> list[str]:
        """The image_id of each stored image, in the order of storage.

        Errors: StaleArtifactError for a store of format 1, which had none.
        """
        ids: list[str] = []
        for path in self.shard_paths():
            header = read_shard_header(path)
            if len(header.images) != header.n:
                raise StaleArtifactError(
                    f"{self.folder} has no image ids: an older dermaudit wrote it",
                    "make it again: dermaudit embed --force",
                )
            ids += header.images
        return ids

    def rows(self) -> Rows:
        """The rows of the store (tokens, or images of a pooled site), memory-mapped."""
        from .rows import Rows

        return Rows.of_store(self)

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(acts, rows) of all shards, in row order. acts (n, d) or (n, tokens, d), as stored
        (bfloat16 as float32). All in memory: `rows()` is for stores that are larger."""
        from .rows import as_float32

        parts = []
        for path in self.shard_paths():
            place = read_shard_header(path).tensors["acts"]
            part = map_tensor(path, place)
            parts.append(as_float32(part) if place.dtype == "bfloat16" else part)
        if not parts:
            shape = (
                (0, self.meta["d"])
                if self.meta["tokens"] == 1
                else (0, self.meta["tokens"], self.meta["d"])
            )
            return np.empty(shape, np.float32), np.empty(0, np.int64)
        acts, rows = np.concatenate(parts), self.image_rows()
        order = np.argsort(rows, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return acts, rows
        return acts[order], rows[order]

    def _column(self, name: str) -> np.ndarray:
        parts = [
            np.array(map_tensor(path, read_shard_header(path).tensors[name]))
            for path in self.shard_paths()
        ]
        return np.concatenate(parts) if parts else np.empty(0, np.int64)


def shard_name(index: int) -> str:
    return f"shard-{index:06d}.safetensors"


def shard_index(name: str) -> int:
    return int(name.removeprefix("shard-").removesuffix(".safetensors"))
