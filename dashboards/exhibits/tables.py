"""Tables as they are shown: columns with a meaning, numbers formatted in one place.

A `Table` goes to `st.dataframe` (its raw values, sortable) and to HTML (its formatted words). An
`Exhibit` is a figure with its table, its caption (definition, n, interval) and its alt text; the
explorer and the report show the same exhibits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dermaudit.errors import DermauditError

NOTHING = "–"

#: What a cell shows of a row: the value of a key, the interval of two keys, or a computed value.
Cell = str | tuple[str, str] | Callable[[Any], Any]


@dataclass(frozen=True)
class Table:
    """`header`, and `rows` of raw values: str, int, float, bool, None, or a (low, high) interval."""

    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    digits: int = 3
    shares: frozenset[str] = frozenset()  # columns printed as per cent

    @classmethod
    def of(
        cls,
        rows: Iterable[Mapping[str, Any]],
        *columns: tuple[str, Cell],
        shares: Iterable[str] = (),
    ) -> Table:
        """Return the table of `rows`, each column given as its header and its `Cell`."""
        return cls(
            tuple(header for header, _ in columns),
            [tuple(_cell(row, cell) for _, cell in columns) for row in rows],
            shares=frozenset(shares),
        )

    def words(self) -> list[list[str]]:
        """Return the formatted cells."""
        return [
            [
                word(v, self.digits, share=h in self.shares)
                for h, v in zip(self.header, row, strict=True)
            ]
            for row in self.rows
        ]

    def without_empty_last(self) -> Table:
        """Return the table without its last column if that is empty, as reasons often are."""
        if any(row[-1] is not None for row in self.rows):
            return self
        return replace(self, header=self.header[:-1], rows=[row[:-1] for row in self.rows])

    def numeric(self) -> list[bool]:
        """Return which columns hold numbers (they are set flush right)."""
        return [
            any(
                isinstance(row[i], (int, float, tuple)) and not isinstance(row[i], bool)
                for row in self.rows
            )
            for i in range(len(self.header))
        ]


@dataclass(frozen=True)
class Exhibit:
    """`figure` is a plotly Figure or None; `alt` says in words what it shows, with numbers."""

    title: str
    caption: str
    table: Table
    figure: Any = None
    alt: str = ""
    notes: list[str] = field(default_factory=list)


def _cell(row: Mapping[str, Any], cell: Cell) -> Any:
    if isinstance(cell, str):
        return row.get(cell)
    return span(row[cell[0]], row[cell[1]]) if isinstance(cell, tuple) else cell(row)


def site_title(site: str) -> str:
    """Return in plain words what the latents of a site read, from its name in the model."""
    block = re.fullmatch(r"visual\.blocks\.(\d+)\.hook_resid_post", site)
    if block:
        return f"patches, block {block[1]}"
    return "whole image" if site == "visual.pooled" else site


def reason(error: DermauditError) -> str:
    """Return why an exhibit is missing, as a sentence that says whether evidence was lacking."""
    if error.exit_code != 3 or "not measured" in error.message:
        return error.message
    return f"Not measured: {error.message}"


def word(value: Any, digits: int = 3, *, share: bool = False) -> str:
    """Return one formatted cell: a dash for an unknown value, `[low, high]` for an interval."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        if any(v is None or not math.isfinite(v) for v in value):
            return NOTHING
        return "[" + ", ".join(word(v, digits, share=share) for v in value) + "]"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if share else f"{value:.{digits}f}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    return str(value)


def span(low: Any, high: Any) -> tuple[float, float] | None:
    """Return an interval, or None where either end is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return None
    return float(low), float(high)
