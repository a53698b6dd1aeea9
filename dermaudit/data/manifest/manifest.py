"""The manifest: the table of images of a data set, one row an image (docs/formats.md).

A loaded manifest is complete: every row has an image_id, a group and a split, no group is in two
splits, and truth is 1, 0, a probability or unknown (nan). Rows count from 0 and keep their order.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dermaudit.console import say
from dermaudit.errors import UserInputError, closest

from ..layouts import read_for_use
from .tables import TRUTH_PREFIXES
from .validate import check_table, complete

Truth = dict[str, tuple[str, np.ndarray]]


class Manifest:
    """The table of images of a data set.

    `table` is a complete pyarrow table, `root` the folder of its images, `path` what was opened (for
    messages).
    """

    def __init__(self, table: pa.Table, root: Path, path: Path) -> None:
        self.table = table
        self.root = root
        self.path = path

    @classmethod
    def load(cls, path: Path | str) -> Manifest:
        """Open a folder with a manifest.parquet / .csv / .jsonl, such a file, or a plain folder of images.

        Subfolders of a plain folder are labels. Errors: UserInputError naming file, row, column and fix.
        """
        path = Path(path)
        raw = read_for_use(path)
        derived = [one for one in raw.skipped if one.kind == "derived_file"]
        if derived:
            say(
                f"  {len(derived)} files are left out, the first: {derived[0].reason}; to take them: "
                f"dermaudit data convert {path} --layout folder-all --out FOLDER"
            )
        for remark in raw.remarks:
            say(f"  {remark}")
        check_table(raw)
        return cls(complete(raw), raw.root, path)

    # ---- columns

    @property
    def n(self) -> int:
        """The number of images."""
        return self.table.num_rows

    def __len__(self) -> int:
        return self.n

    def paths(self) -> list[Path]:
        """Return the absolute paths of the images, by row."""
        root = self.root.absolute()
        return [root / image for image in self.table.column("image").to_pylist()]

    def column(self, name: str, default: Any = None) -> Any:
        """Return the values of a column as a list, blanks replaced by `default`.

        A column that is absent gives None without a default, else a list of the default.
        """
        if name not in self.table.column_names:
            return None if default is None else [default] * self.n
        values = self.table.column(name).to_pylist()
        return values if default is None else [default if v is None else v for v in values]

    @property
    def ids(self) -> list[str]:
        """The image_id of each row."""
        return self.column("image_id")

    @property
    def labels(self) -> list[str | None]:
        """The label of each row; None where unknown."""
        return self.column("label") or [None] * self.n

    @property
    def groups(self) -> list[str]:
        """Lesion or patient of each row; the image's own id if the table has none."""
        return self.column("group")

    @property
    def splits(self) -> list[str]:
        """train, val or test for each row."""
        return self.column("split")

    @cached_property
    def _truth(self) -> Truth:
        found: Truth = {}
        for name in self.table.column_names:
            if name.startswith(TRUTH_PREFIXES):
                kind, short = name.split(":", 1)
                values = self.table.column(name).to_numpy(zero_copy_only=False)
                found[short] = (kind, np.asarray(values, dtype=np.float64))
        return found

    def truth(self) -> Truth:
        """Return {word: ('concept' | 'artifact', float64 (n,))}: 1, 0, a probability; nan = unknown."""
        return dict(self._truth)

    # ---- subsets

    def take(self, rows: Iterable[int]) -> Manifest:
        """Return the manifest of some rows, in the given order."""
        indices = pa.array(np.asarray(list(rows), dtype=np.int64))
        return Manifest(self.table.take(indices).combine_chunks(), self.root, self.path)

    def where(self, expression: str) -> Manifest:
        """Return the rows for which an SQL expression over the columns holds, in order.

        `where("licence == 'CC0-1.0' and split = 'test'")`; names with a colon are quoted:
        `where('"artifact:ruler" = 1')`. Errors: UserInputError when the expression cannot be parsed, or holds
        for no row.
        """
        import duckdb

        rows = pa.array(np.arange(self.n))
        connection = duckdb.connect(":memory:", config={"enable_external_access": "false"})
        try:
            connection.register("manifest", self.table.append_column("__row", rows))
            found = connection.execute(
                f"SELECT __row FROM manifest WHERE ({expression}\n) ORDER BY __row"
            ).fetchnumpy()["__row"]
        except duckdb.Error as error:
            raise UserInputError(
                f"--where {expression!r} cannot be used: {_reason(error)}", self._near(expression)
            ) from error
        finally:
            connection.close()
        if len(found) == 0:
            raise UserInputError(
                f"--where {expression!r} holds for none of the {self.n} rows of {self.path}",
                "put names with a colon in double quotes, text in single quotes",
            )
        return self.take(found)

    def _near(self, expression: str) -> str:
        """Return the hint for an expression that cannot be parsed: the nearest column, or all of them."""
        names = self.table.column_names
        quoted = {name: f'"{name}"' if ":" in name else name for name in names}
        short = {name.split(":")[-1]: name for name in names}
        for word in re.findall(r"[A-Za-z_]\w*", re.sub(r"'[^']*'|\"[^\"]*\"", " ", expression)):
            near = closest(word, short)
            if near and short[near] != word:
                return f"did you mean {quoted[short[near]]}? put text in 'single quotes'"
        return f"columns: {', '.join(quoted[n] for n in names[:24])}; text in 'single quotes'"

    def sha256(self) -> str:
        """Return the hash of the columns' names and values (not of the image files), hexadecimal."""
        digest = hashlib.sha256()
        for name in self.table.column_names:
            values = self.table.column(name).to_pylist()
            digest.update(json.dumps([name, values], default=str).encode("utf-8"))
        return digest.hexdigest()


def _reason(error: Exception) -> str:
    """Return what is wrong with a condition, from the first line of DuckDB's message."""
    message = str(error).partition("\n")[0]
    for pattern, reason in (
        (r'Referenced column "(.+?)" not found', "there is no column {}"),
        (r"Function with name (\S+) does not exist", "there is no function {}"),
        (r"Table with name (\S+) does not exist", "there is no table {}, only the manifest"),
        (r"unterminated (?:string|quoted)", "a quote is not closed"),
        (r'at or near "\)"', "a part is missing, or a bracket too many"),
        (r'at or near "(.+?)"', "it cannot be read from '{}' on"),
        (r"Could not convert string '(.*?)' to", "the text '{}' is where a number is needed"),
        (r"disabled", "reading other files is disabled"),
        (r"aggregates|window", "it must hold or not hold for each row by itself"),
    ):
        if found := re.search(pattern, message):
            return reason.format(*found.groups())
    return "it is no condition on one row"
