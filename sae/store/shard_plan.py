"""How several workers write one store: the same plan in each, one note for each shard, a last step.

A worker writes `shard-000003.safetensors` and then the note `shard-000003.json`: what the shard holds
and its checksum. Any worker that finds all notes writes `store.json` and deletes the notes. So no worker
waits for another, no file has two writers, and an interrupted store continues at the first shard
without a note. New images get new shards; the old ones stay.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import UserInputError
from dermaudit.files import read_json, sha256_file, sha256_json, write_json, write_npy

from .activation_store import (
    FORMAT_VERSION,
    ActivationStore,
    Identity,
    ShardHeader,
    group_number,
    map_tensor,
    shard_index,
    shard_name,
    write_shard_file,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageList:
    """The images of a store, in order.

    `paths` are files, or URIs (s3://…) that pyarrow can open. `sha256` are the hashes of the files, with
    which a changed file is embedded again, or None.
    """

    ids: list[str]
    groups: list[str]
    paths: list[str]
    sha256: list[str] | None = None

    def __post_init__(self) -> None:
        twice = [image for image, count in Counter(self.ids).items() if count > 1]
        if twice:
            raise UserInputError(
                f"image_id '{twice[0]}' is in more than one row of the manifest",
                f"give every image its own image_id ({len(twice)} are used twice or more)",
            )

    @property
    def n(self) -> int:
        """The number of images."""
        return len(self.ids)

    def digest(self) -> str:
        """Return the hash of the list."""
        return sha256_json([self.ids, self.groups, self.sha256])


@dataclass(frozen=True)
class ShardPart:
    """The images of one shard; `rows` are their numbers in the list."""

    index: int
    rows: tuple[int, ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    paths: tuple[str, ...]
    sha256: tuple[str, ...] | None

    @property
    def name(self) -> str:
        """The file name of the shard."""
        return shard_name(self.index)

    def digest(self) -> str:
        """Return the hash of the images."""
        return sha256_json([self.rows, self.ids, self.groups, self.sha256])


@dataclass(frozen=True)
class ShardPlan:
    """The shards to make (`parts`, some may be done already), and the shards that stay as they are."""

    parts: list[ShardPart]
    kept: dict[str, ShardHeader] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreTarget:
    """A store to be written: its folder, its identity, and further entries of `store.json`."""

    folder: Path
    identity: Identity
    facts: dict[str, Any]  # d, tokens, grid, batch, threads

    @property
    def name(self) -> str:
        """The hook point."""
        return self.identity.site


def plan_shards(site: StoreTarget, images: ImageList, per_shard: int) -> ShardPlan:
    """Assign images to shards from the list and `store.json` alone, the same way in every worker.

    A listed shard stays if its checksum is unchanged and all of its images are still in the list,
    unchanged and in the same group. The other images fill the free shard numbers in the order of the
    list, `per_shard` each. ForeignArtifactError if the folder has the store of another model.
    """
    place = {image: row for row, image in enumerate(images.ids)}
    kept: dict[str, ShardHeader] = {}
    if (store := _listed(site)) is not None:
        kept = {
            name: header
            for name, header in store.intact_shards().items()
            if len(header.images) == header.n and _holds(header, site.folder / name, images, place)
        }
    covered = {image for header in kept.values() for image in header.images}
    rest = [row for row, image in enumerate(images.ids) if image not in covered]
    used = {shard_index(name) for name in kept}
    free = (index for index in itertools.count() if index not in used)
    chunks = [rest[at : at + per_shard] for at in range(0, len(rest), per_shard)]
    return ShardPlan(
        [_part(index, rows, images) for index, rows in zip(free, chunks, strict=False)], kept
    )


def _listed(site: StoreTarget) -> ActivationStore | None:
    """Return the finished store of this identity, or None."""
    if not (site.folder / "store.json").is_file():
        return None
    meta = read_json(site.folder / "store.json", "store")
    if not isinstance(meta, dict) or not isinstance(meta.get("shards"), dict):
        return None
    store = ActivationStore(site.folder, meta)
    store.require_model(site.identity.model_fingerprint)
    same = meta.get("format_version") == FORMAT_VERSION and meta.get("key") == site.identity.key
    return store if same else None


def _holds(header: ShardHeader, path: Path, images: ImageList, place: dict[str, int]) -> bool:
    """Return whether every image of a shard is in the list, unchanged."""
    groups = map_tensor(path, header.tensors["group"])
    for image, digest, group in zip(header.images, header.sha256, groups, strict=True):
        row = place.get(image)
        if row is None or group_number(images.groups[row]) != group:
            return False
        if images.sha256 is not None and images.sha256[row] != digest:
            return False
    return True


def _part(index: int, rows: Sequence[int], images: ImageList) -> ShardPart:
    def of(values: list[str]) -> tuple[str, ...]:
        return tuple(values[row] for row in rows)

    known = of(images.sha256) if images.sha256 is not None else None
    return ShardPart(index, tuple(rows), of(images.ids), of(images.groups), of(images.paths), known)


def write_shard(
    site: StoreTarget,
    part: ShardPart,
    kept: Sequence[int],
    acts: Tensor,
    sha256: Sequence[str],
    skipped: dict[str, str],
) -> dict[str, Any]:
    """Write a shard, then its note; return the note.

    `kept` are the images of the part that could be decoded; acts (len(kept), …) and sha256 (of the
    files) belong to them. `skipped` {image_id: reason} are the others. NoSpaceError leaves no partial
    file.
    """
    ids = [part.ids[i] for i in kept]
    # The largest magnitude of an image is finite exactly if all of its values are; this is faster.
    finite = acts.flatten(1).abs().amax(1).isfinite().tolist() if ids else []
    note: dict[str, Any] = {
        "key": site.identity.key,
        "part": part.digest(),
        "n": len(ids),
        "sha256": None,
        "skipped": skipped,
        "not_finite": [image for image, fine in zip(ids, finite, strict=True) if not fine],
    }
    path = site.folder / part.name
    if ids:
        groups = np.array([group_number(part.groups[i]) for i in kept])
        write_shard_file(
            path, acts, np.array([part.rows[i] for i in kept]), groups, ids, list(sha256)
        )
        note["sha256"] = sha256_file(path)
    write_json(_note_path(site, part), note)
    return note


def read_shard_note(
    site: StoreTarget, part: ShardPart, *, check: bool = True
) -> dict[str, Any] | None:
    """Return the note of a finished shard; None if it is not finished or (with `check`) was altered."""
    try:
        note = read_json(_note_path(site, part))
    except UserInputError:  # missing or unreadable: the shard is made again
        return None
    wanted = {"key": site.identity.key, "part": part.digest()}
    if not isinstance(note, dict) or {name: note.get(name) for name in wanted} != wanted:
        return None
    shard = site.folder / part.name
    if note["n"] and not (shard.is_file() and (not check or sha256_file(shard) == note["sha256"])):
        return None
    return note


def finish_store(site: StoreTarget, images: ImageList, plan: ShardPlan) -> ActivationStore | None:
    """Write `store.json` if every shard is done, and delete the notes; None if one is missing.

    Any worker may call it at any time: all that find the shards complete write the same bytes.
    """
    notes = [
        note
        for part in plan.parts
        if (note := read_shard_note(site, part, check=False)) is not None
    ]
    if len(notes) < len(plan.parts):
        return _finished_by_another(site, images, plan)
    shards = {name: sha256_file(site.folder / name) for name in plan.kept}
    skipped: dict[str, str] = {}
    not_finite: dict[str, list[str]] = {}
    if (old := _listed(site)) is not None:
        not_finite = {k: v for k, v in old.meta["not_finite"].items() if k in plan.kept}
    for part, note in zip(plan.parts, notes, strict=True):
        skipped.update(note["skipped"])
        if note["n"]:
            shards[part.name] = note["sha256"]
        if note["not_finite"]:
            not_finite[part.name] = note["not_finite"]
    meta = {
        "format_version": FORMAT_VERSION,
        "key": site.identity.key,
        **asdict(site.identity),
        **site.facts,
        "images_sha256": images.digest(),
        "shards": dict(sorted(shards.items())),
        "skipped": skipped,
        "not_finite": not_finite,
    }
    store = ActivationStore(site.folder, meta)
    _number_rows(store, images)
    write_json(site.folder / "store.json", meta)
    for note in site.folder.glob("shard-*.json"):
        note.unlink(missing_ok=True)
    for shard in site.folder.glob("shard-*.safetensors"):
        if shard.name not in shards:
            shard.unlink(missing_ok=True)
    return store


def _finished_by_another(
    site: StoreTarget, images: ImageList, plan: ShardPlan
) -> ActivationStore | None:
    store = _listed(site)
    if store is None or store.meta["images_sha256"] != images.digest():
        return None
    for part in plan.parts:
        path, digest = site.folder / part.name, store.meta["shards"].get(part.name)
        if digest is None and not set(part.ids) <= store.meta["skipped"].keys():
            return None
        if digest is not None and not (path.is_file() and sha256_file(path) == digest):
            return None
    return store


def _number_rows(store: ActivationStore, images: ImageList) -> None:
    """Count the images, and write `rows.npy` if the shards have the row numbers of an older list."""
    place = {image: row for row, image in enumerate(images.ids)}
    rows = np.array([place[image] for image in store.image_ids()], dtype=np.int64)
    store.meta["n"] = len(rows)
    path = store.folder / "rows.npy"
    if np.array_equal(rows, store.image_rows()):
        path.unlink(missing_ok=True)
        return
    write_npy(path, rows)
    store.meta["rows_sha256"] = sha256_file(path)


def remove_store(folder: Path) -> None:
    """Delete `store.json` and all notes. The shards are overwritten when they are made again."""
    for path in (folder / "store.json", *folder.glob("shard-*.json")):
        path.unlink(missing_ok=True)


def _note_path(site: StoreTarget, part: ShardPart) -> Path:
    return site.folder / part.name.replace(".safetensors", ".json")
