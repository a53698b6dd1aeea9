"""Pack a data set into webdataset shards: a few large tar files instead of a million small ones.

A sample is `<key>.jpg` (or `.png`) and `<key>.json`, the key its row. The same images give the same
bytes: no times, no owners. A shard is written whole and then recorded in `.parts/`; the same command
after a kill continues behind the last recorded shard, and the result is the same to the byte.
"""

from __future__ import annotations

import json
import math
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from dermaudit.console import track
from dermaudit.failpoints import hit
from dermaudit.files import (
    canonical_json,
    read_json,
    sha256_file,
    whole_file,
    write_json,
    write_parquet,
)

from ..images.decode import BadImage, decode_image, no_readable_image, read_header
from ..images.parallel import map_images
from ..manifest.manifest import Manifest
from ..manifest.tables import INDEX_FILE, SHARDS_FILE, UNFINISHED_SHARDS
from ..output_folder import check_output_folder

FORMAT_VERSION = 1
SKIPPED_FILE = "skipped.parquet"
_RECORDS = ".parts"
#: formats whose bytes are kept as they are; webdataset decodes them by these suffixes.
_KEPT = {"JPEG": "jpg", "PNG": "png"}


@dataclass(frozen=True)
class Packing:
    """How to pack.

    `size`: larger images are scaled so that their shorter side has this many pixels; None keeps the source's
    bytes. `quality`: of JPEGs that are encoded again.
    """

    per_shard: int = 1000
    size: int | None = None
    quality: int = 92

    def identity(self, manifest: Manifest) -> dict[str, Any]:
        """Return what must be equal for an unfinished packing to be continued."""
        return {
            "format_version": FORMAT_VERSION,
            "manifest_sha256": manifest.sha256(),
            "per_shard": self.per_shard,
            "size": self.size,
            "quality": self.quality,
        }


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:06d}.tar"


def check_out(out: Path, identity: dict[str, Any]) -> None:
    """Raise UserInputError when `out` holds anything but this very packing, stopped half way."""
    check_output_folder(
        out, what="shards", finished=SHARDS_FILE, unfinished=UNFINISHED_SHARDS, identity=identity
    )


def clear(out: Path) -> None:
    """Remove the shards in `out`, finished or not, and nothing else."""
    for name in (SHARDS_FILE, UNFINISHED_SHARDS, INDEX_FILE, SKIPPED_FILE):
        (out / name).unlink(missing_ok=True)
    for shard in out.glob("shard-??????.tar"):
        shard.unlink()
    shutil.rmtree(out / _RECORDS, ignore_errors=True)


def pack(
    manifest: Manifest, out: Path, packing: Packing, *, threads: int = 1, strict: bool = False
) -> dict[str, Any]:
    """Write the shards of `manifest` to `out`; return the content of `shards.json`.

    Images that cannot be read are left out and listed in `skipped.parquet` (row, image, reason).
    Errors: BadImage at the first of them if `strict`; UserInputError when none can be read.
    """
    identity = packing.identity(manifest)
    write_json(out / UNFINISHED_SHARDS, identity)
    # Old tables must not be read until the new shards are complete.
    (out / SHARDS_FILE).unlink(missing_ok=True)
    for stale in out.glob(".shard-*.tmp"):
        stale.unlink()
    records = _complete_records(out)
    start = records[-1]["next_row"] if records else 0
    # From the last complete shard on: images skipped after it were not recorded and are tried again.
    samples = _samples(manifest, start, packing, threads, strict)
    row_text = _row_texts(manifest)
    n_done = sum(len(record["rows"]) for record in records)
    while start < manifest.n:
        record = _write_shard(out, len(records), n_done, samples, row_text, packing.per_shard)
        met = [*record["rows"], *(skipped["row"] for skipped in record["skipped"])]
        record["next_row"] = start = max(met) + 1
        records.append(record)
        n_done += len(record["rows"])
        write_json(_record_path(out, len(records) - 1), record)
        hit("shard")
    return _finish(manifest, out, packing, records, identity["manifest_sha256"])


def _complete_records(out: Path) -> list[dict[str, Any]]:
    """Return the records of the complete shards, up to the first that is not complete."""
    records = []
    while (path := _record_path(out, len(records))).is_file():
        record = read_json(path)
        shard = out / record["file"] if record["file"] else None
        if shard and (not shard.is_file() or sha256_file(shard) != record["sha256"]):
            break
        records.append(record)
    return records


def _record_path(out: Path, number: int) -> Path:
    return out / _RECORDS / f"{number:06d}.json"


def _row_texts(manifest: Manifest) -> Any:
    """Return a function from a row to the JSON of all its columns; blank and nan are null."""
    table = manifest.table

    def text(row: int) -> bytes:
        values = {name: table.column(name)[row].as_py() for name in table.column_names}
        for name, value in values.items():
            if isinstance(value, float) and not math.isfinite(value):
                values[name] = None
        return canonical_json(json.loads(json.dumps(values, default=str)))

    return text


