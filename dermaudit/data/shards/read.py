"""Read the webdataset shards that `data shard` writes: any sample by seek, any order by seed.

`shards.json` names the tar files with their sizes and hashes, `index.parquet` has every row of the
table with the place of its image. A position in the data is (epoch, k): `order(seed, epoch)[k]` is
the same row on every machine, so a training that was stopped continues with exactly the next image.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dermaudit.errors import UserInputError
from dermaudit.files import read_json, sha256_file

from ..images.decode import DEFAULT_LIMITS, BadImage, ImageLimits, Mode, decode_image
from ..manifest.manifest import Manifest
from ..manifest.tables import INDEX_FILE, SHARDS_FILE, UNFINISHED_SHARDS, read_table

FORMAT_VERSION = 1
_INDEX_COLUMNS = ("__shard__", "__offset__", "__size__", "__suffix__")
#: shards that are shuffled together: enough to mix, few enough to stay in the page cache.
WINDOW = 4


class Shards:
    """A folder of shards; reading is safe in threads and forked workers.

    `table` has all rows (image_id, split, group, label, caption, …); row i is the sample with the key i.
    `lost`: what `strict=False` left out, as [{file, n, reason}].
    """

    def __init__(
        self,
        folder: Path,
        table: pa.Table,
        places: dict[str, np.ndarray],
        files: list[dict],
        lost: list[dict[str, Any]],
    ) -> None:
        self.folder = folder
        self.table = table
        self.files = files
        self.lost = lost
        self._shard, self._offset, self._size = (places[name] for name in _INDEX_COLUMNS[:3])

    @classmethod
    def load(cls, folder: Path | str, *, strict: bool = True) -> Shards:
        """Open a folder of shards; every file is checked by its size.

        A shard that is missing or cut off is an error that names it; with `strict=False` its
        samples are left out and counted in `lost`. Errors: UserInputError.
        """
        folder = Path(folder)
        head = _read_head(folder)
        index, _ = read_table(folder / INDEX_FILE)
        if sha256_file(folder / INDEX_FILE) != head["index_sha256"]:
            raise UserInputError(
                f"{folder / INDEX_FILE} is not the index that {SHARDS_FILE} was written with",
                "copy the folder again from where it was made, or make it again",
            )
        lost, usable = [], np.ones(len(head["shards"]), dtype=bool)
        for number, shard in enumerate(head["shards"]):
            reason = _size_fault(folder / shard["file"], shard)
            if reason is None:
                continue
            if strict:
                raise UserInputError(
                    f"{folder / shard['file']}: {reason}; its {shard['n']} images are missing",
                    "copy the shard again, or continue without it: --skip-lost (it is counted)",
                )
            lost.append({"file": shard["file"], "n": shard["n"], "reason": reason})
            usable[number] = False
        places = {name: index.column(name).to_numpy() for name in _INDEX_COLUMNS[:3]}
        table = index.drop_columns(list(_INDEX_COLUMNS))
        if lost:
            kept = np.flatnonzero(usable[places["__shard__"]])
            if not len(kept):
                raise UserInputError(
                    f"none of the {len(usable)} shards of {folder} can be used: "
                    f"{lost[0]['file']}: {lost[0]['reason']}"
                )
            table = table.take(pa.array(kept)).combine_chunks()
            places = {name: values[kept] for name, values in places.items()}
        return cls(folder, table, places, head["shards"], lost)

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def manifest(self) -> Manifest:
        """The table as a Manifest, for truth, labels and `where`; its `paths()` need not exist."""
        return Manifest(self.table, self.folder, self.folder)

    def read(self, row: int) -> bytes:
        """Return the bytes of one image file. Errors: UserInputError when the shard ends before them."""
        path = self.folder / self.files[self._shard[row]]["file"]
        size = int(self._size[row])
        try:
            with path.open("rb", buffering=0) as handle:
                handle.seek(int(self._offset[row]))
                data = handle.read(size)
        except OSError as error:
            raise UserInputError(f"{path} cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise UserInputError(
                f"{path} was cut off while it was open: {size - len(data)} bytes of image "
                f"{row} are missing",
                "copy the shard again",
            )
        return data

    def decode(
        self,
        row: int,
        size: int | None = None,
        mode: Mode = "squash",
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> np.ndarray:
        """Return one image as uint8 (size, size, 3), or (height, width, 3) without a size.

        The pixels are those of `read_image` of the same file. Errors: BadImage.
        """
        try:
            data = self.read(row)
        except UserInputError as error:
            raise BadImage(error.message, kind="unreadable") from error
        return decode_image(data, size, mode, limits, name=self._name(row))

    def _name(self, row: int) -> str:
        image = self.table.column("image")[row].as_py()
        return f"{self.folder / self.files[self._shard[row]]['file']} ({image})"

    def order(
        self, seed: int, epoch: int, window: int = WINDOW, rows: Iterable[int] | None = None
    ) -> np.ndarray:
        """Return all rows once, int64 (n,), shuffled by (seed, epoch).

        The shards are shuffled, then the samples of each `window` shards together, so that reads stay close
        together in the files. `rows`: only these, in the order that they have among all.
        """
        if window < 1:
            raise UserInputError(f"a window of {window} shards", "give 1 or more")
        rng = np.random.default_rng([seed, epoch])
        # Rows are ordered by shard; each shard is a run of rows.
        starts = np.unique(self._shard, return_index=True)[1].tolist()
        ends = [*starts[1:], len(self)]
        shards = rng.permutation(len(starts))
        windows = []
        for first in range(0, len(shards), window):
            near = [np.arange(starts[s], ends[s]) for s in shards[first : first + window]]
            windows.append(rng.permutation(np.concatenate(near)))
        order = np.concatenate(windows).astype(np.int64)
        if rows is None:
            return order
        wanted = np.zeros(len(self), dtype=bool)
        wanted[np.asarray(list(rows), dtype=np.int64)] = True
        return order[wanted[order]]


def _read_head(folder: Path) -> dict[str, Any]:
    if (folder / UNFINISHED_SHARDS).is_file() and not (folder / SHARDS_FILE).is_file():
        raise UserInputError(
            f"{folder} holds unfinished shards",
            "run the same `dermaudit data shard` again; it continues where it stopped",
        )
    if not (folder / SHARDS_FILE).is_file():
        raise UserInputError(
            f"{folder} holds no shards: it has no {SHARDS_FILE}",
            "make them: dermaudit data shard <data set> --out <folder>",
        )
    head = read_json(folder / SHARDS_FILE, "list of shards")
    if not isinstance(head, dict) or head.get("format_version") != FORMAT_VERSION:
        found = head.get("format_version") if isinstance(head, dict) else None
        raise UserInputError(
            f"{folder / SHARDS_FILE} has format_version {found}, this program reads {FORMAT_VERSION}",
            "make the shards again with this version",
        )
    return head


def _size_fault(path: Path, shard: dict[str, Any]) -> str | None:
    if not path.is_file():
        return "the file does not exist"
    there = path.stat().st_size
    if there < shard["bytes"]:
        return f"cut off: {shard['bytes'] - there} of {shard['bytes']} bytes are missing"
    if there > shard["bytes"]:
        return f"altered: {there} bytes instead of {shard['bytes']}"
    return None
