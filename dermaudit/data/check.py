"""What is wrong with a data set, row by row: the table, then every image, then who is like whom.

What would spoil a measurement comes first: a group or a picture in two splits. Nothing is changed.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import track
from dermaudit.splits import assign

from .duplicates import N_BITS, near_pairs, perceptual_hash
from .images import DEFAULT_LIMITS, BadImage, Header, ImageLimits, read_header, read_image
from .layouts import folder, read_layout
from .tables import RawTable
from .validate import Finding, findings, path_problem, texts

TINY = 32  # a short side below this many pixels: nothing is left to see
# What each level means for a run, in the order in which findings are told.
LEVELS = {
    "leak": "the same lesion or picture on both sides of a split",
    "error": "the table is refused until this is mended",
    "skip": "the image is left out",
    "warning": "used as it is",
}


@dataclass(frozen=True)
class Seen:
    """One image that was read: the hash of its bytes and its perceptual hash, bool (256,)."""

    row: int
    sha256: str
    phash: np.ndarray


def check_data(
    path: Path, layout: str = "auto", limits: ImageLimits = DEFAULT_LIMITS
) -> dict[str, Any]:
    """Findings over a whole data set: {layout, n_rows, n_usable, counts, findings}.

    Errors: UserInputError only when there is no table to check.
    """
    raw = read_layout(path, layout)
    found = list(findings(raw))
    n_usable = 0
    if "image" in raw.table.column_names:
        seen: list[Seen] = []
        found += _images(raw, limits, seen)
        n_usable = len(seen)
        found += _duplicates(raw, seen)
        found += _blank_labels(raw)
        found += _unlisted(raw)
    found = [_as_leak(finding) for finding in found]
    order = list(LEVELS)
    found.sort(key=lambda f: (order.index(f.level), f.kind, -1 if f.row is None else f.row))
    return {
        "path": str(path),
        "layout": raw.layout,
        "n_rows": raw.table.num_rows,
        "n_usable": n_usable,
        "levels": {level: sum(f.level == level for f in found) for level in LEVELS},
        "counts": dict(sorted(Counter(f.kind for f in found).items())),
        "findings": [finding.as_json() for finding in found],
    }


def _as_leak(finding: Finding) -> Finding:
    # A group in two splits is refused as any error; here it is told with its like, first.
    if finding.kind != "group_across_splits":
        return finding
    return Finding(**{**finding.as_json(), "level": "leak"})


def _finding(raw: RawTable, kind: str, level: str, row: int, image: str, said: str) -> Finding:
    return Finding(
        kind, level, f"{raw.file}, {raw.at(row)}: {image}: {said}",
        row=row, line=raw.line(row), image=image,
    )


def _images(raw: RawTable, limits: ImageLimits, seen: list[Seen]) -> Iterator[Finding]:
    images = texts(raw.table, "image")
    for row, image in enumerate(track(images, "checking images")):
        if image is None or path_problem(image):
            continue  # the table's findings name it
        path = raw.root / image
        try:
            header = read_header(path, limits)
            pixels = read_image(path, limits=limits)
        except BadImage as error:
            yield _finding(raw, error.kind, "skip", row, image, error.reason)
            continue
        seen.append(Seen(row, _sha256(path), perceptual_hash(pixels)))
        for kind, said in _oddities(header):
            yield _finding(raw, kind, "warning", row, image, said)


def _oddities(header: Header) -> Iterator[tuple[str, str]]:
    if header.orientation != 1:
        yield "exif_rotated", f"stored turned (EXIF {header.orientation}); it is set upright"
    if min(header.width, header.height) < TINY:
        yield "tiny", f"only {header.width} x {header.height} pixels"
    if header.mode != "RGB":
        yield "not_rgb", f"mode {header.mode}; it is converted to RGB"
    if header.frames > 1:
        yield "many_frames", f"{header.frames} pictures in one file; the first is used"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _duplicates(raw: RawTable, seen: list[Seen]) -> Iterator[Finding]:
    """At most one finding a row: its earlier twin, one in another split if there is any."""
    images = texts(raw.table, "image")
    splits = _splits(raw)
    # For each row the earlier ones that are like it: (same split, bits, row), so that the least
    # of them is the one that matters most.
    like: dict[int, list[tuple[bool, int, int]]] = defaultdict(list)
    by_bytes: dict[str, list[int]] = defaultdict(list)
    for one in seen:
        for other in by_bytes[one.sha256]:
            like[one.row].append((splits[other] == splits[one.row], -1, other))
        by_bytes[one.sha256].append(one.row)
    # Pictures of equal bytes are compared once, by the first of them.
    firsts = [one for one in seen if by_bytes[one.sha256][0] == one.row]
    if firsts:
        for i, j, bits in near_pairs(np.stack([one.phash for one in firsts])):
            a, b = firsts[i].row, firsts[j].row
            like[b].append((splits[a] == splits[b], bits, a))
    for row, others in sorted(like.items()):
        same_split, bits, other = min(others)
        kind = "exact_duplicate" if bits < 0 else "near_duplicate"
        said = "the same file as" if bits < 0 else (
            f"nearly the same picture ({bits} of {N_BITS} bits differ) as"
        )
        said += f" {images[other]} ({raw.at(other)})"
        if same_split:
            yield _finding(raw, kind, "warning", row, images[row] or "", said)
        else:
            said += f", which is in {splits[other]}, this in {splits[row]}: give both one group"
            yield _finding(raw, f"{kind}_across_splits", "leak", row, images[row] or "", said)


def _splits(raw: RawTable) -> list[str | None]:
    """The split of each row: as written, or as it would be made by group."""
    splits = texts(raw.table, "split")
    if any(splits):
        return splits
    images = texts(raw.table, "image")
    keys = zip(texts(raw.table, "group"), texts(raw.table, "image_id"), images, strict=True)
    return list(assign(next((key for key in row if key), "") for row in keys))


def _blank_labels(raw: RawTable) -> Iterator[Finding]:
    if "label" not in raw.table.column_names:
        return
    images = texts(raw.table, "image")
    for row, label in enumerate(texts(raw.table, "label")):
        if label is None:
            yield _finding(raw, "blank_label", "warning", row, images[row] or "", "no label")


def _unlisted(raw: RawTable) -> Iterator[Finding]:
    """Images beside the table that no row names: perhaps forgotten."""
    if raw.layout != "native":
        return
    listed = set(texts(raw.table, "image"))
    for image in folder.images_below(raw.root):
        if str(image) not in listed:
            yield Finding(
                "unlisted", "warning", f"{raw.root / image}: no row of {raw.file.name} names it",
                image=str(image),
            )