def _samples(
    manifest: Manifest, start: int, packing: Packing, threads: int, strict: bool
) -> Iterator[tuple[int, tuple[str, bytes] | BadImage]]:
    """Yield (row, (suffix, bytes) or the error), in the order of the rows from `start` on."""
    paths = manifest.paths()[start:]
    samples = map_images(lambda path: _prepare(path, packing), paths, threads)
    for row, sample in enumerate(track(samples, "packing images", total=len(paths)), start):
        if strict and isinstance(sample, BadImage):
            raise sample
        yield row, sample


def _prepare(path: Path, packing: Packing) -> tuple[str, bytes]:
    """Return one image file as (suffix, bytes) of a sample. Errors: BadImage."""
    header = read_header(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})", path) from error
    height, width = header.height, header.width
    if header.orientation >= 5:  # stored on its side
        height, width = width, height
    short = min(height, width)
    shape = None
    if packing.size is not None and short > packing.size:
        size = packing.size
        shape = max(1, round(height * size / short)), max(1, round(width * size / short))
    # Decoded in any case: an image that cannot be read must not get into a shard.
    pixels = decode_image(data, shape, name=str(path))
    if header.format in _KEPT and shape is None:
        return _KEPT[header.format], data
    buffer = BytesIO()
    if header.format == "JPEG":
        # No chroma subsampling: colour is diagnostic, and the quality setting already loses enough.
        Image.fromarray(pixels).save(buffer, "JPEG", quality=packing.quality, subsampling=0)
        return "jpg", buffer.getvalue()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "png", buffer.getvalue()


def _write_shard(
    out: Path, number: int, first_key: int, samples: Iterator, row_text: Any, per_shard: int
) -> dict[str, Any]:
    """Take samples until the shard is full or there are no more; return the record of the shard.

    Without a single readable image no file is written (`file` is None).
    """
    record: dict[str, Any] = {
        "file": None,
        "bytes": 0,
        "sha256": None,
        "rows": [],
        "suffixes": [],
        "offsets": [],
        "sizes": [],
        "skipped": [],
    }
    path = out / shard_name(number)
    with (
        whole_file(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row, sample in samples:
            if isinstance(sample, BadImage):
                record["skipped"].append({"row": row, "reason": sample.reason})
                continue
            suffix, data = sample
            key = f"{first_key + len(record['rows']):09d}"
            # The bytes of the image begin after its header of one block.
            record["offsets"].append(tar.offset + tarfile.BLOCKSIZE)
            _add(tar, f"{key}.{suffix}", data)
            _add(tar, f"{key}.json", row_text(row))
            record["rows"].append(row)
            record["suffixes"].append(suffix)
            record["sizes"].append(len(data))
            hit("shard_member")
            if len(record["rows"]) == per_shard:
                break
    if not record["rows"]:
        path.unlink()
        return record
    return {**record, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # TarInfo's own defaults: no time, no owner, mode 644.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))


def _finish(
    manifest: Manifest,
    out: Path,
    packing: Packing,
    records: list[dict[str, Any]],
    manifest_sha256: str,
) -> dict[str, Any]:
    """Join the records to the tables of the whole; `shards.json` comes last."""
    skipped = [entry for record in records for entry in record["skipped"]]
    whole = [record for record in records if record["file"]]
    if not whole:
        clear(out)
        images = manifest.column("image")
        first = skipped[0]
        raise no_readable_image(manifest.n, manifest.path, images[first["row"]], first["reason"])
    index = manifest.take(row for record in whole for row in record["rows"]).table
    for name, kind, values in (
        ("__shard__", pa.int32(), [i for i, record in enumerate(whole) for _ in record["rows"]]),
        ("__offset__", pa.int64(), [v for record in whole for v in record["offsets"]]),
        ("__size__", pa.int64(), [v for record in whole for v in record["sizes"]]),
        ("__suffix__", pa.string(), [v for record in whole for v in record["suffixes"]]),
    ):
        index = index.append_column(name, pa.array(values, kind))
    write_parquet(out / INDEX_FILE, index)
    if skipped:
        images = manifest.column("image")
        write_parquet(
            out / SKIPPED_FILE,
            pa.Table.from_pylist(
                [
                    {"row": s["row"], "image": images[s["row"]], "reason": s["reason"]}
                    for s in skipped
                ]
            ),
        )
    head = {
        "format_version": FORMAT_VERSION,
        "n": index.num_rows,
        "n_skipped": len(skipped),
        "columns": manifest.table.column_names,
        "size": packing.size,
        "quality": packing.quality if packing.size else None,
        "manifest_sha256": manifest_sha256,
        "index_sha256": sha256_file(out / INDEX_FILE),
        "shards": [
            {
                "file": record["file"],
                "n": len(record["rows"]),
                "bytes": record["bytes"],
                "sha256": record["sha256"],
            }
            for record in whole
        ],
    }
    write_json(out / SHARDS_FILE, head)
    shutil.rmtree(out / _RECORDS, ignore_errors=True)
    (out / UNFINISHED_SHARDS).unlink(missing_ok=True)
    return head
