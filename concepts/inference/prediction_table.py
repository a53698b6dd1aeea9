"""Predictions as a table (docs/formats.md), written in parts, so that a stopped prediction can continue.

Parts lie in `<out>.parts/`, each written whole, with the plan that they belong to. When all images are done they are
joined to one CSV, Parquet or JSONL file and removed.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.errors import UserInputError
from dermaudit.files import read_json, whole_file, write_json, write_parquet

from .images import Embedded
from .suppressed_model import Prediction, SuppressedModel

DIGITS = 6
_META = b"dermaudit"


def table_of(images: Embedded, prediction: Prediction, model: SuppressedModel) -> pa.Table:
    """Return one row an image."""
    target, classes = model.target, prediction.classes
    column = classes.index(target)
    names = model.latent_names

    def rounded(values: np.ndarray) -> pa.Array:
        return pa.array(np.round(values.astype(np.float64), DIGITS), from_pandas=True)

    columns: dict[str, Any] = {"image": images.names}
    columns |= {f"p:{c}": rounded(prediction.p_before[:, i]) for i, c in enumerate(classes)}
    columns |= {f"p_after:{c}": rounded(prediction.p_after[:, i]) for i, c in enumerate(classes)}
    columns |= {
        f"p_matched:{target}": rounded(prediction.p_matched[:, column]),
        "top1_before": prediction.top1(prediction.p_before),
        "top1_after": prediction.top1(prediction.p_after),
        "top1_matched": pa.array(prediction.top1(prediction.p_matched), pa.string()),
        "flipped": prediction.flipped.astype(np.int8),
        "cause": prediction.causes(target).tolist(),
        "fired": prediction.fired.astype(np.int8),
    }
    for kind, values in (("delta_logit:" + target, prediction.delta_logit), ("z", prediction.z)):
        columns |= {f"{kind}:{name}": rounded(values[:, i]) for i, name in enumerate(names)}
    columns |= {
        "relative_change": rounded(prediction.relative_change),
        "unlike": prediction.unlike.astype(np.int8),
        "sha256": images.sha256,
    }
    return pa.table(columns)


class Parts:
    """The parts of a table that is not complete yet. `plan` is what they were made with."""

    def __init__(self, out: Path, plan: dict[str, Any], *, start_again: bool = False) -> None:
        """UserInputError where there are parts of another prediction."""
        self.out, self.folder = out, out.with_name(out.name + ".parts")
        if start_again:
            self.discard()
        known = self.folder / "plan.json"
        if known.is_file() and read_json(known) != plan:
            raise UserInputError(
                f"{self.folder} holds a part of another prediction, which was stopped",
                "finish it with the command that it was started with, or start again with --force",
            )
        if not known.is_file():
            write_json(known, plan)

    def paths(self) -> list[Path]:
        """Return the parts that are written, in order."""
        return sorted(self.folder.glob("*.parquet"))

    def write(self, table: pa.Table, skipped: list[tuple[str, str]], last: str) -> None:
        """Write the next part: its rows, the images that could not be read, and the name of its last image."""
        note = {"seen": table.num_rows + len(skipped), "last": last, "skipped": skipped}
        path = self.folder / f"{len(self.paths()):07d}.parquet"
        write_parquet(path, table.replace_schema_metadata({_META: json.dumps(note).encode()}))

    @property
    def seen(self) -> tuple[int, str]:
        """How many images are done, and the name of the last one."""
        notes = [_note(path) for path in self.paths()]
        return sum(note["seen"] for note in notes), notes[-1]["last"] if notes else ""

    def tables(self) -> Iterator[tuple[pa.Table, list[tuple[str, str]]]]:
        """Yield the rows of each part, and the images that could not be read."""
        for path in self.paths():
            yield pq.ParquetFile(path).read(), [tuple(pair) for pair in _note(path)["skipped"]]

    def join(self) -> None:
        """Write the table, and `<out>.skipped.csv` where images could not be read; remove the parts."""
        skipped = [pair for path in self.paths() for pair in _note(path)["skipped"]]
        with whole_file(self.out) as temporary:
            _WRITERS[self.out.suffix](temporary, (table for table, _ in self.tables()))
        if skipped:
            with whole_file(skipped_file(self.out)) as temporary, temporary.open("w") as handle:
                csv.writer(handle, lineterminator="\n").writerows([("image", "reason"), *skipped])
        else:
            skipped_file(self.out).unlink(missing_ok=True)  # of an earlier prediction
        self.discard()

    def discard(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def skipped_file(out: Path) -> Path:
    """Return where the images that could not be read are listed."""
    return out.with_name(out.name + ".skipped.csv")


def _note(path: Path) -> dict[str, Any]:
    try:
        return json.loads(pq.read_schema(path).metadata[_META])
    except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
        raise UserInputError(
            f"{path} is no part of a prediction ({error})", "start again with --force"
        ) from error


def _write_csv(path: Path, tables: Iterator[pa.Table]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        for number, table in enumerate(tables):
            if number == 0:
                writer.writerow(table.column_names)
            columns = [_texts(column) for column in table.columns]
            writer.writerows(zip(*columns, strict=True))


def _texts(column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    if pa.types.is_floating(column.type):
        return ["" if v is None else f"{v:.{DIGITS}f}" for v in values]
    return values


def _write_jsonl(path: Path, tables: Iterator[pa.Table]) -> None:
    with path.open("w", encoding="utf-8") as handle:
        for table in tables:
            handle.writelines(
                json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist()
            )


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pq.ParquetWriter(path, first.schema.remove_metadata(), compression="zstd") as writer:
        writer.write_table(first.replace_schema_metadata())
        for table in tables:
            writer.write_table(table.replace_schema_metadata())


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
