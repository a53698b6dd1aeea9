"""The command `data shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.errors import UserInputError


def shard(
    data: Annotated[Path, typer.Argument(help="a data set: folder or table")],
    out: Annotated[Path, typer.Option(help="folder for the shards")],
    per_shard: Annotated[int, typer.Option(help="images in one tar file")] = 1000,
    size: Annotated[
        int | None, typer.Option(help="reduce the shorter side to this many pixels")
    ] = None,
    quality: Annotated[int, typer.Option(help="JPEG quality of reduced images")] = 92,
    where: Annotated[
        str | None, typer.Option(help="only these rows, as SQL: \"split = 'train'\"")
    ] = None,
    threads: Annotated[int, typer.Option(help="images prepared at once")] = 1,
    strict: Annotated[bool, typer.Option(help="stop at the first bad image")] = False,
    force: Annotated[bool, typer.Option(help="replace the shards in --out")] = False,
) -> dict[str, Any]:
    """Pack a data set into webdataset tar shards, for training on very many images."""
    _check_flags(per_shard, size, quality, threads)
    from ..manifest.manifest import Manifest
    from .write import Packing, check_out, clear, pack

    manifest = Manifest.load(data)
    if where:
        manifest = manifest.where(where)
    packing = Packing(per_shard, size, quality)
    identity = packing.identity(manifest)
    if force and out.is_dir():
        clear(out)
    check_out(out, identity)
    head = pack(manifest, out, packing, threads=threads, strict=strict)
    n_bytes = sum(one["bytes"] for one in head["shards"])
    say(f"{out}: {head['n']} images in {len(head['shards'])} shards, {n_bytes / 1e6:.1f} MB")
    if head["n_skipped"]:
        _print_skipped(out)
    return {
        "out": str(out),
        "n": head["n"],
        "n_skipped": head["n_skipped"],
        "n_shards": len(head["shards"]),
        "bytes": n_bytes,
        "manifest_sha256": head["manifest_sha256"],
        "index_sha256": head["index_sha256"],
    }


def _check_flags(per_shard: int, size: int | None, quality: int, threads: int) -> None:
    for flag, value, low, high in (
        ("--per-shard", per_shard, 1, 1_000_000),
        ("--size", size, 16, 10_000),
        ("--quality", quality, 1, 100),
        ("--threads", threads, 1, 256),
    ):
        if value is not None and not low <= value <= high:
            raise UserInputError(f"{flag} {value} is out of range", f"give {low} to {high}")


def _print_skipped(out: Path) -> None:
    from ..manifest.tables import read_table
    from .write import SKIPPED_FILE

    skipped = read_table(out / SKIPPED_FILE)[0].to_pylist()
    table(
        f"{len(skipped)} images skipped (all of them in {out / SKIPPED_FILE})",
        ("image", "reason"),
        [(s["image"], s["reason"]) for s in skipped[:20]],
    )
