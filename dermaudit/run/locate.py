"""The command `data locate`: point a run that was moved, or whose data was moved, at its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dermaudit.errors import ForeignArtifactError, UserInputError


def locate(
    folder: Annotated[Path, typer.Argument(help="the folder that holds the manifest of the run")],
    run: Annotated[Path, typer.Option("--run", help="folder of the run")],
) -> dict[str, Any]:
    """Record where the images of a run are, after every one of them was compared with its sha256."""
    from dermaudit.console import say, track
    from dermaudit.files import sha256_file
    from dermaudit.run.directory import open_run

    if not folder.is_dir():
        raise UserInputError(f"{folder} is not a folder", "give the folder of the manifest")
    opened = open_run(run)
    opened.require("images")
    import pyarrow.parquet as pq

    table = pq.ParquetFile(opened.files.images).read(["image", "sha256"])
    pairs = list(zip(table["image"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    for image, digest in track(pairs, "comparing images"):
        path = folder / image
        if not path.is_file():
            raise UserInputError(
                f"{folder} has no image {image}", f"give the folder below which {image} lies"
            )
        if sha256_file(path) != digest:
            raise ForeignArtifactError(
                f"{path} is not the image that the run {run} was made from (its sha256 differs)",
                "give the folder of the same data set",
            )
    with opened.writing():
        opened.meta["data"]["root"] = os.path.relpath(folder, opened.path)
        opened.save()
    say(f"  the {len(pairs)} images of {run} are in {folder}")
    return {"run": str(run), "root": opened.meta["data"]["root"], "n_images": len(pairs)}
