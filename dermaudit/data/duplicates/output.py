"""The pairs of `data dedup` as tables, JSON, a page with thumbnails, and a summary on the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dermaudit.console import say, table
from dermaudit.files import write_json, write_parquet, write_text

from ..images.decode import BadImage
from .embeddings import share
from .inputs import ComparedImages
from .options import DedupOptions
from .page import SIDE, write_page
from .search import Duplicates

FORMAT_VERSION = 1
_SHOWN = 20
_COLUMNS = ("image", "image_id", "group", "split", "label")
_SCHEMA = pa.schema(
    [(f"{letter}_{name}", pa.string()) for letter in "ab" for name in _COLUMNS]
    + [
        ("a_row", pa.int64()),
        ("b_row", pa.int64()),
        ("cosine", pa.float64()),
        ("hash_bits", pa.int64()),
        ("by_cosine", pa.bool_()),
        ("by_hash", pa.bool_()),
        ("same_group", pa.bool_()),
    ]
)


def rows_of(found: Duplicates) -> list[dict[str, Any]]:
    """Return one row per pair, with the columns of `pairs.csv`."""
    columns = [{name: side.column(name) for name in _COLUMNS} for side in (found.a, found.b)]
    pairs = found.pairs
    rows = []
    for k in range(len(pairs.a)):
        i, j = int(pairs.a[k]), int(pairs.b[k])
        row = {f"a_{name}": columns[0][name][i] for name in _COLUMNS}
        row |= {f"b_{name}": columns[1][name][j] for name in _COLUMNS}
        cosine = float(pairs.cosine[k])
        row |= {
            "a_row": int(found.a.rows[i]),
            "b_row": int(found.b.rows[j]),
            "cosine": None if math.isnan(cosine) else cosine,
            "hash_bits": None if pairs.bits[k] < 0 else int(pairs.bits[k]),
            "by_cosine": bool(pairs.by_cosine[k]),
            "by_hash": bool(pairs.by_hash[k]),
            # Equal group names of two tables do not mean the same group.
            "same_group": found.a is found.b and row["a_group"] == row["b_group"],
        }
        rows.append(row)
    return rows


def summary(options: DedupOptions, found: Duplicates, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `dedup.json` and `--json` hold besides the pairs."""
    calibration = found.calibration
    skipped = found.a.skipped + ([] if options.within else found.b.skipped)
    return {
        "format_version": FORMAT_VERSION,
        "a": str(options.a),
        "b": None if options.b is None else str(options.b),
        "by": options.by,
        "model": found.model,
        "fingerprint": found.fingerprint,
        "cosine_refused": found.refusal,
        "threshold": found.threshold,
        "max_bits": options.bits if options.use_hash else None,
        "turned": options.use_hash and options.turned,
        "calibration": None if calibration is None else calibration._asdict(),
        # How many images the cosine alone would list if there were no duplicate at all.
        "expected_by_chance": None
        if calibration is None
        else round(calibration.false_share * len(found.b.rows), 1),
        "n_a": len(found.a.rows),
        "n_b": len(found.b.rows),
        "n_pairs": len(rows),
        "n_skipped": len(skipped),
        "n_same_group": sum(row["same_group"] for row in rows),
        # Two tables have two splits, which cannot be compared.
        "n_across_splits": sum(row["a_split"] != row["b_split"] for row in rows)
        if options.within
        else None,
        "duplicates": _shares(options, found),
    }


def _shares(options: DedupOptions, found: Duplicates) -> dict[str, Any]:
    """Return the share of images with a duplicate, by each criterion that was used."""
    groups, pairs = found.b.column("group"), found.pairs
    selected = {"either": pairs.by_cosine | pairs.by_hash}
    if found.threshold is not None:
        selected["cosine"] = pairs.by_cosine
    if options.use_hash:
        selected["hash"] = pairs.by_hash
    return {
        name: share(
            np.concatenate([pairs.a[of], pairs.b[of]]) if options.within else pairs.b[of], groups
        )
        for name, of in selected.items()
    }


