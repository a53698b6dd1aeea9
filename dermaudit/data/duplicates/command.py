"""The command `data dedup`: near-duplicates across two image sets, or within one."""

from __future__ import annotations

from typing import Any

from .options import DedupOptions


def dedup(options: DedupOptions) -> dict[str, Any]:
    """Find pictures that are in both sets (or twice in one): what training may have seen of a test."""
    options.check()
    from .output import print_summary, rows_of, summary, write
    from .search import find_duplicates

    found = find_duplicates(options)
    rows = rows_of(found)
    result = summary(options, found, rows)
    if options.out is not None:
        write(options, options.out, found, rows, result)
    print_summary(options, result, rows)
    out = None if options.out is None else str(options.out)
    return {**result, "out": out, "pairs": rows[:1000]}
