"""The images of a run: decode every file once, keep the rows that decode, list the rest.

Writes `images.parquet` (the manifest's rows in order, with `sha256`, `width`, `height`) and
`skipped.parquet`. A test image that the model was trained on is refused here, before any work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.console import say, track
from dermaudit.errors import UserInputError
from dermaudit.failpoints import hit
from dermaudit.files import sha256_file, write_parquet

from .stages import Record

if TYPE_CHECKING:
    from dermaudit.data import Manifest

    from .directory import Run


IMAGES = Record("images", reads=(), writes=("images.parquet", "skipped.parquet"))


def ingest(
    run: Run, manifest: Manifest, tower: Any, *, strict: bool = False, force: bool = False
) -> dict[str, Any]:
    """Fill the `images` stage of a run. Errors: UserInputError when no image decodes, when
    `strict` and one does not, or when a labelled test image is a training image of the model.
    """
    note_origin(run, manifest, tower)
    inputs = {"manifest": manifest.sha256(), "model": tower.fingerprint}
    summary = run.perform(
        IMAGES, inputs, lambda: _decode(run, manifest, tower, strict), force=force
    )
    run.meta["data"].update(n_images=summary["n"], n_skipped=summary["n_skipped"])
    run.save()
    return summary


def note_origin(run: Run, manifest: Manifest, tower: Any) -> None:
    """Enter which table and which model the run is of."""
    run.meta["data"] = {
        "root": os.path.relpath(manifest.root, run.path),
        "manifest": Path(manifest.path).name,
        "manifest_sha256": manifest.sha256(),
    }
    run.meta["model"] = {
        "name": tower.name,
        "fingerprint": tower.fingerprint,
        "preprocess": tower.preprocess_config,
    }


def _decode(
    run: Run, manifest: Manifest, tower: Any, strict: bool
) -> tuple[list[Path], dict[str, Any]]:
    import pyarrow as pa

    from dermaudit.data import BadImage, read_image

    kept, hashes, sizes, skipped = [], [], [], []
    paths = manifest.paths()
    for row, path in enumerate(track(paths, "images", len(paths))):
        hit("images")
        try:
            pixels = read_image(path)
        except BadImage as error:
            if strict:
                raise UserInputError(
                    f"{path} (row {row}): {error}", "fix or remove it, or leave out --strict"
                ) from error
            skipped.append((manifest.column("image")[row], str(error)))
            continue
        kept.append(row)
        hashes.append(sha256_file(path))
        sizes.append(pixels.shape[:2])
    if not kept:
        raise UserInputError(
            f"none of the {len(paths)} images of {manifest.path} can be read",
            f"the first: {skipped[0][1]}" if skipped else None,
        )
    if has_labels(manifest):
        splits, names = manifest.splits, manifest.column("image")
        refuse_training_images(
            tower,
            [splits[row] for row in kept],
            [names[row] for row in kept],
            hashes,
            manifest.path,
        )
    table = manifest.take(kept).table
    for name, values in (
        ("sha256", hashes),
        ("width", [s[1] for s in sizes]),
        ("height", [s[0] for s in sizes]),
    ):
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, pa.array(values))
    write_parquet(run.files.images, table)
    outputs = [run.files.images, write_skipped(run, skipped)]
    if skipped:
        say(
            f"  {len(skipped)} images cannot be read and are left out (skipped.parquet), the first: "
            f"{skipped[0][0]}: {skipped[0][1]}"
        )
    return outputs, {"n": len(kept), "n_skipped": len(skipped)}


def write_skipped(run: Run, skipped: Sequence[tuple[Any, str]]) -> Path:
    """Write `skipped.parquet`: the images that the run leaves out, each with why."""
    import pyarrow as pa

    path = run.files.skipped
    table = {
        "image": pa.array([str(image) for image, _ in skipped], pa.string()),
        "reason": pa.array([reason for _, reason in skipped], pa.string()),
    }
    write_parquet(path, pa.table(table))
    return path


def refuse_training_images(
    tower: Any, splits: Sequence[str], names: Sequence[str], hashes: Sequence[str], where: Any
) -> None:
    """Scores come from the test split: UserInputError when one of its files (sha256 `hashes`) is an
    image that the model was trained on (design §4).
    """
    seen = tower.training_hashes()
    if not seen:
        return
    digits = len(next(iter(seen)))
    found = [
        name
        for split, name, digest in zip(splits, names, hashes, strict=True)
        if split == "test" and digest[:digits] in seen
    ]
    if found:
        raise UserInputError(
            f"{len(found)} test images of {where} were training images of {tower.name}, "
            f"the first: {found[0]}",
            "score the model on images it has not seen, with the split that it was trained with",
        )


def has_labels(manifest: Manifest) -> bool:
    """Whether anything could be scored on these images."""
    return bool(manifest.truth()) or any(manifest.labels)
