"""The verb `data subcaptions`. Nothing heavy is imported until it runs."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.console import say, table
from dermaudit.errors import UserInputError

if TYPE_CHECKING:
    from ..manifest.manifest import Manifest

FORMAT_VERSION = 1
_MOST = 64
_SHOWN = 20  # unknown diseases that are printed
_ROWS = 20  # rows without a caption that are named


def subcaptions(
    data: Annotated[Path, typer.Argument(help="a data set: folder or table")],
    out: Annotated[Path | None, typer.Option(help="folder for the new data set")] = None,
    ontology: Annotated[
        Path | None, typer.Option(help="tree of diseases, nested JSON (that of Derm1M)")
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="words in place of the toolkit's own: JSON {concept: [terms]}, or a term a line"
        ),
    ] = None,
    max: Annotated[int, typer.Option(help="sub-captions an image at most")] = 8,
    llm: Annotated[
        str | None, typer.Option(help="model that splits captions (DERMAUDIT_LLM_URL, _KEY)")
    ] = None,
    llm_cache: Annotated[
        Path | None, typer.Option(help="folder of its answers (default: <data set>.llm)")
    ] = None,
    replace: Annotated[bool, typer.Option(help="make anew the views that are there")] = False,
    link: Annotated[
        bool, typer.Option("--link/--copy", help="with --out: link or copy images")
    ] = True,
    force: Annotated[
        bool, typer.Option(help="write into DATA, or replace the data set in --out")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="say what would be written, ask no model")] = False,
) -> dict[str, Any]:
    """Write the texts that MAKE trains on: sub-captions, ontology and visual-concept captions."""
    if not 1 <= max <= _MOST:
        raise UserInputError(f"--max {max} is not between 1 and {_MOST}", "MAKE has 8")
    if out is None and not force and not dry_run:
        raise UserInputError(
            f"{data} would be written to",
            "name a folder for a new data set with --out, or allow it with --force",
        )
    from ..manifest.convert import refuse_out

    if out is not None and not dry_run:
        # Before any work: the answers of a model cost time and money.
        refuse_out(out, force, {"source": str(data.resolve())})
    from dermaudit.files import sha256_file

    from ..manifest.manifest import Manifest
    from .concept_words import ConceptWords
    from .decompose import PROMPT_VERSION, Decomposer
    from .ontology import Ontology
    from .sentences import segmenter_version
    from .subcaptions import text_views

    tree = None if ontology is None else Ontology.load(ontology)
    words = ConceptWords.load(vocabulary)
    target = out if out is not None else data if data.is_dir() else data.parent
    decomposer = None
    if llm is not None and not dry_run:
        cache = llm_cache or target.absolute().with_name(f"{target.absolute().name}.llm")
        decomposer = Decomposer(llm, cache, max)
    manifest = Manifest.load(data)
    _refuse(data, manifest, tree is not None, out)
    done, made = text_views(
        manifest, most=max, words=words, ontology=tree, decomposer=decomposer, replace=replace
    )
    report = {
        "format_version": FORMAT_VERSION,
        "max": max,
        "segmenter": segmenter_version(),
        "ontology": None if ontology is None else ontology.name,
        "ontology_sha256": None if ontology is None else sha256_file(ontology),
        "vocabulary": None if vocabulary is None else vocabulary.name,
        "vocabulary_sha256": words.sha256(),
        "llm": None
        if decomposer is None
        else {"model": llm, "prompt": PROMPT_VERSION, **asdict(decomposer.tally)},
        **_counts(made),
    }
    if not dry_run:
        report["manifest_sha256"] = _write(data, done, out, link=link, force=force, report=report)
    _print(target, done, made, report, dry_run)
    return {"out": str(target), "dry_run": dry_run, **report}


def _refuse(data: Path, manifest: Manifest, has_tree: bool, out: Path | None) -> None:
    """UserInputError when there is nothing to write from, or nowhere to write to."""
    names = manifest.table.column_names
    if "caption" not in names and "ontology" not in names and not (has_tree and "label" in names):
        raise UserInputError(
            f"{data} has no column 'caption', and no diagnosis to look up",
            "add a column 'caption', or give --ontology for the column 'label'"
            + ("" if "label" in names else " (which is not there either)"),
        )
    if out is None and not data.is_dir() and data.name != "manifest.parquet":
        raise UserInputError(
            f"{data} is a table of its own, which is not written to",
            "name a folder for a new data set with --out",
        )
    if out is not None and out.resolve() == manifest.root.resolve():
        raise UserInputError(f"--out {out} is {data} itself", "leave --out away and use --force")


def _counts(made: Any) -> dict[str, Any]:
    told = asdict(made)
    for name in ("empty_captions", "no_sentence"):
        rows = told.pop(name)
        told[f"n_{name}"], told[f"{name}_rows"] = len(rows), rows[:_ROWS]
    return told


def _write(
    data: Path, done: Manifest, out: Path | None, *, link: bool, force: bool, report: dict[str, Any]
) -> str:
    """Write the data set; returns the hash of its manifest."""
    from dermaudit.files import read_json, write_json, write_parquet

    if out is not None:
        from ..manifest.convert import Plan, refuse_overwrite, write
        from ..manifest.tables import RawTable

        named = RawTable(done.table, done.root, data, "native")
        planned = Plan(done, named, None)
        refuse_overwrite(planned, out, force)
        written, skipped = write(planned, out, link=link, strict=False)
        report["n_skipped"] = len(skipped)
        write_json(out / "subcaptions.json", report)
        return written.sha256()
    # The table first: should this be stopped here, the same command again mends the rest.
    write_parquet(done.root / "manifest.parquet", done.table)
    write_json(done.root / "subcaptions.json", report)
    said = done.root / "data.json"
    if said.is_file():
        write_json(said, {**read_json(said), "manifest_sha256": done.sha256()})
    return done.sha256()


def _print(target: Path, done: Manifest, made: Any, report: dict[str, Any], dry_run: bool) -> None:
    n = made.n_images
    rows = [
        (view, count, f"{100 * count / n:.1f} %" if n else "", made.kept.get(view, 0))
        for view, count in made.views.items()
    ]
    table(
        f"{target}: " + ("would hold" if dry_run else "holds") + f" {n} images",
        ("view", "images", "share", "were there"),
        rows,
    )
    with_parts = sum(map(bool, done.column("subcaption_1", "")))
    say(
        f"  {made.n_subcaptions} new sub-captions"
        + (f", {with_parts} images have one" if with_parts else "")
        + (f"; {made.cut} captions had more than {report['max']} sentences" if made.cut else "")
    )
    for name, said in (
        ("empty_captions", "empty caption"),
        ("no_sentence", "caption without a sentence"),
    ):
        if n_rows := report[f"n_{name}"]:
            shown = ", ".join(str(row) for row in report[f"{name}_rows"][:5])
            say(f"  {n_rows} × {said} (row {shown}{', …' if n_rows > 5 else ''})")
    if made.no_diagnosis:
        say(f"  {made.no_diagnosis} images without a diagnosis")
    if made.denied:
        say(f"  {made.denied} concepts left out because the caption denies them")
    if report["llm"]:
        llm = report["llm"]
        bad = ", ".join(f"{why} {count}" for why, count in llm["invalid"].items())
        say(
            f"  {llm['model']}: {llm['asked']} asked, {llm['cached']} from the cache"
            + (f"; answers of no use, split into sentences instead: {bad}" if bad else "")
        )
    if made.unknown:
        table(
            f"{len(made.unknown)} diseases that the ontology lacks",
            ("disease", "images", "nearest"),
            [
                (name, one["n"], one["nearest"] or "")
                for name, one in list(made.unknown.items())[:_SHOWN]
            ],
        )
        if len(made.unknown) > _SHOWN:
            say(
                f"  ... and {len(made.unknown) - _SHOWN} more in {os.fspath(target)}/subcaptions.json"
            )
