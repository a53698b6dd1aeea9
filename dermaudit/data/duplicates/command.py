"""The command `data dedup`: near-duplicates across two image sets, or within one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import DedupOptions


def dedup(
    a: Annotated[Path, typer.Argument(help="a data set, or a folder of shards")],
    b: Annotated[
        Path | None,
        typer.Argument(help="the set to find in A; without it, A is compared with itself"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the pairs: parquet, csv, json")
    ] = None,
    model: Annotated[str, typer.Option(help="the model that embeds")] = "dermoscopy-small",
    by: Annotated[str, typer.Option(help="both, hash, cosine")] = "both",
    threshold: Annotated[
        float | None, typer.Option(help="smallest cosine of a pair; calibrated on A if absent")
    ] = None,
    false_share: Annotated[
        float, typer.Option(help="share of unrelated images that may pass the threshold")
    ] = 0.01,
    bits: Annotated[int, typer.Option(help="largest number of bits (of 256) that differ")] = 24,
    turned: Annotated[
        bool, typer.Option(help="hash B mirrored and rotated too (8 hashes an image)")
    ] = True,
    embeddings_a: Annotated[
        Path | None, typer.Option(help="embeddings of A, .npy or .safetensors, instead of --model")
    ] = None,
    embeddings_b: Annotated[Path | None, typer.Option(help="embeddings of B")] = None,
    ids_a: Annotated[
        Path | None, typer.Option(help="image_id of each row of --embeddings-a, one a line")
    ] = None,
    ids_b: Annotated[Path | None, typer.Option(help="the same for B")] = None,
    html: Annotated[
        bool, typer.Option("--html", help="a page with the pairs side by side")
    ] = False,
    html_max: Annotated[int, typer.Option(help="pairs on the page")] = 200,
    threads: Annotated[int, typer.Option(help="images decoded at once, threads of the model")] = 1,
    device: Annotated[str, typer.Option(help="where the model computes")] = "cpu",
    skip_lost: Annotated[
        bool,
        typer.Option("--skip-lost", help="continue without shards that are missing or cut off"),
    ] = False,
    force: Annotated[bool, typer.Option(help="replace the pairs in --out")] = False,
) -> dict[str, Any]:
    """Find pictures that are in both sets (or twice in one): what training may have seen of a test."""
    options = DedupOptions(**locals())  # the fields are the flags
    options.check()
    from .output import print_summary, rows_of, summary, write
    from .search import find_duplicates

    found = find_duplicates(options)
    rows = rows_of(found)
    result = summary(options, found, rows)
    if out is not None:
        write(options, out, found, rows, result)
    print_summary(options, result, rows)
    return {**result, "out": None if out is None else str(out), "pairs": rows[:1000]}
