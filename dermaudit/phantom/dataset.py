"""A folder of phantoms: lossless images, masks, clean twins, and the manifest's rows.

Each file is written whole (temporary name, then rename), so that a killed run leaves only finished
files and the same call continues where it stopped. The caller adds the column `split`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dermaudit.console import track
from dermaudit.errors import UserInputError, unknown
from dermaudit.failpoints import hit
from dermaudit.files import read_json, sha256_json, whole_file, write_json

from .bias import BiasTable, load_bias_table
from .captions import MAX_SUBCAPTIONS, caption, subcaptions
from .rendering import render
from .scene import Scene, sample
from .vocabulary import ARTIFACTS, CONCEPTS

SETTINGS = "phantoms.json"
# Raise it when the same scene gives other pixels: folders of two versions must not mix.
RENDERER_VERSION = 1


def image_name(index: int) -> str:
    """Return the path of an image relative to the manifest."""
    return f"images/{index:06d}.png"


def rows(n: int, seed: int, table: BiasTable | None = None) -> list[dict[str, Any]]:
    """Return the manifest's rows of phantoms 0 .. n-1 of `seed`, without `split` and without pixels."""
    table = load_bias_table(None) if table is None else table
    return [row_of(sample(seed, index, table)) for index in range(n)]


def row_of(scene: Scene) -> dict[str, Any]:
    """Return one row of the manifest (design §4); unused sub-captions are None."""
    sentences = subcaptions(scene)
    name = f"phantom-{scene.seed}-{scene.index}"
    row: dict[str, Any] = {
        "image": image_name(scene.index),
        "image_id": name,
        "label": scene.diagnosis,
        "group": name,
        "caption": caption(scene),
    }
    for k in range(MAX_SUBCAPTIONS):
        row[f"subcaption_{k + 1}"] = sentences[k] if k < len(sentences) else None
    row["skin_tone"] = scene.skin_type
    row |= {f"concept:{name}": scene.concepts[name] for name in CONCEPTS}
    row |= {f"artifact:{name}": scene.artifacts[name] for name in ARTIFACTS}
    row |= {"seed": scene.seed, "index": scene.index}
    return row


def write_phantoms(
    out: Path | str,
    n: int,
    seed: int,
    size: int = 96,
    table: BiasTable | None = None,
    masks: bool = False,
    without: Sequence[str] = (),
) -> Path:
    """Write phantoms 0 .. n-1 of `seed` under `out` and return `out`.

    `images/000000.png`; with `masks`, `masks/<name>/000000.png` (grey, 255 = alpha 1) for the
    lesion and every concept and artifact that is present; for each artifact in `without`,
    `without/<artifact>/000000.png` for the images that show it. Images that are there already are
    kept. Errors: UserInputError for a folder of other settings; NoSpaceError for a full disk.
    """
    out = Path(out)
    table = load_bias_table(None) if table is None else table
    for name in without:
        if name not in ARTIFACTS:
            raise unknown("artifact", name, ARTIFACTS)
    if n < 1:
        raise UserInputError(f"--n {n}: at least one phantom is needed")
    _claim(out, seed, size, table)
    for index in track(range(n), "phantoms"):
        _write_one(out, sample(seed, index, table), size, masks, without)
        hit("phantom.image")
    return out


def _claim(out: Path, seed: int, size: int, table: BiasTable) -> None:
    """Refuse a folder whose images were made with other settings; otherwise note ours."""
    settings = {
        "renderer_version": RENDERER_VERSION,
        "seed": seed,
        "size": size,
        "bias_table": table.as_dict(),
        "bias_table_sha256": sha256_json(table.as_dict()),
    }
    path = out / SETTINGS
    if path.exists():
        found = read_json(path, "phantom settings")
        differ = [
            key
            for key in ("renderer_version", "seed", "size", "bias_table_sha256")
            if found.get(key) != settings[key]
        ]
        if differ:
            raise UserInputError(
                f"{out} holds phantoms with another {', '.join(differ)}",
                "choose another --out, or remove that folder",
            )
    else:
        write_json(path, settings)


def _write_one(out: Path, scene: Scene, size: int, masks: bool, without: Sequence[str]) -> None:
    final = out / image_name(scene.index)
    twins = {name: out / "without" / name / final.name for name in without if scene.artifacts[name]}
    seen = scene.concepts | scene.artifacts
    layers = {}
    if masks:
        names = ("lesion", *(name for name in (*CONCEPTS, *ARTIFACTS) if seen[name]))
        layers = {name: out / "masks" / name / final.name for name in names}
    # The image comes last, so that it is never there without its masks and twins.
    for name, path in twins.items():
        if not path.exists():
            _save(path, render(scene, size, without=name).rgb)
    missing = [name for name, path in layers.items() if not path.exists()]
    if final.exists() and not missing:
        return
    phantom = render(scene, size, masks=bool(missing))
    for name in missing:
        _save(layers[name], np.rint(phantom.masks[name] * 255).astype(np.uint8))
    if not final.exists():
        _save(final, phantom.rgb)


def _save(path: Path, pixels: np.ndarray) -> None:
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", compress_level=3)
