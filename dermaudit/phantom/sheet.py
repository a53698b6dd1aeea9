"""Contact sheet of phantoms, next to photographs if a folder of them is given.

    python -m dermaudit.phantom.sheet /tmp/sheet.png --by artifact
    python -m dermaudit.phantom.sheet /tmp/sheet.png --beside $DERMAUDIT_DATA/dermoscopy/images

One row a diagnosis, artifact or concept; on a concept or artifact sheet the other artifacts are
left out. Sheets with photographs of others must not be committed.
"""

from __future__ import annotations

import argparse
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from dermaudit.files import whole_file

from .bias import load_bias_table
from .rendering import render
from .scene import sample
from .vocabulary import ARTIFACTS, CONCEPTS, DIAGNOSES

TILE = 160
GAP = 2


def tiles(by: str, columns: int, size: int, seed: int) -> list[list[np.ndarray]]:
    """Rows of phantoms: `by` is "diagnosis", "artifact" or "concept"."""
    none = {"artifact": {"default": dict.fromkeys(ARTIFACTS, 0.0)}}
    names = {"diagnosis": DIAGNOSES, "artifact": ARTIFACTS, "concept": CONCEPTS}[by]
    grid = []
    for name in names:
        table = load_bias_table()
        if by != "diagnosis":
            table = table.changed(none)
        if by == "artifact":
            table = table.changed({"artifact": {"default": {name: 1.0}}})
        row = []
        for index in count():
            scene = sample(seed, index, table)
            if name == scene.diagnosis or (scene.artifacts | scene.concepts).get(name):
                row.append(render(scene, size).rgb)
            if len(row) == columns:
                break
        grid.append(row)
    return grid


def photographs(folder: Path, n: int, size: int, seed: int) -> list[np.ndarray]:
    """N images of a folder, squeezed to a square of `size`."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    chosen = np.random.default_rng(seed).choice(len(paths), min(n, len(paths)), replace=False)
    found = []
    for k in chosen:
        with Image.open(paths[k]) as image:
            found.append(
                np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
            )
    return found


def main(arguments: list[str] | None = None) -> None:
    """Write a contact sheet; the arguments are those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m dermaudit.phantom.sheet", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--by", choices=("diagnosis", "artifact", "concept"), default="diagnosis")
    parser.add_argument("--beside", type=Path, help="folder of photographs, shown on the right")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--size", type=int, default=96, help="pixels that are rendered")
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args(arguments)
    grid = tiles(options.by, options.columns, options.size, options.seed)
    if options.beside:
        n = len(grid) * options.columns
        real = photographs(options.beside, n, options.size, options.seed)
        for k, row in enumerate(grid):
            row += real[k * options.columns : (k + 1) * options.columns]
    step = TILE + GAP
    sheet = Image.new("RGB", (max(map(len, grid)) * step, len(grid) * step))
    for y, row in enumerate(grid):
        for x, tile in enumerate(row):
            image = Image.fromarray(tile).resize((TILE, TILE), Image.Resampling.BICUBIC)
            sheet.paste(image, (x * step, y * step))
    with whole_file(options.out) as temporary:
        sheet.save(temporary, format="PNG")


if __name__ == "__main__":
    main()
