"""Make a self-contained data set: manifest.parquet, data.json and images/ in one folder.

While it runs the folder holds `unfinished.json`, and such a folder is not read as a data set. The same
command continues where it stopped and keeps every image that is already complete.
"""

from __future__ import annotations

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from dermaudit.console import track
from dermaudit.errors import UserInputError
from dermaudit.failpoints import hit
from dermaudit.files import whole_file, write_json, write_parquet
from dermaudit.stats.intervals import MIN_CELL

from ..images.decode import BadImage, no_readable_image, read_image
from ..layouts import read_layout
from ..output_folder import check_output_folder
from ..splits import SPLITS
from .labels import merge_labels
from .manifest import Manifest
from .tables import UNFINISHED, RawTable, SkippedRow
from .validate import check_table, complete

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ConversionPlan:
    """The rows to convert (those for which `where` holds), and the source with its layout."""

    manifest: Manifest
    raw: RawTable
    where: str | None

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for an unfinished conversion to be continued."""
        return {
            "layout": self.raw.layout,
            "source": str(self.raw.file.resolve()),
            "where": self.where,
            "manifest_sha256": self.manifest.sha256(),
        }


def plan_conversion(
    src: Path,
    layout: str,
    out: Path,
    where: str | None,
    *,
    strict: bool = False,
    merges: Sequence[str] = (),
) -> ConversionPlan:
    """Read and check the source; nothing is written.

    Errors: UserInputError, with `strict` also for the first row that the layout would set aside.
    """
    raw = merge_labels(read_layout(src, layout), merges)
    if strict and raw.skipped:
        more = f" (and {len(raw.skipped) - 1} more)" if raw.skipped[1:] else ""
        raise UserInputError(raw.describe(raw.skipped[0]) + more, raw.skipped[0].hint)
    source, target = raw.root.resolve(), out.resolve()
    if target == source or (raw.layout == "folder" and source in target.parents):
        raise UserInputError(
            f"--out {out} is inside the images that are converted ({src})",
            "choose a folder elsewhere",
        )
    check_table(raw)
    manifest = Manifest(complete(raw), raw.root, src)
    return ConversionPlan(manifest.where(where) if where else manifest, raw, where)


def check_out(out: Path, identity: dict[str, Any], force: bool) -> None:
    """Raise UserInputError unless `out` may be written to, or holds this very conversion, stopped.

    `identity` is that of the plan, or the part of it that is known before there is a plan.
    """
    check_output_folder(
        out,
        what="a data set",
        finished="manifest.parquet",
        unfinished=UNFINISHED,
        identity=identity,
        force=force,
    )


def write(
    plan: ConversionPlan, out: Path, *, link: bool, strict: bool
) -> tuple[Manifest, list[dict]]:
    """Copy or link the images, then write the tables.

    Returns the manifest and the skipped rows [{row, image, reason}]; `row` counts the rows of the plan
    and is None for a row that the layout could not use.
    """
    manifest = plan.manifest
    write_json(out / UNFINISHED, plan.identity())
    # If this is stopped half way, no table of other images may remain.
    (out / "manifest.parquet").unlink(missing_ok=True)
    images = [_target(image) for image in manifest.column("image")]
    kept: list[int] = []
    skipped: list[dict] = [
        {"row": None, "image": one.image, "reason": _reason(one)} for one in plan.raw.skipped
    ]
    for stale in (out / "images").rglob(".*.tmp"):
        stale.unlink()
    rows = list(zip(manifest.paths(), images, strict=True))
    for row, (source, image) in enumerate(
        track(rows, "linking images" if link else "copying images")
    ):
        try:
            read_image(source)
        except BadImage as error:
            if strict:
                raise
            skipped.append({"row": row, "image": image, "reason": error.reason})
            continue
        _place(source, out / image, link)
        kept.append(row)
        hit("convert")
    if not kept:
        first = next(one for one in skipped if one["row"] is not None)
        raise no_readable_image(manifest.n, manifest.path, first["image"], first["reason"])
    table = manifest.table.set_column(
        manifest.table.column_names.index("image"), "image", pa.array(images, pa.string())
    )
    done = Manifest(table, out, out).take(kept)
    if skipped:
        write_parquet(out / "skipped.parquet", pa.Table.from_pylist(skipped))
    else:
        (out / "skipped.parquet").unlink(missing_ok=True)
    write_json(
        out / "data.json",
        {
            "format_version": FORMAT_VERSION,
            "layout": plan.raw.layout,
            "licence": ", ".join(sorted({w for w in done.column("licence", "") if w})) or None,
            "n_images": done.n,
            "n_skipped": len(skipped),
            "source": plan.raw.file.name,
            "where": plan.where,
            "manifest_sha256": done.sha256(),
        },
    )
    write_parquet(out / "manifest.parquet", done.table)
    (out / UNFINISHED).unlink()
    return done, skipped


def summary(manifest: Manifest) -> dict[str, Any]:
    """Return counts: `splits`, `labels`, and present / absent / unknown of each truth column."""
    truth = {}
    for name, (kind, values) in manifest.truth().items():
        present, absent = int((values >= 0.5).sum()), int((values < 0.5).sum())
        truth[name] = {
            "type": kind,
            "present": present,
            "absent": absent,
            "unknown": manifest.n - present - absent,
        }
    return {
        "n_images": manifest.n,
        "n_groups": len(set(manifest.groups)),
        "splits": {name: manifest.splits.count(name) for name in SPLITS},
        "labels": dict(Counter(label or "" for label in manifest.labels).most_common())
        if any(manifest.labels)
        else {},
        "truth": truth,
    }


def split_warning(sizes: dict[str, int]) -> str | None:
    """Return what to know about splits {name: images} that are too small to measure on, if any is."""
    small = [f"{sizes[name]} in {name}" for name in SPLITS if sizes[name] < MIN_CELL]
    if not small:
        return None
    return (
        f"too few images ({', '.join(small)}): at least {MIN_CELL} are needed to fit (train), to choose "
        "settings (val) and to measure (test); add images of more groups (patients, lesions), or give "
        "a column 'split'"
    )


def _reason(skipped: SkippedRow) -> str:
    return skipped.reason if skipped.line is None else f"line {skipped.line}: {skipped.reason}"


def _target(image: str) -> str:
    return image if image.startswith("images/") else f"images/{image}"


def _place(source: Path, target: Path, link: bool) -> None:
    """Copy or link an image to `target`, whole or not at all; an equal file is kept."""
    if link:
        wanted = str(source.resolve())
        if target.is_symlink() and str(target.readlink()) == wanted:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(wanted)
        os.replace(temporary, target)
        return
    if target.is_file() and not target.is_symlink() and filecmp.cmp(source, target, shallow=False):
        return
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
