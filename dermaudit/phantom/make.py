"""Whole data sets: phantoms with their manifest and split, and artifacts drawn onto other images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.console import track
from dermaudit.data.splits import assign
from dermaudit.failpoints import hit
from dermaudit.files import whole_file, write_json, write_parquet

from .artifacts import draw_artifact
from .bias import BiasTable
from .dataset import rows, write_phantoms
from .seeds import PRETRAIN_SEEDS

if TYPE_CHECKING:
    from dermaudit.data import Manifest


def make_data_set(
    out: Path,
    n: int,
    seed: int,
    size: int,
    table: BiasTable,
    *,
    masks: bool = False,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Images, `manifest.parquet` and `data.json` of phantoms 0 … n−1. Finished images are kept."""
    import pyarrow as pa

    write_phantoms(out, n, seed, size, table, masks, without)
    entries = rows(n, seed, table)
    for entry, split in zip(entries, assign(entry["group"] for entry in entries), strict=True):
        entry["split"] = split
    splits = [entry["split"] for entry in entries]
    write_json(
        out / "data.json",
        {
            "format_version": 1,
            "layout": "phantom",
            "licence": "Apache-2.0",
            "n_images": n,
            "n_skipped": 0,
            "phantom_seed": seed,
            "purpose": "pretraining" if seed in PRETRAIN_SEEDS else "audit",
        },
    )
    columns = {name: [entry[name] for entry in entries] for name in entries[0]}
    for name, values in columns.items():
        if ":" in name:
            columns[name] = pa.array(values, pa.float64())
        elif name.startswith("subcaption_"):
            columns[name] = pa.array(values, pa.string())
    columns["licence"] = ["Apache-2.0"] * n
    write_parquet(out / "manifest.parquet", pa.table(columns))
    return {"splits": {name: splits.count(name) for name in ("train", "val", "test")}}


def render_onto(
    manifest: Manifest, artifact: str, out: Path, *, seed: int = 0, size: int | None = None
) -> tuple[int, list[dict[str, str]]]:
    """Draw `artifact` onto every image; `out/images/<name>.png` and `out/alpha/<name>.png`.

    Returns (images written, [{image, reason}] skipped). UserInputError when none can be read.
    """
    from PIL import Image

    from dermaudit.data.images.decode import BadImage, no_readable_image, read_image

    done, skipped, failed = 0, [], []
    for row, (path, name) in enumerate(
        zip(track(manifest.paths(), artifact, manifest.n), manifest.column("image"), strict=True)
    ):
        hit("render")
        try:
            pixels = read_image(path, size)
        except BadImage as error:
            skipped.append({"image": name, "reason": str(error)})
            failed.append((name, error.reason))
            continue
        drawn, alpha = draw_artifact(artifact, pixels, seed=seed * 1_000_003 + row)
        file = Path(name).with_suffix(".png")
        file = Path(*file.parts[1:]) if file.parts[0] == "images" and len(file.parts) > 1 else file
        for folder, image in (("images", drawn), ("alpha", np.round(alpha * 255).astype(np.uint8))):
            with whole_file(out / folder / file) as temporary:
                Image.fromarray(image).save(temporary, format="PNG", compress_level=3)
        done += 1
    if not done:
        raise no_readable_image(manifest.n, manifest.path, *failed[0])
    return done, skipped
