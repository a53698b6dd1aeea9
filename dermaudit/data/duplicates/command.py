"""The verb `data dedup`: near-duplicates across two image sets, or within one."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.errors import EvidenceError, UserInputError, unknown

if TYPE_CHECKING:
    from .embeddings import Calibration, Pairs
    from .inputs import Side

FORMAT_VERSION = 1
_BY = ("both", "hash", "cosine")
_SHOWN = 20


def dedup(
    a: Annotated[Path, typer.Argument(help="a data set, or a folder of shards")],
    b: Annotated[
        Path | None, typer.Argument(help="the set looked for in A; without it: within A")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for the pairs: parquet, csv, json")
    ] = None,
    model: Annotated[str, typer.Option(help="the model that embeds")] = "dermoscopy-small",
    by: Annotated[str, typer.Option(help="both, hash, cosine")] = "both",
    threshold: Annotated[
        float | None, typer.Option(help="least cosine of a pair; calibrated on A without it")
    ] = None,
    false_share: Annotated[
        float, typer.Option(help="share of unrelated images that may pass the threshold")
    ] = 0.01,
    bits: Annotated[int, typer.Option(help="most bits of 256 in which two hashes differ")] = 24,
    turned: Annotated[
        bool, typer.Option(help="hash B mirrored and turned too (8 hashes an image)")
    ] = True,
    embeddings_a: Annotated[
        Path | None, typer.Option(help="embeddings of A, .npy or .safetensors, instead of --model")
    ] = None,
    embeddings_b: Annotated[Path | None, typer.Option(help="embeddings of B")] = None,
    ids_a: Annotated[
        Path | None, typer.Option(help="image_id of each row of --embeddings-a, one a line")
    ] = None,
    ids_b: Annotated[Path | None, typer.Option(help="the same for B")] = None,
    html: Annotated[
        bool, typer.Option("--html", help="a page with the pairs side by side")
    ] = False,
    html_max: Annotated[int, typer.Option(help="pairs on the page")] = 200,
    threads: Annotated[int, typer.Option(help="images decoded at once, threads of the model")] = 1,
    device: Annotated[str, typer.Option(help="where the model computes")] = "cpu",
    skip_lost: Annotated[
        bool, typer.Option("--skip-lost", help="go on without shards that are missing or cut off")
    ] = False,
    force: Annotated[bool, typer.Option(help="replace the pairs in --out")] = False,
) -> dict[str, Any]:
    """Find pictures that are in both sets (or twice in one): what training may have seen of a test."""
    _check_flags(
        b,
        out,
        by,
        threshold,
        false_share,
        bits,
        html,
        force,
        (embeddings_a, embeddings_b, ids_a, ids_b),
    )
    from .embeddings import calibrate, find_pairs, require_evidence
    from .inputs import embedded_rows, open_images, read_side

    # What can be refused is refused before a model is loaded or an image read: wrong names and files
    # first, too few images last.
    images_a = open_images(a, skip_lost=skip_lost)
    images_b = None if b is None else open_images(b, skip_lost=skip_lost)
    hashes, cosine, refusal = by != "cosine", by != "hash", None
    groups = images_a[0].groups
    if embeddings_a is not None:
        rows_a = embedded_rows(
            images_a[0],
            None if images_b is None else images_b[0],
            embeddings_a,
            embeddings_b,
            ids_a,
            ids_b,
        )
        groups = [groups[row] for row in rows_a]
    elif cosine:
        from dermaudit.towers import resolve

        resolve(model)
    if cosine and threshold is None:
        try:
            require_evidence(len(groups), len(set(groups)), false_share)
        except EvidenceError as error:
            refusal = _hash_alone(error, by)
            cosine = False
    tower = None
    if cosine and embeddings_a is None:
        import torch

        from dermaudit.towers import load_model

        torch.set_num_threads(threads)
        tower = load_model(model, device)
    options = {"tower": tower, "hashes": hashes, "threads": threads}
    side_a = read_side(
        a, images_a, embeddings=embeddings_a, ids=ids_a, turned=turned and b is None, **options
    )
    side_b = (
        side_a
        if b is None
        else read_side(b, images_b, embeddings=embeddings_b, ids=ids_b, turned=turned, **options)
    )
    calibration = None
    if cosine and threshold is None:
        try:
            calibration = calibrate(side_a.known.embeddings, _codes(side_a), false_share)
            threshold = calibration.threshold
        except EvidenceError as error:  # images that could not be read made them too few
            refusal = _hash_alone(error, by)
            cosine = False
    known = [
        side.known if cosine else side.known._replace(embeddings=None) for side in (side_a, side_b)
    ]
    pairs = find_pairs(
        known[0],
        None if b is None else known[1],
        threshold if cosine and threshold is not None else math.inf,
        bits,
    )
    rows = _rows(side_a, side_b, pairs)
    result = {
        "format_version": FORMAT_VERSION,
        "a": str(a),
        "b": None if b is None else str(b),
        "by": by,
        "model": None if tower is None else tower.name,
        "fingerprint": None if tower is None else tower.fingerprint,
        "cosine_refused": refusal,
        "threshold": threshold if cosine else None,
        "max_bits": bits if hashes else None,
        "turned": hashes and turned,
        "calibration": None if calibration is None else calibration._asdict(),
        # What the cosine alone would list if there were no duplicate at all.
        "expected_by_chance": None
        if calibration is None
        else round(calibration.false_share * len(side_b.rows), 1),
        "n_a": len(side_a.rows),
        "n_b": len(side_b.rows),
        "n_pairs": len(rows),
        "n_skipped": len(side_a.skipped) + (0 if b is None else len(side_b.skipped)),
        "n_same_group": sum(row["same_group"] for row in rows),
        # Of two tables each has a split of its own.
        "n_across_splits": sum(row["a_split"] != row["b_split"] for row in rows)
        if b is None
        else None,
        "duplicates": _shares(side_b, pairs, b is None, {"cosine": cosine, "hash": hashes}),
    }
    if out is not None:
        _write(out, rows, result)
        if html:
            _page(out / "pairs.html", result, side_a, side_b, pairs, rows, html_max)
    _tell(result, calibration, rows, b is None)
    return {**result, "out": None if out is None else str(out), "pairs": rows[:1000]}


def _hash_alone(error: EvidenceError, by: str) -> str:
    """Say that the cosine has no threshold and the hash goes on without it; the sentence. Without a
    hash the error stands."""
    if by != "both":
        raise error
    say(f"no cosine: {error.message}" + (f" ({error.hint})" if error.hint else ""))
    return error.message


def _check_flags(
    b: Path | None,
    out: Path | None,
    by: str,
    threshold: float | None,
    false_share: float,
    bits: int,
    html: bool,
    force: bool,
    files: tuple[Path | None, ...],
) -> None:
    embeddings_a, embeddings_b, ids_a, ids_b = files
    if by not in _BY:
        raise unknown("--by", by, _BY)
    if threshold is not None and not -1 <= threshold <= 1:
        raise UserInputError(f"--threshold {threshold} is no cosine", "give -1 to 1")
    if not 0 < false_share < 1:
        raise UserInputError(
            f"--false-share {false_share} is no share", "give more than 0, less than 1"
        )
    if not 0 <= bits <= 64:
        raise UserInputError(
            f"--bits {bits} is out of range",
            "give 0 to 64: unrelated dermoscopic images come as near as 44 of 256",
        )
    if html and out is None:
        raise UserInputError("--html needs a folder to write to", "give --out")
    if (embeddings_a is None) != (embeddings_b is None) and b is not None:
        raise UserInputError(
            "embeddings of one side only", "give both --embeddings-a and --embeddings-b, or neither"
        )
    if b is None and (embeddings_b or ids_b):
        raise UserInputError("--embeddings-b and --ids-b belong to a second set", "give B")
    for flag, ids, embeddings in (
        ("--ids-a", ids_a, embeddings_a),
        ("--ids-b", ids_b, embeddings_b),
    ):
        if ids is not None and embeddings is None:
            raise UserInputError(f"{flag} belongs to a file of embeddings", "give that too")
    if out is not None and out.exists() and not out.is_dir():
        raise UserInputError(f"--out {out} is a file", "choose a folder")
    if out is not None and (out / "dedup.json").exists() and not force:
        raise UserInputError(f"{out} already holds pairs", "use --force, or another --out")


def _codes(side: Side) -> Any:
    import numpy as np

    return np.unique(np.asarray(side.column("group"), dtype=str), return_inverse=True)[1]


def _rows(side_a: Side, side_b: Side, pairs: Pairs) -> list[dict[str, Any]]:
    names = ("image", "image_id", "group", "split", "label")
    columns = [{name: side.column(name) for name in names} for side in (side_a, side_b)]
    same_table = side_a is side_b
    rows = []
    for k in range(len(pairs.a)):
        i, j = int(pairs.a[k]), int(pairs.b[k])
        row = {f"a_{name}": columns[0][name][i] for name in names}
        row |= {f"b_{name}": columns[1][name][j] for name in names}
        cosine = float(pairs.cosine[k])
        row |= {
            "a_row": int(side_a.rows[i]),
            "b_row": int(side_b.rows[j]),
            "cosine": None if math.isnan(cosine) else cosine,
            "hash_bits": None if pairs.bits[k] < 0 else int(pairs.bits[k]),
            "by_cosine": bool(pairs.by_cosine[k]),
            "by_hash": bool(pairs.by_hash[k]),
            # Groups of two tables have nothing to do with each other, whatever they are called.
            "same_group": same_table and row["a_group"] == row["b_group"],
        }
        rows.append(row)
    return rows


def _shares(side_b: Side, pairs: Pairs, within: bool, looked: dict[str, bool]) -> dict[str, Any]:
    """Of what was `looked` at only: a witness that was not asked found none and says nothing."""
    import numpy as np

    from .embeddings import share

    groups = side_b.column("group")
    found = {"either": pairs.by_cosine | pairs.by_hash}
    found |= {name: getattr(pairs, f"by_{name}") for name, asked in looked.items() if asked}
    return {
        name: share(np.concatenate([pairs.a[of], pairs.b[of]]) if within else pairs.b[of], groups)
        for name, of in found.items()
    }


def _write(out: Path, rows: list[dict[str, Any]], result: dict[str, Any]) -> None:
    import pyarrow as pa

    from dermaudit.files import write_json, write_parquet, write_text

    names = ("image", "image_id", "group", "split", "label")
    schema = pa.schema(
        [(f"{s}_{n}", pa.string()) for s in "ab" for n in names]
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
    text = [
        {name: str(v) if name[2:] in names and v is not None else v for name, v in row.items()}
        for row in rows
    ]
    write_parquet(out / "pairs.parquet", pa.Table.from_pylist(text, schema=schema))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, schema.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(text)
    write_text(out / "pairs.csv", buffer.getvalue())
    write_json(out / "dedup.json", result)


def _page(
    path: Path,
    result: dict[str, Any],
    side_a: Side,
    side_b: Side,
    pairs: Pairs,
    rows: list[dict[str, Any]],
    most: int,
) -> None:
    from ..images.decode import BadImage
    from .page import SIDE, write_page

    def thumbnail(side: Side, row: int) -> Any:
        try:
            return side.read(row, SIDE, "pad")
        except BadImage:
            return None

    def shown() -> Any:
        for row in rows[:most]:
            facts = {
                "hash": "–"
                if row["hash_bits"] is None
                else f"{row['hash_bits']} of 256 bits differ",
                "cosine": "–" if row["cosine"] is None else f"{row['cosine']:.4f}",
                "first": f"{row['a_image']} ({row['a_split']}, {row['a_label'] or 'no label'})",
                "second": f"{row['b_image']} ({row['b_split']}, {row['b_label'] or 'no label'})",
            }
            if row["same_group"]:
                facts["group"] = f"both in {row['a_group']}"
            yield thumbnail(side_a, row["a_row"]), thumbnail(side_b, row["b_row"]), facts

    title = f"{len(rows)} suspected duplicates"
    write_page(path, title, _sentences(result, min(most, len(rows))), shown())


def _sentences(result: dict[str, Any], n_shown: int) -> list[str]:
    either = result["duplicates"]["either"]
    of = result["b"] or result["a"]
    said = [
        f"{either['n']} of {result['n_b']} images of {of} ({_percent(either)}) have a near-duplicate"
        + (f" in {result['a']}." if result["b"] else " in the same set."),
        "Nearest first. A pair is a suspicion, not a verdict: two pictures of one lesion are near "
        "each other too.",
    ]
    if result["expected_by_chance"] is not None:
        said.append(
            f"The cosine alone lists about {result['expected_by_chance']:g} unrelated images at its "
            f"threshold of {result['threshold']:.4f}."
        )
    if n_shown < result["n_pairs"]:
        said.append(f"{n_shown} of {result['n_pairs']} pairs are shown; pairs.csv has them all.")
    return said


def _percent(share: dict[str, float]) -> str:
    return f"{share['share']:.2%}, 95 % interval {share['low']:.2%} to {share['high']:.2%}"


def _tell(
    result: dict[str, Any],
    calibration: Calibration | None,
    rows: list[dict[str, Any]],
    within: bool,
) -> None:
    if calibration is not None:
        table(
            f"Top-1 cosine of {calibration.n} images of A with other groups (unrelated, but for "
            "duplicates not known yet)",
            [f"{float(q):.1%}" for q in calibration.quantiles],
            [[f"{v:.4f}" for v in calibration.quantiles.values()]],
        )
        say(
            f"  threshold {calibration.threshold:.4f}: {calibration.false_share:.1%} of them pass it, so "
            f"the cosine lists about {result['expected_by_chance']:g} images by chance"
        )
    table(
        "Images of "
        + ("A" if within else "B")
        + " with a near-duplicate"
        + (" in A (bootstrap over groups)" if not within else " (bootstrap over groups)"),
        ("found by", "images", "share"),
        [
            (name, s["n"], _percent(s))
            for name, s in result["duplicates"].items()
            if name != "either" or len(result["duplicates"]) > 2
        ],
    )
    table(
        f"Pairs ({len(rows)}"
        + (
            f"; {result['n_same_group']} of one group, {result['n_across_splits']} across splits)"
            if within
            else ")"
        ),
        ("A", "B" if not within else "A again", "cosine", "bits"),
        [
            (
                r["a_image"],
                r["b_image"],
                "–" if r["cosine"] is None else f"{r['cosine']:.4f}",
                "–" if r["hash_bits"] is None else r["hash_bits"],
            )
            for r in rows[:_SHOWN]
        ]
        or [("none", "", "", "")],
    )
    if len(rows) > _SHOWN:
        say(f"  ... and {len(rows) - _SHOWN} more")
