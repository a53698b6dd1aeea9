"""The command `data shard`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.console import say, table
from dermaudit.errors import UserInputError
from dermaudit.options import Options, option, required


@dataclass(frozen=True, kw_only=True)
class ShardOptions(Options):
    """What is packed, and how."""

    data: Path = required("a data set: folder or table", positional=True)
    out: Path = required("folder for the shards")
    per_shard: int = option(1000, "images in one tar file")
    size: int | None = option(None, "reduce the shorter side to this many pixels")
    quality: int = option(92, "JPEG quality of reduced images")
    where: str | None = option(None, "only these rows, as SQL: \"split = 'train'\"")
    threads: int = option(1, "images prepared at once")
    strict: bool = option(False, "stop at the first bad image")
    force: bool = option(False, "replace the shards in --out")

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, value, low, high in (
            ("--per-shard", self.per_shard, 1, 1_000_000),
            ("--size", self.size, 16, 10_000),
            ("--quality", self.quality, 1, 100),
            ("--threads", self.threads, 1, 256),
        ):
            if value is not None and not low <= value <= high:
                raise UserInputError(f"{flag} {value} is out of range", f"give {low} to {high}")


def shard(options: ShardOptions) -> dict[str, Any]:
    """Pack a data set into webdataset tar shards, for training on very many images."""
    out = options.out
    from ..manifest.manifest import Manifest
    from .write import Packing, check_out, clear, pack

    manifest = Manifest.load(options.data)
    if options.where:
        manifest = manifest.where(options.where)
    packing = Packing(options.per_shard, options.size, options.quality)
    identity = packing.identity(manifest)
    if options.force and out.is_dir():
        clear(out)
    check_out(out, identity)
    head = pack(manifest, out, packing, threads=options.threads, strict=options.strict)
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


def _print_skipped(out: Path) -> None:
    from ..manifest.tables import read_table
    from .write import SKIPPED_FILE

    skipped = read_table(out / SKIPPED_FILE)[0].to_pylist()
    table(
        f"{len(skipped)} images skipped (all of them in {out / SKIPPED_FILE})",
        ("image", "reason"),
        [(s["image"], s["reason"]) for s in skipped[:20]],
    )
