"""The verb `embed`. Input is validated before anything heavy is imported."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.errors import UserInputError, unknown

if TYPE_CHECKING:
    from dermaudit.data import Manifest
    from dermaudit.run.directory import Run

_TOKENS = ("patch", "cls", "pooled")
_DTYPES = ("float32", "float16", "bfloat16")
_ENGINES = ("local", "ray")
_LOOK_EVERY = 0.5  # seconds


def embed(
    data: Annotated[Path, typer.Argument(help="a data set, a manifest, or a folder of images")],
    model: Annotated[str, typer.Option(help="model name (dermaudit models)")],
    run: Annotated[Path | None, typer.Option("--run", help="folder of the run")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="instead of a run: a folder for stores named by what they were made from"
        ),
    ] = None,
    from_store: Annotated[
        Path | None,
        typer.Option(
            "--from-store",
            help="with --run: take what embed --store made there; no image is opened",
        ),
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="hook points instead of the default two")
    ] = None,
    tokens: Annotated[
        str, typer.Option(help="patch or cls tokens of a block; pooled: the embedding alone")
    ] = "patch",
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16 (default: float16 for patch tokens)"),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL condition on the manifest's columns")
    ] = None,
    images_at: Annotated[
        str | None, typer.Option(help="with --store: where the images are, e.g. s3://bucket/folder")
    ] = None,
    strict: Annotated[bool, typer.Option(help="a bad image, or a NaN, is fatal")] = False,
    engine: Annotated[str, typer.Option(help="local or ray")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="processes on this machine, or in Ray")] = 1,
    shard: Annotated[
        int | None, typer.Option(min=1, help="images a shard at most (1024, fewer of many tokens)")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="images a forward pass")] = 64,
    readers: Annotated[int, typer.Option(min=1, help="threads that decode ahead")] = 1,
    seed: Annotated[int, typer.Option()] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads of a worker")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:0")] = "cpu",
    force: Annotated[bool, typer.Option(help="make every stage again")] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be done, and its size")] = False,
) -> dict[str, Any]:
    """Decode the images and store their activations at the run's sites.

    On several machines: the same under srun, or torchrun … -m dermaudit -- embed … (without the -- torchrun
    takes --run for its own), on a shared folder.
    """
    _check(run, store, from_store, tokens, dtype, images_at, engine)
    from dermaudit.data import Manifest

    manifest = Manifest.load(data)
    if where:
        manifest = manifest.where(where)
    if not manifest.n:
        raise UserInputError(f"{data}: no image is left after --where {where!r}")
    from ..store.worker_rank import WorkerRank

    share = WorkerRank.here()
    _check_share(share.rank, share.size, workers, engine, force)
    import torch

    from dermaudit.distributed import checked_device
    from dermaudit.towers import load_model

    from .embed import POOLED, Order, default_sites

    torch.set_num_threads(threads)
    device = checked_device(device, share.size)
    tower = load_model(model, device)
    sites = list(dict.fromkeys(site or ([POOLED] if tokens == "pooled" else default_sites(tower))))
    if tokens == "pooled" and sites != [POOLED]:
        raise UserInputError(
            f"--tokens pooled is the site {POOLED} alone", "leave out --site, or --tokens"
        )
    kind = "patch" if tokens == "pooled" else tokens
    order = Order(sites, kind, dtype, strict, share, shard, batch)
    if dry_run:
        where_to = (
            {"model": model, "run": str(run)} if run else {"model": model, "store": str(store)}
        )
        facts = {name: order.site(tower, name) for name in sites}
        return {"n_images": manifest.n, **where_to, **_sizes(facts, manifest.n)}
    if from_store is not None and run is not None:
        from dermaudit.run.directory import Run

        from .from_store import take_stores

        target = Run.create(run, seed=seed, threads=threads, force=force)
        if not force:
            target.check_model(tower.fingerprint)
        taken = take_stores(target, tower, manifest, from_store, order, force=force)
        return {"run": str(run), "n_images": taken["n"], **taken}
    strictly = strict or run is not None  # a run has a row for every image it read
    if engine == "ray":
        from .ray_engine import on_ray

        work = on_ray(
            model, workers=workers, threads=threads, device=device, batch=batch, strict=strictly
        )
    elif workers > 1:
        from .local_workers import by_processes

        options = {
            "--model": model,
            "--run": run,
            "--store": store,
            "--tokens": tokens,
            "--dtype": dtype,
            "--where": where,
            "--images-at": images_at,
            "--shard": shard,
            "--batch": batch,
            "--readers": readers,
            "--seed": seed,
            "--threads": threads,
            "--device": device,
        }
        argv = ["embed", str(data)]
        argv += [
            str(part)
            for name, value in options.items()
            if value is not None
            for part in (name, value)
        ]
        argv += [part for name in site or [] for part in ("--site", name)]
        work = by_processes(argv + ["--strict"] * strict, workers)
    else:
        work = order.engine(tower, strict=strictly, readers=readers)
    if run is not None:
        target = _open_run(run, manifest, tower, seed, threads, strict, force, share.rank)
        return _into_run(target, tower, order, work, force)
    assert store is not None
    return _into_stores(store, manifest, images_at, tower, order, work, force)


def _check(
    run: Path | None,
    store: Path | None,
    from_store: Path | None,
    tokens: str,
    dtype: str | None,
    images_at: str | None,
    engine: str,
) -> None:
    for name, value, known in (
        ("--tokens", tokens, _TOKENS),
        ("--dtype", dtype, _DTYPES),
        ("--engine", engine, _ENGINES),
    ):
        if value is not None and value not in known:
            raise unknown(name, value, known)
    if (run is None) == (store is None):
        raise UserInputError(
            "embed writes to a run or to a folder of stores",
            "give one of --run RUN, --store FOLDER",
        )
    if from_store is not None and run is None:
        raise UserInputError(
            "--from-store goes with --run, the run that takes what is stored", "leave out --store"
        )
    if from_store is not None and not from_store.is_dir():
        raise UserInputError(
            f"--from-store {from_store} is not a folder",
            "give the folder that embed --store wrote to",
        )
    if images_at is not None and store is None:
        raise UserInputError(
            "--images-at goes with --store", "a run looks at its images again: copy them first"
        )


def _check_share(rank: int, size: int, workers: int, engine: str, force: bool) -> None:
    if size > 1 and (workers > 1 or engine != "local"):
        raise UserInputError(
            f"this process is worker {rank} of {size} already",
            "leave out --workers and --engine under torchrun or srun",
        )
    if size > 1 and force:
        raise UserInputError(
            f"--force by one of {size} workers would undo what the others have made",
            "remove the stores first, or use --workers on one machine",
        )


def _sizes(sites: dict[str, tuple[Any, dict[str, Any]]], n: int) -> dict[str, Any]:
    """What the stores would be, and their bytes on disk."""
    from dermaudit.console import table

    from ..store.activation_store import ITEM_BYTES

    found = {
        name: {
            "tokens": facts["tokens"],
            "d": facts["d"],
            "dtype": identity.dtype,
            "bytes": n * facts["tokens"] * facts["d"] * ITEM_BYTES[identity.dtype],
        }
        for name, (identity, facts) in sites.items()
    }
    table(
        f"activations of {n} images",
        ("site", "tokens", "d", "dtype", "MB"),
        [
            (name, s["tokens"], s["d"], s["dtype"], f"{s['bytes'] / 1e6:.1f}")
            for name, s in found.items()
        ],
    )
    return {"sites": found, "bytes": sum(s["bytes"] for s in found.values())}


def _open_run(
    path: Path,
    manifest: Manifest,
    tower: Any,
    seed: int,
    threads: int,
    strict: bool,
    force: bool,
    rank: int,
) -> Run:
    """The run with its images read: by the first worker; the others wait until they are."""
    from dermaudit.run.directory import Run, open_run
    from dermaudit.run.images import ingest

    if rank == 0:
        target = Run.create(path, seed=seed, threads=threads, force=force)
        if not force:
            target.check_model(tower.fingerprint)
        ingest(target, manifest, tower, strict=strict, force=force)
        return target
    from dermaudit.console import say

    say("  waiting for worker 0 to read the images")
    inputs = {"manifest": manifest.sha256(), "model": tower.fingerprint}
    while True:
        if (path / "run.json").is_file():
            target = open_run(path)
            target.check_model(tower.fingerprint)
            if target.is_done("images", inputs):
                return target
        time.sleep(_LOOK_EVERY)


def _into_run(run: Run, tower: Any, order: Any, work: Any, force: bool) -> dict[str, Any]:
    from .embed import embed_run, images_of_run

    done = embed_run(run, tower, images_of_run(run), order, engine=work, force=force)
    skipped = run.meta["stages"]["images"]["summary"]["n_skipped"]
    return {"run": str(run.path), "n_images": done["n"], "n_skipped": skipped, **done}


def _into_stores(
    root: Path,
    manifest: Manifest,
    images_at: str | None,
    tower: Any,
    order: Any,
    work: Any,
    force: bool,
) -> dict[str, Any]:
    from dermaudit.console import say

    from ..store.shard_plan import ImageList
    from .embed import embed_into

    paths = (
        [str(path) for path in manifest.paths()]
        if images_at is None
        else [f"{images_at.rstrip('/')}/{image}" for image in manifest.column("image")]
    )
    images = ImageList(manifest.ids, manifest.groups, paths)
    stores = embed_into(root, tower, images, order, engine=work, force=force)
    if stores is None:
        return {"store": str(root), "sites": order.sites, "unfinished": True}
    skipped = stores[0].meta["skipped"]
    if len(skipped) == images.n:
        first = next(iter(skipped.items()))
        raise UserInputError(
            f"none of the {images.n} images of {manifest.path} can be read, the first: {': '.join(first)}"
        )
    if skipped:
        first = next(iter(skipped.items()))
        say(f"  {len(skipped)} of {images.n} images skipped, the first: {': '.join(first)}")
    return {
        "stores": {store.meta["site"]: str(store.folder) for store in stores},
        "sites": order.sites,
        "n_images": images.n - len(skipped),
        "n_skipped": len(skipped),
        "not_finite": order.report_not_finite(stores),
    }
