"""The stages `images` and `embed`: read the images of a run, and store their activations."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import UserInputError
from dermaudit.run.directory import Run, open_run
from dermaudit.run.images import IMAGES, ingest
from dermaudit.run.stages import stage

from .options import EMBED, EmbedOptions

if TYPE_CHECKING:
    from dermaudit.data import Manifest

    from .embed import EmbedSettings, Engine

_CHECK_INTERVAL = 0.5  # seconds between two looks at run.json


@stage("embed", EmbedOptions, IMAGES, EMBED, opens="path")
def embed(run: Path | None, options: EmbedOptions) -> dict[str, Any]:
    """Decode the images and store their activations at the run's sites.

    On several machines: the same under srun, or torchrun … -m dermaudit -- embed … (without the -- torchrun
    takes --run for its own), on a shared folder.
    """
    options.check(run)
    from dermaudit.data import Manifest

    manifest = Manifest.load(options.data)
    if options.where:
        manifest = manifest.where(options.where)
    if not manifest.n:
        raise UserInputError(f"{options.data}: no image is left after --where {options.where!r}")
    from ..store.worker_rank import WorkerRank

    share = WorkerRank.here()
    options.check_workers(share.rank, share.size)
    import torch

    from dermaudit.distributed import checked_device
    from dermaudit.towers import load_model

    torch.set_num_threads(options.threads)
    device = checked_device(options.device, share.size)
    tower = load_model(options.model, device)
    settings = _settings(options, tower, share)
    if options.dry_run:
        return _dry_run(run, options, manifest.n, tower, settings)
    if run is None:
        engine = _engine(run, options, tower, settings, device)
        return _into_stores(manifest, options, tower, settings, engine)
    if options.from_store is not None:
        from .from_store import take_stores

        target = _create(run, options, tower)
        taken = take_stores(
            target, tower, manifest, options.from_store, settings, force=options.force
        )
        return {"run": str(run), "n_images": taken["n"], **taken}
    engine = _engine(run, options, tower, settings, device)
    target = _run_with_images(run, manifest, tower, options, share.rank)
    return _into_run(target, options, tower, settings, engine)


def _settings(options: EmbedOptions, tower: Any, share: Any) -> EmbedSettings:
    """Return what is stored: sites, tokens and dtype. UserInputError where they contradict each other."""
    from .embed import POOLED, EmbedSettings, default_sites

    pooled = options.tokens == "pooled"
    sites = list(dict.fromkeys(options.site or ([POOLED] if pooled else default_sites(tower))))
    if pooled and sites != [POOLED]:
        raise UserInputError(
            f"--tokens pooled is the site {POOLED} alone", "leave out --site, or --tokens"
        )
    return EmbedSettings(
        sites,
        "patch" if pooled else options.tokens,
        options.dtype,
        options.strict,
        share,
        options.shard,
        options.batch,
    )


def _engine(
    run: Path | None, options: EmbedOptions, tower: Any, settings: EmbedSettings, device: str
) -> Engine:
    """Return what makes the shards: this process, several, or Ray."""
    strict = options.strict or run is not None  # a run has a row for every image it read
    if options.engine == "ray":
        from .ray_engine import on_ray

        return on_ray(
            options.model,
            workers=options.workers,
            threads=options.threads,
            device=device,
            batch=options.batch,
            strict=strict,
        )
    if options.workers > 1:
        from .local_workers import by_processes

        return by_processes(_worker_arguments(run, options, device), options.workers)
    return settings.engine(tower, strict=strict, readers=options.readers)


def _worker_arguments(run: Path | None, options: EmbedOptions, device: str) -> list[str]:
    """Return the arguments of the same command, as each worker process runs it."""
    flags = {
        "--model": options.model,
        "--run": run,
        "--store": options.store,
        "--tokens": options.tokens,
        "--dtype": options.dtype,
        "--where": options.where,
        "--images-at": options.images_at,
        "--shard": options.shard,
        "--batch": options.batch,
        "--readers": options.readers,
        "--seed": options.seed,
        "--threads": options.threads,
        "--device": device,
    }
    given = [(name, value) for name, value in flags.items() if value is not None]
    given += [("--site", site) for site in options.site]
    arguments = [str(part) for pair in given for part in pair]
    return ["embed", str(options.data), *arguments, *["--strict"] * options.strict]


def _dry_run(
    run: Path | None, options: EmbedOptions, n: int, tower: Any, settings: EmbedSettings
) -> dict[str, Any]:
    """Print and return what the stores would be, and their bytes on disk."""
    from dermaudit.console import table

    from ..store.activation_store import ITEM_BYTES

    sites = {}
    for name in settings.sites:
        identity, facts = settings.site(tower, name)
        size = n * facts["tokens"] * facts["d"] * ITEM_BYTES[identity.dtype]
        sites[name] = {
            "tokens": facts["tokens"],
            "d": facts["d"],
            "dtype": identity.dtype,
            "bytes": size,
        }
    table(
        f"activations of {n} images",
        ("site", "tokens", "d", "dtype", "MB"),
        [
            (name, s["tokens"], s["d"], s["dtype"], f"{s['bytes'] / 1e6:.1f}")
            for name, s in sites.items()
        ],
    )
    goes_to = {"run": str(run)} if run else {"store": str(options.store)}
    total = sum(site["bytes"] for site in sites.values())
    return {"n_images": n, "model": options.model, **goes_to, "sites": sites, "bytes": total}


def _create(path: Path, options: EmbedOptions, tower: Any) -> Run:
    """Open or start the run. ForeignArtifactError if it was made with another model."""
    run = Run.create(path, seed=options.seed or 0, threads=options.threads, force=options.force)
    if not options.force:
        run.check_model(tower.fingerprint)
    return run


def _run_with_images(
    path: Path, manifest: Manifest, tower: Any, options: EmbedOptions, rank: int
) -> Run:
    """Return the run after its images were read: by the first worker, while the others wait."""
    if rank == 0:
        run = _create(path, options, tower)
        ingest(run, manifest, tower, strict=options.strict, force=options.force)
        return run
    from dermaudit.console import say

    say("  waiting for worker 0 to read the images")
    inputs = {"manifest": manifest.sha256(), "model": tower.fingerprint}
    while True:
        if (path / "run.json").is_file():
            run = open_run(path)
            run.check_model(tower.fingerprint)
            if run.is_done("images", inputs):
                return run
        time.sleep(_CHECK_INTERVAL)


def _into_run(
    run: Run, options: EmbedOptions, tower: Any, settings: EmbedSettings, engine: Engine
) -> dict[str, Any]:
    from .embed import embed_run, images_of_run

    done = embed_run(run, tower, images_of_run(run), settings, engine=engine, force=options.force)
    skipped = run.meta["stages"]["images"]["summary"]["n_skipped"]
    return {"run": str(run.path), "n_images": done["n"], "n_skipped": skipped, **done}


def _into_stores(
    manifest: Manifest, options: EmbedOptions, tower: Any, settings: EmbedSettings, engine: Engine
) -> dict[str, Any]:
    from dermaudit.console import say

    from ..store.shard_plan import ImageList
    from .embed import embed_into

    assert options.store is not None  # EmbedOptions.check: a run or a folder of stores
    if options.images_at is None:
        paths = [str(path) for path in manifest.paths()]
    else:
        folder = options.images_at.rstrip("/")
        paths = [f"{folder}/{image}" for image in manifest.column("image")]
    images = ImageList(manifest.ids, manifest.groups, paths)
    stores = embed_into(options.store, tower, images, settings, engine=engine, force=options.force)
    if stores is None:
        return {"store": str(options.store), "sites": settings.sites, "unfinished": True}
    skipped = stores[0].meta["skipped"]
    if skipped:
        first = ": ".join(next(iter(skipped.items())))
        if len(skipped) == images.n:
            raise UserInputError(
                f"none of the {images.n} images of {manifest.path} can be read, the first: {first}"
            )
        say(f"  {len(skipped)} of {images.n} images skipped, the first: {first}")
    return {
        "stores": {store.meta["site"]: str(store.folder) for store in stores},
        "sites": settings.sites,
        "n_images": images.n - len(skipped),
        "n_skipped": len(skipped),
        "not_finite": settings.report_not_finite(stores),
    }
