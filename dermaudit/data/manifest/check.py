"""Problems of a data set, row by row: the table, then every image, then near-duplicates.

Leaks come first: a group or a picture in two splits. Nothing is changed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dermaudit.console import track
from dermaudit.errors import UserInputError
from dermaudit.files import sha256_file

from ..duplicates.hashes import N_BITS, near_pairs, perceptual_hash
from ..images.decode import DEFAULT_LIMITS, BadImage, Header, ImageLimits, read_header, read_image
from ..layouts import read_layout
from ..splits import SPLITS, assign
from .convert import split_warning
from .image_paths import path_problem
from .labels import describe, merge_labels, spellings
from .tables import IMAGE_SUFFIXES, RawTable
from .validate import Finding, findings, skipped_findings, texts

TINY = 32  # a short side below this many pixels shows nothing
# What each level means for a run, in the order in which findings are reported.
LEVELS = {
    "leak": "the same lesion or picture on both sides of a split",
    "error": "the table is refused until this is fixed",
    "skip": "the image is left out",
    "warning": "used as it is",
}


class Unusable(UserInputError):
    """A data set that no run can use; `check` is the result of `check_data`, printed by `--json`."""

    code = "unusable_data"

    def __init__(self, message: str, check: dict[str, Any]) -> None:
        first = next((f for f in check["findings"] if f["level"] != "warning"), None)
        super().__init__(message, f"begin with: {first['message']}" if first else None)
        self.check = check

    def as_json(self) -> dict[str, Any]:
        """Return the error with the whole check."""
        return {**super().as_json(), "check": self.check}


@dataclass(frozen=True)
class HashedImage:
    """One image that was read: the hash of its bytes and its perceptual hash, bool (256,)."""

    row: int
    sha256: str
    phash: np.ndarray


def check_data(
    path: Path,
    layout: str = "auto",
    limits: ImageLimits = DEFAULT_LIMITS,
    merges: Sequence[str] = (),
) -> dict[str, Any]:
    """Check a whole data set: {layout, n_rows, n_usable, usable, counts, findings, remarks}.

    `usable`: the table is not refused, and at least one image can be read. Errors: UserInputError only when
    there is no table to check.
    """
    raw = merge_labels(read_layout(path, layout), merges)
    refused = list(findings(raw))
    found = [*refused, *skipped_findings(raw)]
    n_usable = 0
    if "image" in raw.table.column_names:
        seen: list[HashedImage] = []
        found += _images(raw, limits, seen)
        n_usable = len(seen)
        found += _duplicates(raw, seen)
        found += _blank_labels(raw)
        found += _label_spellings(raw)
        found += _unlisted(raw)
        sizes = Counter(split for split in _splits(raw) if split in SPLITS)
        warning = split_warning({name: sizes[name] for name in SPLITS})
        if warning and not refused:
            raw.remark(f"warning: {warning}")
    found = [_as_leak(finding) for finding in found]
    order = list(LEVELS)
    found.sort(key=lambda f: (order.index(f.level), f.kind, -1 if f.row is None else f.row))
    return {
        "path": str(path),
        "layout": raw.layout,
        "n_rows": raw.table.num_rows + len(raw.skipped),
        "n_usable": n_usable,
        "usable": n_usable > 0 and not refused,
        "levels": {level: sum(f.level == level for f in found) for level in LEVELS},
        "counts": dict(sorted(Counter(f.kind for f in found).items())),
        "findings": [finding.as_json() for finding in found],
        "remarks": raw.remarks,
    }


def _as_leak(finding: Finding) -> Finding:
    # A group in two splits is refused as any error; here it is reported with the other leaks, first.
    if finding.kind != "group_across_splits":
        return finding
    return Finding(**{**finding.as_json(), "level": "leak"})


def _finding(raw: RawTable, kind: str, level: str, row: int, image: str, problem: str) -> Finding:
    return Finding(
        kind, level, f"{raw.place(row, image)}: {problem}", row=row, line=raw.line(row), image=image
    )


def _images(raw: RawTable, limits: ImageLimits, seen: list[HashedImage]) -> Iterator[Finding]:
    images = texts(raw.table, "image")
    names: set[str] = set()
    for row, image in enumerate(track(images, "checking images")):
        if image is None or path_problem(image) or image in names:
            continue  # reported with the table
        names.add(image)
        path = raw.root / image
        try:
            header = read_header(path, limits)
            pixels = read_image(path, limits=limits)
        except BadImage as error:
            yield _finding(raw, error.kind, "skip", row, image, error.reason)
            continue
        seen.append(HashedImage(row, sha256_file(path), perceptual_hash(pixels)))
        for kind, problem in _oddities(header):
            yield _finding(raw, kind, "warning", row, image, problem)


def _oddities(header: Header) -> Iterator[tuple[str, str]]:
    if header.orientation != 1:
        yield "exif_rotated", f"stored turned (EXIF {header.orientation}); it is set upright"
    if min(header.width, header.height) < TINY:
        yield "tiny", f"only {header.width} x {header.height} pixels"
    if header.mode != "RGB":
        yield "not_rgb", f"mode {header.mode}; it is converted to RGB"
    if header.frames > 1:
        yield "many_frames", f"{header.frames} pictures in one file; the first is used"


def _duplicates(raw: RawTable, seen: list[HashedImage]) -> Iterator[Finding]:
    """Yield at most one finding per row: its earlier twin, one in another split if there is any."""
    images = texts(raw.table, "image")
    splits = _splits(raw)
    labels = texts(raw.table, "label")
    # The first row of each split with given bytes, and with a given perceptual hash: enough to
    # find a twin, however many copies of one picture there are.
    by_bytes = _first_rows({one.row: one.sha256 for one in seen}, splits)
    by_phash = _first_rows({one.row: one.phash.tobytes() for one in seen}, splits)
    near = _near(list(by_phash))
    for one in seen:
        # (same split, bits, row): the smallest is the most serious.
        like = [(splits[row] == splits[one.row], -1, row) for row in by_bytes[one.sha256]]
        for phash, bits in near[one.phash.tobytes()]:
            like += [(splits[row] == splits[one.row], bits, row) for row in by_phash[phash]]
        like = [twin for twin in like if twin[2] < one.row]
        if like:
            yield _twin(raw, one.row, min(like), images, splits, labels)


def _first_rows(keys: dict[int, Any], splits: list[str | None]) -> dict[Any, list[int]]:
    """Return for each key the first row of each split that has it; `keys` is {row: key}, ascending."""
    firsts: dict[Any, dict[str | None, int]] = defaultdict(dict)
    for row, key in keys.items():
        firsts[key].setdefault(splits[row], row)
    return {key: list(rows.values()) for key, rows in firsts.items()}


def _near(phashes: list[bytes]) -> dict[bytes, list[tuple[bytes, int]]]:
    """Return for each hash the hashes near it and the bits that differ, itself (0) included."""
    near = {phash: [(phash, 0)] for phash in phashes}
    if phashes:
        bits_of = np.stack([np.frombuffer(phash, dtype=bool) for phash in phashes])
        for i, j, bits in near_pairs(bits_of):
            near[phashes[i]].append((phashes[j], bits))
            near[phashes[j]].append((phashes[i], bits))
    return near


def _twin(
    raw: RawTable, row: int, twin: tuple[bool, int, int], images: list, splits: list, labels: list
) -> Finding:
    same_split, bits, other = twin
    kind = "exact_duplicate" if bits < 0 else "near_duplicate"
    problem = (
        "the same file as"
        if bits < 0
        else (f"nearly the same picture ({bits} of {N_BITS} bits differ) as")
    )
    problem += f" {images[other]}" + ("" if raw.layout == "folder" else f" ({raw.at(other)})")
    if labels[row] != labels[other]:
        problem += f", but labelled {labels[row]} here and {labels[other]} there"
    if same_split:
        return _finding(raw, kind, "warning", row, images[row], problem)
    problem += f"; that is in {splits[other]}, this in {splits[row]}: give both one group"
    return _finding(raw, f"{kind}_across_splits", "leak", row, images[row], problem)


def _splits(raw: RawTable) -> list[str | None]:
    """Return the split of each row: as written, or as it would be made by group."""
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


def _label_spellings(raw: RawTable) -> Iterator[Finding]:
    if "label" not in raw.table.column_names:
        return
    labels = texts(raw.table, "label")
    for counts in spellings(labels):
        message, hint = describe(counts)
        row = next(i for i, label in enumerate(labels) if label and label.strip() in counts)
        yield Finding("label_spelling", "warning", message, row=row, column="label", hint=hint)


def _unlisted(raw: RawTable) -> Iterator[Finding]:
    """Yield images in the folders of listed ones that no row names: perhaps forgotten."""
    if raw.layout != "native":
        return
    listed = {image for image in texts(raw.table, "image") if image and not path_problem(image)}
    for parent in sorted({PurePosixPath(image).parent for image in listed}):
        if not (raw.root / parent).is_dir():
            continue
        for path in sorted((raw.root / parent).iterdir()):
            image = (parent / path.name).as_posix()
            named = path.name.lower().endswith(IMAGE_SUFFIXES) and not path.name.startswith(".")
            if named and image not in listed:
                yield Finding(
                    "unlisted",
                    "warning",
                    f"{path}: no row of {raw.file.name} names it",
                    image=image,
                )
