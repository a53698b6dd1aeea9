"""The commands `data phantom` and `data render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError, unknown


def phantom(
    out: Annotated[Path, typer.Option(help="folder of the new data set")],
    n: Annotated[int, typer.Option(help="how many images", min=1)] = 1000,
    seed: Annotated[
        int, typer.Option(help="0–999 for pretraining, 1000 and up for audits", min=0)
    ] = 1000,
    size: Annotated[int, typer.Option(help="side in pixels", min=32, max=2048)] = 96,
    bias_table: Annotated[
        Path | None,
        typer.Option(help="TOML or JSON: P(concept | diagnosis), P(artifact | diagnosis)"),
    ] = None,
    masks: Annotated[bool, typer.Option(help="write a mask of every sign that is present")] = False,
    without: Annotated[
        list[str] | None, typer.Option(help="also write each image without this artifact")
    ] = None,
    force: Annotated[
        bool, typer.Option(help="continue in a folder that already holds a finished set")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="show what would be written")] = False,
) -> dict[str, Any]:
    """Render phantoms: dermoscopic images whose concepts, masks and artifacts are known exactly."""
    from .bias import load_bias_table

    table = load_bias_table(bias_table)
    if (out / "manifest.parquet").exists() and not force:
        raise UserInputError(
            f"{out} already holds a data set", "use --force to continue in it, or another --out"
        )
    if dry_run:
        return {"out": str(out), "n": n, "seed": seed, "size": size, "dry_run": True}
    from dermaudit.console import say

    from .make import make_data_set

    summary = make_data_set(out, n, seed, size, table, masks=masks, without=tuple(without or ()))
    say(f"{n} phantoms in {out}: " + ", ".join(f"{k} {v}" for k, v in summary["splits"].items()))
    return {"out": str(out), "n": n, "seed": seed, "size": size, **summary}


def render(
    images: Annotated[Path, typer.Argument(help="a folder of images, or a data set")],
    artifact: Annotated[
        str, typer.Option(help="ruler, ink, hair, gel_bubble, gel_border, dark_corner or patch")
    ],
    out: Annotated[
        Path, typer.Option(help="folder for the images with the artifact drawn on them")
    ],
    seed: Annotated[int, typer.Option(min=0)] = 0,
    size: Annotated[
        int | None, typer.Option(help="resize to this side first (squashed)", min=32)
    ] = None,
    force: Annotated[bool, typer.Option(help="overwrite images in --out")] = False,
) -> dict[str, Any]:
    """Draw an artifact onto any images; the exact alpha goes to alpha/ (255 = opaque)."""
    from .vocabulary import ARTIFACTS

    if artifact not in ARTIFACTS:
        raise unknown("artifact", artifact, ARTIFACTS)
    from dermaudit.data import Manifest

    manifest = Manifest.load(images)
    if (out / "images").exists() and not force:
        raise UserInputError(
            f"{out} already holds images", "use --force to overwrite them, or another --out"
        )
    from .make import render_onto

    done, skipped = render_onto(manifest, artifact, out, seed=seed, size=size)
    return {"out": str(out), "artifact": artifact, "n_images": done, "skipped": skipped}
