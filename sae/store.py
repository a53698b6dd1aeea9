"""The activation store of one site: `store.json` and shards of safetensors (docs/formats.md).

Rows are images; `acts` is (n, d) for a pooled site and (n, tokens, d) for patch tokens, with the
image's row number and a hash of its group beside it. A shard is written whole and named in
`store.json` with its sha256; a store cut off or altered is refused.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, write_json, write_safetensors

FORMAT_VERSION = 1


def group_number(group: str) -> int:
    """A stable 63-bit number of a group name, to keep beside the rows."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") >> 1


class ActivationStore:
    """Activations of one site of one model over one set of images.

    `meta`: site, d, tokens (1 for pooled), grid ([h, w] or null), dtype, model_fingerprint,
    images_sha256, key (what the store was made from), shards {file name: sha256}.
    """

    def __init__(self, folder: Path, meta: dict[str, Any]) -> None:
        self.folder = folder
        self.meta = meta

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> ActivationStore:
        """Start a store, or go on with the shards of one that was made from the same things."""
        meta = {"format_version": FORMAT_VERSION, **meta}
        if (folder / "store.json").is_file():
            old = read_json(folder / "store.json", "store")
            if all(old.get(name) == value for name, value in meta.items()):
                return cls(folder, old)._without_damaged()
            for shard in folder.glob("shard-*.safetensors"):
                shard.unlink()
        store = cls(folder, {**meta, "shards": {}, "n": 0})
        write_json(folder / "store.json", store.meta)
        return store

    def _without_damaged(self) -> ActivationStore:
        """Forget shards that are missing or were altered, so that they are made again."""
        shards = {
            name: digest
            for name, digest in self.meta["shards"].items()
            if (self.folder / name).is_file() and sha256_file(self.folder / name) == digest
        }
        if shards != self.meta["shards"]:
            self.meta["shards"] = shards
            self.meta["n"] = sum(_rows_of(self.folder / name) for name in shards)
            write_json(self.folder / "store.json", self.meta)
        return self

    @classmethod
    def open(cls, folder: Path, *, check: bool = False) -> ActivationStore:
        """Open a finished store; `check` compares the checksum of every shard."""
        if not (folder / "store.json").is_file():
            raise UserInputError(
                f"there are no activations at {folder}", "make them: dermaudit embed --run RUN"
            )
        meta = read_json(folder / "store.json", "store")
        if meta.get("format_version") != FORMAT_VERSION or "shards" not in meta:
            raise ForeignArtifactError(f"{folder / 'store.json'} is not a store of this version")
        store = cls(folder, meta)
        for name, digest in meta["shards"].items():
            path = folder / name
            if not path.is_file() or (check and sha256_file(path) != digest):
                raise StaleArtifactError(
                    f"{path} is missing or altered", "make it again: dermaudit embed --run RUN"
                )
        return store

    def has_shard(self, index: int) -> bool:
        """True when shard `index` is finished (it is listed, and its file is there)."""
        name = _shard_name(index)
        return name in self.meta["shards"] and (self.folder / name).is_file()

    def write_shard(
        self, index: int, acts: np.ndarray, rows: np.ndarray, groups: np.ndarray
    ) -> None:
        import torch

        path = self.folder / _shard_name(index)
        write_safetensors(
            path,
            {
                "acts": torch.from_numpy(acts),
                "row": torch.from_numpy(rows.astype(np.int64)),
                "group": torch.from_numpy(groups.astype(np.int64)),
            },
        )
        self.meta["shards"][path.name] = sha256_file(path)
        self.meta["shards"] = dict(sorted(self.meta["shards"].items()))
        self.meta["n"] = self.meta["n"] + len(rows)
        write_json(self.folder / "store.json", self.meta)

    def files(self) -> list[Path]:
        return [self.folder / "store.json", *(self.folder / name for name in self.meta["shards"])]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """(acts, rows) of all shards, in row order. acts (n, d) or (n, tokens, d), as stored."""
        from safetensors.numpy import load_file

        parts = [load_file(self.folder / name) for name in self.meta["shards"]]
        acts = np.concatenate([part["acts"] for part in parts])
        rows = np.concatenate([part["row"] for part in parts])
        order = np.argsort(rows, kind="stable")
        if np.array_equal(order, np.arange(len(order))):
            return acts, rows
        return acts[order], rows[order]


def _rows_of(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, framework="np") as handle:
        return handle.get_slice("row").get_shape()[0]


def _shard_name(index: int) -> str:
    return f"shard-{index:06d}.safetensors"
