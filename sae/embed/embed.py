"""Embeddings of images at the sites of a tower: planned, made shard by shard, and put together.

The engines differ in who makes the shards: this process, its share among workers that torchrun or
SLURM started (no collectives: a worker only looks at files), or Ray (embed_ray.py).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dermaudit.console import Meter, say
from dermaudit.errors import NoSpaceError, UserInputError
from dermaudit.failpoints import hit
from dermaudit.files import sha256_file, sha256_json
from dermaudit.run.directory import Run, open_run

from ..store.activation_store import ITEM_BYTES, ActivationStore, Identity
from ..store.shard_plan import (
    ImageList,
    ShardPart,
    ShardPlan,
    StoreTarget,
    finish_store,
    plan_shards,
    read_shard_note,
    remove_store,
)
from ..store.worker_rank import WorkerRank
from .options import EMBED
from .shard import BATCH, POOLED, Batch, Values, batches_ahead, n_batches, shard_values
from .shard import activations as activations

SHARD = 1024  # images at most
SHARD_BYTES = 256 << 20  # a shard of patch tokens holds fewer images
_ONE_ROW_SITES = (POOLED, "visual.embedding")

#: one part, and the sites at which it is still to be made
Job = tuple[ShardPart, list[StoreTarget]]
Engine = Callable[[list[Job]], None]


@dataclass(frozen=True)
class EmbedSettings:
    """What is asked for. `tokens`: patch or cls, of the sites that have tokens; `dtype` None: float32
    for one row an image, float16 for patch tokens; `strict`: a number that is not finite is fatal;
    `shard`, `batch`: images a shard at most, and images a forward (None: SHARD, BATCH).
    """

    sites: list[str]
    tokens: str = "patch"
    dtype: str | None = None
    strict: bool = False
    share: WorkerRank = WorkerRank()
    shard: int | None = None
    batch: int | None = None

    def site(self, tower: Any, name: str) -> tuple[Identity, dict[str, Any]]:
        """The identity of the store of a site, and the facts that go into `store.json`."""
        identity, facts = site_of(tower, name, self.tokens, self.dtype)
        return identity, {**facts, "batch": self.batch or BATCH, "threads": torch.get_num_threads()}

    def engine(self, tower: Any, *, strict: bool = False, readers: int = 1) -> Engine:
        """The engine of this process alone."""
        return in_this_process(tower, batch=self.batch or BATCH, strict=strict, readers=readers)

    def report_not_finite(self, stores: list[ActivationStore]) -> dict[str, int]:
        """Say which images gave numbers that are not finite, {site: how many}.

        Errors: UserInputError if `strict`.
        """
        counts = {}
        for store in stores:
            images = [image for found in store.meta["not_finite"].values() for image in found]
            if not images:
                continue
            counts[store.meta["site"]] = len(images)
            said = (
                f"{len(images)} of {store.meta['n']} images have values at {store.meta['site']} "
                f"that are not finite, the first: {images[0]}"
            )
            hint = "float16 ends at 65504: try --dtype bfloat16 or float32; else look at the image"
            if self.strict:
                raise UserInputError(said, f"{hint}, or leave out --strict")
            say(f"  {said}\n  {hint}")
        return counts


def default_sites(tower: Any) -> list[str]:
    """The pooled embedding, and the patch tokens of the last block whose tokens are used: the last
    where they are averaged into the embedding, the last but one of a class-token tower (its last
    patch tokens go nowhere and get no gradient).
    """
    if tower.n_blocks == 0:
        return [POOLED]
    visual = tower.model.visual
    trunk = getattr(visual, "trunk", None)
    averaged = (
        tower.family == "timm convolutional"
        or hasattr(trunk, "cls_attn_blocks")
        or "avg" in (getattr(visual, "pool_type", ""), getattr(trunk, "global_pool", ""))
    )
    block = tower.n_blocks - 1 if averaged else max(0, tower.n_blocks - 2)
    return [POOLED, f"visual.blocks.{block}.hook_resid_post"]


def site_of(
    tower: Any, name: str, tokens: str = "patch", dtype: str | None = None
) -> tuple[Identity, dict[str, Any]]:
    """What the store of site `name` is: (identity, its d, tokens and grid).

    `tokens`: patch or cls, of the sites that have tokens. `dtype` None: float32 for one row an
    image, float16 for patch tokens. Errors: UserInputError when the tower has no such thing.
    """
    tower.check_site(name)
    if not name.startswith("visual."):
        raise UserInputError(
            f"site '{name}' is not in the image tower", "name one that starts with 'visual.'"
        )
    kind = "pooled" if name in _ONE_ROW_SITES else tokens
    if kind == "cls" and not tower.n_prefix_tokens:
        raise UserInputError(
            f"--tokens cls: the tower has no class token at {name}", "use --tokens patch"
        )
    grid = list(tower.site_grid(name)) if kind == "patch" else None
    identity = Identity(
        model_fingerprint=tower.fingerprint,
        preprocess_sha256=sha256_json(tower.preprocess_config),
        site=name,
        token_kind=kind,
        dtype=dtype or ("float16" if kind == "patch" else "float32"),
    )
    facts = {
        "d": tower.site_width(name),
        "tokens": grid[0] * grid[1] if grid else 1,
        "grid": grid,
    }
    return identity, facts


def bytes_per_image(site: StoreTarget) -> int:
    """Return the bytes of the stored activations of one image."""
    return site.facts["d"] * site.facts["tokens"] * ITEM_BYTES[site.identity.dtype]


def embed_sites(
    sites: list[StoreTarget],
    images: ImageList,
    settings: EmbedSettings,
    engine: Engine,
    *,
    force: bool = False,
) -> list[ActivationStore] | None:
    """Bring the store of every site to hold exactly `images`; `engine` makes the shards.

    Returns the stores, or None when shards of other workers are still missing. Errors: NoSpaceError
    before any work when they do not fit on the disk; ForeignArtifactError for another model's store.
    """
    if force:
        for site in sites:
            remove_store(site.folder)
    most = SHARD_BYTES // max(map(bytes_per_image, sites))
    least = min(settings.batch or BATCH, settings.shard or SHARD)
    per_shard = min(settings.shard or SHARD, max(least, 1 << max(most, 1).bit_length() - 1))
    plans = {site.name: plan_shards(site, images, per_shard) for site in sites}
    jobs = _jobs(sites, plans, settings.share)
    _check_space(jobs)
    if jobs:
        engine(jobs)
    stores = [finish_store(site, images, plans[site.name]) for site in sites]
    done = [store for store in stores if store is not None]
    if len(done) < len(stores):
        return None
    if settings.share.size == 1:  # nobody else writes: what is left over is of killed workers
        for leftover in (file for site in sites for file in site.folder.glob(".s*.tmp")):
            leftover.unlink(missing_ok=True)
    return done


def _jobs(sites: list[StoreTarget], plans: dict[str, ShardPlan], share: WorkerRank) -> list[Job]:
    """What this worker has to make; a part that several sites need goes through the tower once."""
    jobs: dict[tuple[int, str], Job] = {}
    for site in sites:
        for part in plans[site.name].parts:
            if part.index % share.size == share.rank and read_shard_note(site, part) is None:
                jobs.setdefault((part.index, part.digest()), (part, []))[1].append(site)
    return [jobs[name] for name in sorted(jobs)]


def _check_space(jobs: list[Job]) -> None:
    needed = sum(len(part.ids) * bytes_per_image(site) for part, sites in jobs for site in sites)
    if not needed:
        return
    folder = jobs[0][1][0].folder.absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    disk = shutil.disk_usage(there)
    if needed > disk.free and disk.total:  # a place such as /proc has no size, and says why itself
        raise NoSpaceError(
            f"the activations need {needed / 1e6:,.0f} MB, and {there} has {disk.free / 1e6:,.0f} MB free",
            "free some space, name fewer sites, or a smaller --dtype",
        )


def in_this_process(
    tower: Any, *, batch: int = BATCH, strict: bool = False, readers: int = 1
) -> Engine:
    """The engine of one process: while the tower works, images are read ahead by `readers` threads, and
    the shard before is written by another.
    """

    def write(values: Values) -> None:
        values.write()
        hit("embed")

    def engine(jobs: list[Job]) -> None:
        total = sum(len(part.ids) for part, _ in jobs)
        with Meter("embedding", total) as meter, ThreadPoolExecutor(1, "write") as writer:
            stream = batches_ahead(
                tower, (part for part, _ in jobs), batch, strict=strict, readers=readers
            )
            writing: Future[None] | None = None
            for part, sites in jobs:
                own = itertools.islice(stream, n_batches(part, batch))
                values = shard_values(tower, part, sites, _counted(own, meter))
                if writing is not None:
                    writing.result()  # one at a time: less memory, and a full disk is reported before the next
                writing = writer.submit(write, values)
            if writing is not None:
                writing.result()

    return engine


def _counted(batches: Iterable[Batch], meter: Meter) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        meter.advance(len(batch.kept) + len(batch.skipped))


class _OthersAreAtWork(Exception):
    """Shards of other workers are missing: whoever makes the last one ends the stage."""


def embed_into(
    root: Path,
    tower: Any,
    images: ImageList,
    settings: EmbedSettings,
    *,
    engine: Engine | None = None,
    force: bool = False,
) -> list[ActivationStore] | None:
    """The stores of `order` below `root`, each in the folder of its content; None when other workers
    are still at it. Images that cannot be read are left out and listed in the store (`skipped`).
    """
    wanted = [settings.site(tower, name) for name in settings.sites]
    sites = [StoreTarget(identity.folder(root), identity, facts) for identity, facts in wanted]
    return embed_sites(sites, images, settings, engine or settings.engine(tower), force=force)


def embed_run(
    run: Run,
    tower: Any,
    images: ImageList,
    settings: EmbedSettings,
    *,
    engine: Engine | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write the store of every site of a run; a stopped run continues with its next shard.

    Returns {"sites", "n", "not_finite"}, with "unfinished": True when other workers are still at
    it. A file that can no longer be read is an error here: the run has a row for it.
    """
    inputs: dict[str, Any] = {
        "model_fingerprint": tower.fingerprint,
        "images_sha256": sha256_file(run.files.images),
        "sites": settings.sites,
    }
    if settings.tokens != "patch" or settings.dtype is not None:
        inputs |= {"tokens": settings.tokens, "dtype": settings.dtype}

    def make() -> tuple[list[Path], dict[str, Any]]:
        sites = [
            StoreTarget(run.files.embeddings(name), *settings.site(tower, name))
            for name in settings.sites
        ]
        work = engine or settings.engine(tower, strict=True)
        stores = embed_sites(sites, images, settings, work, force=force)
        if stores is None:
            raise _OthersAreAtWork
        run.meta = open_run(run.path).meta  # other workers may have written to it meanwhile
        summary = {
            "sites": settings.sites,
            "n": images.n,
            "not_finite": settings.report_not_finite(stores),
        }
        return [file for store in stores for file in store.files()], summary

    try:
        # Several workers make the stage together; each writes shards of its own.
        alone = settings.share.size == 1
        return run.perform(EMBED, inputs, make, force=force, lock=alone)
    except _OthersAreAtWork:
        return {"sites": settings.sites, "n": images.n, "not_finite": {}, "unfinished": True}


def images_of_run(run: Run) -> ImageList:
    """The images of a run whose `images` stage is done."""
    import pyarrow.parquet as pq

    table = pq.read_table(run.files.images)
    root = run.data_root()

    def column(name: str) -> list[str]:
        name = name if name in table.column_names else "image"
        return [str(value) for value in table[name].to_pylist()]

    hashes = column("sha256") if "sha256" in table.column_names else None
    paths = [str(root / image) for image in column("image")]
    return ImageList(column("image_id"), column("group"), paths, hashes)