def write(
    options: DedupOptions,
    out: Path,
    found: Duplicates,
    rows: list[dict[str, Any]],
    result: dict[str, Any],
) -> None:
    """Write pairs.parquet, pairs.csv, dedup.json and, with `html`, pairs.html."""
    text = [
        {n: str(v) if n[2:] in _COLUMNS and v is not None else v for n, v in row.items()}
        for row in rows
    ]
    write_parquet(out / "pairs.parquet", pa.Table.from_pylist(text, schema=_SCHEMA))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(text)
    write_text(out / "pairs.csv", buffer.getvalue())
    write_json(out / "dedup.json", result)
    if options.html:
        shown = rows[: options.html_max]
        title = f"{len(rows)} suspected duplicates"
        write_page(
            out / "pairs.html", title, _sentences(result, len(shown)), _page_rows(found, shown)
        )


def _page_rows(
    found: Duplicates, rows: list[dict[str, Any]]
) -> Iterator[tuple[np.ndarray | None, np.ndarray | None, dict[str, str]]]:
    for row in rows:
        facts = {
            "hash": "–" if row["hash_bits"] is None else f"{row['hash_bits']} of 256 bits differ",
            "cosine": _cosine(row),
            "first": f"{row['a_image']} ({row['a_split']}, {row['a_label'] or 'no label'})",
            "second": f"{row['b_image']} ({row['b_split']}, {row['b_label'] or 'no label'})",
        }
        if row["same_group"]:
            facts["group"] = f"both in {row['a_group']}"
        yield _thumbnail(found.a, row["a_row"]), _thumbnail(found.b, row["b_row"]), facts


def _thumbnail(side: ComparedImages, row: int) -> np.ndarray | None:
    try:
        return side.images.read(row, SIDE, "pad")
    except BadImage:
        return None


def _cosine(row: dict[str, Any]) -> str:
    return "–" if row["cosine"] is None else f"{row['cosine']:.4f}"


def _sentences(result: dict[str, Any], n_shown: int) -> list[str]:
    either = result["duplicates"]["either"]
    of = result["b"] or result["a"]
    sentences = [
        f"{either['n']} of {result['n_b']} images of {of} ({_percent(either)}) have a near-duplicate"
        + (f" in {result['a']}." if result["b"] else " in the same set."),
        "The nearest pairs come first. A pair is a suspicion: two pictures of one lesion are near "
        "each other too.",
    ]
    if result["expected_by_chance"] is not None:
        sentences.append(
            f"The cosine alone lists about {result['expected_by_chance']:g} unrelated images at its "
            f"threshold of {result['threshold']:.4f}."
        )
    if n_shown < result["n_pairs"]:
        sentences.append(
            f"{n_shown} of {result['n_pairs']} pairs are shown; pairs.csv has all of them."
        )
    return sentences


def _percent(share_of: dict[str, float]) -> str:
    return f"{share_of['share']:.2%}, 95 % interval {share_of['low']:.2%} to {share_of['high']:.2%}"


def print_summary(
    options: DedupOptions, result: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    """Print the calibration, the shares and the nearest pairs."""
    calibration = result["calibration"]
    if calibration is not None:
        table(
            f"Top-1 cosine of {calibration['n']} images of A with images of other groups (unrelated, "
            "except for duplicates not known yet)",
            [f"{float(q):.1%}" for q in calibration["quantiles"]],
            [[f"{v:.4f}" for v in calibration["quantiles"].values()]],
        )
        say(
            f"  threshold {calibration['threshold']:.4f}: {calibration['false_share']:.1%} of them pass "
            f"it, so the cosine lists about {result['expected_by_chance']:g} images by chance"
        )
    shares = result["duplicates"]
    table(
        f"Images of {'A' if options.within else 'B'} with a near-duplicate"
        f"{'' if options.within else ' in A'} (bootstrap over groups)",
        ("found by", "images", "share"),
        [
            (name, s["n"], _percent(s))
            for name, s in shares.items()
            if name != "either" or len(shares) > 2
        ],
    )
    title = f"Pairs ({len(rows)})"
    if options.within:
        title = (
            f"Pairs ({len(rows)}; {result['n_same_group']} of one group, "
            f"{result['n_across_splits']} across splits)"
        )
    shown = [
        (r["a_image"], r["b_image"], _cosine(r), "–" if r["hash_bits"] is None else r["hash_bits"])
        for r in rows[:_SHOWN]
    ]
    second = "A again" if options.within else "B"
    table(title, ("A", second, "cosine", "bits"), shown or [("none", "", "", "")])
    if len(rows) > _SHOWN:
        say(f"  ... and {len(rows) - _SHOWN} more")
