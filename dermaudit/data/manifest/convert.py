"""Make a data set that stands alone: manifest.parquet, data.json and images/ in one folder.

While it runs the folder holds `unfinished.json`, and nobody reads such a folder as a data set. The
same command again goes on where it stopped and keeps every image that is already there whole.
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
from dermaudit.files import read_json, whole_file, write_json, write_parquet
from dermaudit.stats.intervals import MIN_CELL

from ..images.decode import BadImage, no_readable_image, read_image
from ..layouts import read_layout
from ..splits import SPLITS
from .labels import merge_labels
from .manifest import Manifest
from .tables import UNFINISHED, RawTable, SkippedRow
from .validate import check_table, complete

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What will be converted: the rows that `where` left, and the layout they came in."""

    manifest: Manifest
    raw: RawTable
    where: str | None

    def identity(self) -> dict[str, Any]:
        """What tells one conversion from another when it is gone on with."""
        return {
            "layout": self.raw.layout,
            "source": str(self.raw.file.resolve()),
            "where": self.where,
            "manifest_sha256": self.manifest.sha256(),
        }


def plan(
    src: Path,
    layout: str,
    out: Path,
    where: str | None,
    *,
    strict: bool = False,
    merges: Sequence[str] = (),
) -> Plan:
    """Read and check the source; nothing is written. Errors: UserInputError, with `strict` also for
    the first row that the layout would set aside."""
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
    return Plan(manifest.where(where) if where else manifest, raw, where)


def refuse_overwrite(planned: Plan, out: Path, force: bool) -> None:
    """UserInputError when `out` holds something and `force` is not given.

    This very conversion, stopped half way, is gone on with.
    """
    refuse_out(out, force, planned.identity())


def refuse_out(out: Path, force: bool, identity: dict[str, Any]) -> None:
    """The same from what is known of the conversion (`identity`, or a part of it) before there is a
    plan."""
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out {out} is a file", "choose a folder")
    if force or not out.exists():
        return
    if (out / UNFINISHED).exists():
        said = read_json(out / UNFINISHED)
        if {name: said.get(name) for name in identity} != identity:
            raise UserInputError(
                f"{out} holds an unfinished conversion of another source",
                "use --force to begin again, or another --out",
            )
        return
    held = sorted(p.name for p in out.iterdir() if not p.name.endswith(".tmp"))
    if held:
        what = "a data set" if "manifest.parquet" in held else f"files ({held[0]})"
        raise UserInputError(
            f"{out} already holds {what}", "use --force to replace it, or another --out"
        )


def write(planned: Plan, out: Path, *, link: bool, strict: bool) -> tuple[Manifest, list[dict]]:
    """Copy or link the images, then write the tables. Returns the manifest and the skipped rows
    [{row, image, reason}] (`row` among the rows that `where` left; None for a row of the source that
    the layout could not use, whatever `where` says)."""
    manifest = planned.manifest
    write_json(out / UNFINISHED, planned.identity())
    # A table of other images beside these would be a lie, should this be stopped half way.
    (out / "manifest.parquet").unlink(missing_ok=True)
    images = [_target(image) for image in manifest.column("image")]
    kept: list[int] = []
    skipped: list[dict] = [
        {"row": None, "image": one.image, "reason": _reason(one)} for one in planned.raw.skipped
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
            "layout": planned.raw.layout,
            "licence": ", ".join(sorted({w for w in done.column("licence", "") if w})) or None,
            "n_images": done.n,
            "n_skipped": len(skipped),
            "source": planned.raw.file.name,
            "where": planned.where,
            "manifest_sha256": done.sha256(),
        },
    )
    write_parquet(out / "manifest.parquet", done.table)
    (out / UNFINISHED).unlink()
    return done, skipped


def summary(manifest: Manifest) -> dict[str, Any]:
    """Counts: `splits`, `labels`, and per truth column present / absent / unknown."""
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
    """Put an image at `target`, whole or not at all; one that is there already is kept."""
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
