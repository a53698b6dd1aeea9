"""The commands `data phantom` and `data render`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import UserInputError, unknown
from dermaudit.options import Options, option, required


@dataclass(frozen=True, kw_only=True)
class PhantomOptions(Options):
    """What is rendered, and where."""

    out: Path = required("folder of the new data set")
    n: int = option(1000, "how many images", minimum=1)
    seed: int = option(1000, "0–999 for pretraining, 1000 and up for audits", minimum=0)
    size: int = option(96, "side in pixels", minimum=32, maximum=2048)
    bias_table: Path | None = option(
        None, "TOML or JSON: P(concept | diagnosis), P(artifact | diagnosis)"
    )
    masks: bool = option(False, "write a mask of every sign that is present")
    without: tuple[str, ...] = option((), "also write each image without this artifact")
    force: bool = option(False, "continue in a folder that already holds a finished set")
    dry_run: bool = option(False, "show what would be written")


def phantom(options: PhantomOptions) -> dict[str, Any]:
    """Render phantoms: dermoscopic images whose concepts, masks and artifacts are known exactly."""
    from .bias import load_bias_table

    out, n, seed, size = options.out, options.n, options.seed, options.size
    table = load_bias_table(options.bias_table)
    if (out / "manifest.parquet").exists() and not options.force:
        raise UserInputError(
            f"{out} already holds a data set", "use --force to continue in it, or another --out"
        )
    if options.dry_run:
        return {"out": str(out), "n": n, "seed": seed, "size": size, "dry_run": True}
    from dermaudit.console import say

    from .make import make_data_set

    summary = make_data_set(out, n, seed, size, table, masks=options.masks, without=options.without)
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
