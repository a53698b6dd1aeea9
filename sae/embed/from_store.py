"""A run on stores that were made before: `embed --store` on a cluster, then `embed --from-store` here.

No image is opened, and no model run: the rows, image ids, groups and file hashes of the stores are
enough to fit and to measure. The shards are linked into the run (copied where the disk is another).
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import (
    sha256_file,
    sha256_json,
    whole_file,
    write_json,
    write_npy,
    write_parquet,
)
from dermaudit.run.images import (
    IMAGES,
    has_labels,
    note_origin,
    refuse_training_images,
    write_skipped,
)

from ..store.activation_store import ActivationStore, group_number, read_shard_header
from .options import EMBED

if TYPE_CHECKING:
    from dermaudit.data import Manifest
    from dermaudit.run.directory import Run

    from .embed import EmbedSettings


def take_stores(
    run: Run,
    tower: Any,
    manifest: Manifest,
    root: Path,
    settings: EmbedSettings,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Fill the stages `images` and `embed` of a run from the stores of `settings.sites` below `root`.

    The run has the rows of the manifest that every store holds, in the settings of the manifest; the others
    are listed in `skipped.parquet`. Returns {"sites", "n", "n_skipped", "not_finite"}. Errors:
    UserInputError for a site without a store, a store with images that the manifest has not, and test
    images that the model was trained on; ForeignArtifactError when the groups are not the manifest's.
    """
    stores = {site: _open(root, manifest, tower, site, settings) for site in settings.sites}
    made_of = {site: sha256_file(store.folder / "store.json") for site, store in stores.items()}
    known = _Known(manifest, stores)
    note_origin(run, manifest, tower)
    inputs = {"manifest": manifest.sha256(), "model": tower.fingerprint, "stores": made_of}
    seen = run.perform(IMAGES, inputs, lambda: known.write_tables(run, tower), force=force)
    run.meta["data"].update(n_images=seen["n"], n_skipped=seen["n_skipped"])
    run.save()

    def link() -> tuple[list[Path], dict[str, Any]]:
        own = [
            _link(store, run.files.embeddings(site), known.place, known.images_sha256)
            for site, store in stores.items()
        ]
        summary = {
            "sites": settings.sites,
            "n": seen["n"],
            "not_finite": settings.report_not_finite(own),
        }
        return [file for store in own for file in store.files()], summary

    inputs = {"model_fingerprint": tower.fingerprint, "sites": settings.sites, "stores": made_of}
    done = run.perform(EMBED, inputs, link, force=force)
    return {**done, "n_skipped": seen["n_skipped"]}


def _open(
    root: Path, manifest: Manifest, tower: Any, site: str, settings: EmbedSettings
) -> ActivationStore:
    identity, _ = settings.site(tower, site)
    folder = identity.folder(root)
    if not (folder / "store.json").is_file():
        there = sorted(path.parent.name for path in root.glob("*/store.json"))
        raise UserInputError(
            f"{root} has no store of {site} made with this model, tokens and dtype ({folder.name})",
            f"it has {', '.join(there) or 'none'}; name the --model, --site, --tokens and --dtype that a "
            f"store was made with, or make it: dermaudit embed {manifest.path} --model {tower.name} --store {root}",
        )
    return ActivationStore.open(folder, check=True, model_fingerprint=tower.fingerprint)


class _Known:
    """The images of a manifest that every store holds: `place` {image_id: row in the run's table}."""

    def __init__(self, manifest: Manifest, stores: dict[str, ActivationStore]) -> None:
        self.manifest, self.stores = manifest, stores
        group = dict(zip(manifest.ids, map(group_number, manifest.groups), strict=True))
        held = []
        for store in stores.values():
            ids = store.image_ids()
            strange = [image for image in ids if image not in group]
            if strange:
                raise UserInputError(
                    f"{store.folder} holds {len(strange)} images that {manifest.path} has not, the first: "
                    f"{strange[0]}",
                    "give the manifest that it was made from, or embed these images into a folder of their own",
                )
            moved = [
                i for i, g in zip(ids, store.image_groups().tolist(), strict=True) if group[i] != g
            ]
            if moved:
                raise ForeignArtifactError(
                    f"{store.folder} has {moved[0]} in another group than {manifest.path} ({len(moved)} of "
                    f"{len(ids)} images)",
                    "give the manifest that it was made from: splits go by group",
                )
            held.append(set(ids))
        everywhere = set.intersection(*held)
        if any(one != everywhere for one in held):
            raise UserInputError(
                f"the stores of {', '.join(stores)} do not hold the same images",
                f"finish them: dermaudit embed {manifest.path} --model MODEL --store STORE, with all of these sites",
            )
        self.rows = [row for row, image in enumerate(manifest.ids) if image in everywhere]
        if not self.rows:
            raise UserInputError(f"none of the images of {manifest.path} is in the stores")
        self.place = {manifest.ids[row]: i for i, row in enumerate(self.rows)}
        self.images_sha256 = sha256_json(list(self.place))

    def write_tables(self, run: Run, tower: Any) -> tuple[list[Path], dict[str, Any]]:
        """`images.parquet` and `skipped.parquet`, as `ingest` writes them but for width and height."""
        import pyarrow as pa

        kept = self.manifest.take(self.rows)
        hashes = self._hashes()
        if any(hashes) and has_labels(self.manifest):
            refuse_training_images(
                tower, kept.splits, kept.column("image"), hashes, self.manifest.path
            )
        table = kept.table
        if "sha256" in table.column_names:
            table = table.drop_columns(["sha256"])
        table = table.append_column("sha256", pa.array(hashes, pa.string()))
        write_parquet(run.files.images, table)
        why = {
            image: reason
            for store in self.stores.values()
            for image, reason in store.meta["skipped"].items()
        }
        lost = [row for row, image in enumerate(self.manifest.ids) if image not in self.place]
        ids, names = self.manifest.ids, self.manifest.column("image")
        skipped = [(names[row], why.get(ids[row], "it is not in the store")) for row in lost]
        outputs = [run.files.images, write_skipped(run, skipped)]
        if lost:
            say(
                f"  {len(lost)} images of the manifest are not in the stores (skipped.parquet), the first: "
                f"{names[lost[0]]}"
            )
        return outputs, {"n": len(self.rows), "n_skipped": len(lost)}

    def _hashes(self) -> list[str]:
        """sha256 of the image files, as the stores have them; "" where they do not."""
        found: dict[str, str] = {}
        store = next(iter(self.stores.values()))
        for path in store.shard_paths():
            header = read_shard_header(path)
            found.update(zip(header.images, header.sha256, strict=False))
        return [found.get(image, "") for image in self.place]


def _link(
    store: ActivationStore, folder: Path, place: dict[str, int], images_sha256: str
) -> ActivationStore:
    """The store in the run's folder: its shards, and its own `store.json` and `rows.npy`, which have the
    row numbers of the run's table.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in store.shard_paths():
        try:
            os.link(path, folder / path.name)
        except OSError:  # another disk, or one without links
            with whole_file(folder / path.name) as temporary:
                shutil.copyfile(path, temporary)
    write_npy(
        folder / "rows.npy", np.array([place[image] for image in store.image_ids()], dtype=np.int64)
    )
    meta = {
        **store.meta,
        "images_sha256": images_sha256,
        "rows_sha256": sha256_file(folder / "rows.npy"),
    }
    write_json(folder / "store.json", meta)
    return ActivationStore.open(folder)
