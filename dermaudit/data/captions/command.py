"""The command `data subcaptions`. Nothing heavy is imported until it runs."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.console import say, table
from dermaudit.errors import UserInputError
from dermaudit.options import Options, option, required

if TYPE_CHECKING:
    from ..manifest.manifest import Manifest
    from .subcaptions import TextViewCounts

FORMAT_VERSION = 1
_MOST = 64
_SHOWN = 20  # unknown diseases that are printed
_ROWS = 20  # rows without a caption that are listed


@dataclass(frozen=True, kw_only=True)
class SubcaptionOptions(Options):
    """What is written, from what, and where."""

    data: Path = required("a data set: folder or table", positional=True)
    out: Path | None = option(None, "folder for the new data set")
    ontology: Path | None = option(None, "tree of diseases, nested JSON (that of Derm1M)")
    vocabulary: Path | None = option(
        None, "other words than those of the toolkit: JSON {concept: [terms]}, or a term a line"
    )
    max: int = option(8, "sub-captions an image at most")
    llm: str | None = option(None, "model that splits captions (DERMAUDIT_LLM_URL, _KEY)")
    llm_cache: Path | None = option(None, "folder of its answers (default: <data set>.llm)")
    replace: bool = option(False, "replace views that exist")
    link: bool = option(True, "with --out: link or copy images", "--link/--copy")
    force: bool = option(False, "write into DATA, or replace the data set in --out")
    dry_run: bool = option(False, "show what would be written, ask no model")

    @property
    def target(self) -> Path:
        """The folder of the data set that is written."""
        if self.out is not None:
            return self.out
        return self.data if self.data.is_dir() else self.data.parent

    def check(self) -> None:
        """Raise UserInputError for options that cannot be used; no caption is read."""
        if not 1 <= self.max <= _MOST:
            raise UserInputError(f"--max {self.max} is not between 1 and {_MOST}", "MAKE has 8")
        if self.out is None and not self.force and not self.dry_run:
            raise UserInputError(
                f"{self.data} would be written to",
                "name a folder for a new data set with --out, or allow it with --force",
            )
        if self.out is not None and not self.dry_run:
            from ..manifest.convert import check_out

            # Checked before any work: the answers of a language model cost time and money.
            check_out(self.out, {"source": str(self.data.resolve())}, self.force)


def subcaptions(options: SubcaptionOptions) -> dict[str, Any]:
    """Write the texts that MAKE trains on: sub-captions, ontology and visual-concept captions."""
    options.check()
    from dermaudit.files import sha256_file

    from ..manifest.manifest import Manifest
    from .concept_words import ConceptWords
    from .decompose import PROMPT_VERSION, Decomposer
    from .ontology import Ontology
    from .sentences import segmenter_version
    from .subcaptions import text_views

    ontology, vocabulary = options.ontology, options.vocabulary
    tree = None if ontology is None else Ontology.load(ontology)
    words = ConceptWords.load(vocabulary)
    decomposer = None
    if options.llm is not None and not options.dry_run:
        target = options.target.absolute()
        cache = options.llm_cache or target.with_name(f"{target.name}.llm")
        decomposer = Decomposer(options.llm, cache, options.max)
    manifest = Manifest.load(options.data)
    _check_manifest(options, manifest)
    done, counts = text_views(
        manifest,
        most=options.max,
        words=words,
        ontology=tree,
        decomposer=decomposer,
        replace=options.replace,
    )
    report = {
        "format_version": FORMAT_VERSION,
        "max": options.max,
        "segmenter": segmenter_version(),
        "ontology": None if ontology is None else ontology.name,
        "ontology_sha256": None if ontology is None else sha256_file(ontology),
        "vocabulary": None if vocabulary is None else vocabulary.name,
        "vocabulary_sha256": words.sha256(),
        "llm": None
        if decomposer is None
        else {"model": options.llm, "prompt": PROMPT_VERSION, **asdict(decomposer.counts)},
        **_as_json(counts),
    }
    if not options.dry_run:
        report["manifest_sha256"] = _write(options, done, report)
    _print(options, done, counts, report)
    return {"out": str(options.target), "dry_run": options.dry_run, **report}


def _check_manifest(options: SubcaptionOptions, manifest: Manifest) -> None:
    """Raise UserInputError when there is nothing to write from, or nowhere to write to."""
    data, names = options.data, manifest.table.column_names
    can_look_up = options.ontology is not None and "label" in names
    if "caption" not in names and "ontology" not in names and not can_look_up:
        raise UserInputError(
            f"{data} has no column 'caption', and no diagnosis to look up",
            "add a column 'caption', or give --ontology for the column 'label'"
            + ("" if "label" in names else " (which does not exist either)"),
        )
    if options.out is None and not data.is_dir() and data.name != "manifest.parquet":
        raise UserInputError(
            f"{data} is a table of its own, which is not written to",
            "name a folder for a new data set with --out",
        )
    if options.out is not None and options.out.resolve() == manifest.root.resolve():
        raise UserInputError(
            f"--out {options.out} is {data} itself", "leave --out away and use --force"
        )


def _as_json(counts: TextViewCounts) -> dict[str, Any]:
    report = asdict(counts)
    for name in ("empty_captions", "no_sentence"):
        rows = report.pop(name)
        report[f"n_{name}"], report[f"{name}_rows"] = len(rows), rows[:_ROWS]
    return report


def _write(options: SubcaptionOptions, done: Manifest, report: dict[str, Any]) -> str:
    """Write the data set; return the hash of its manifest."""
    from dermaudit.files import read_json, write_json, write_parquet

    if options.out is not None:
        from ..manifest.convert import ConversionPlan, check_out, write
        from ..manifest.tables import RawTable

        plan = ConversionPlan(done, RawTable(done.table, done.root, options.data, "native"), None)
        check_out(options.out, plan.identity(), options.force)
        written, skipped = write(plan, options.out, link=options.link, strict=False)
        report["n_skipped"] = len(skipped)
        write_json(options.out / "subcaptions.json", report)
        return written.sha256()
    # The table comes first: if this is stopped here, the same command again repairs the rest.
    write_parquet(done.root / "manifest.parquet", done.table)
    write_json(done.root / "subcaptions.json", report)
    description = done.root / "data.json"
    if description.is_file():
        write_json(description, {**read_json(description), "manifest_sha256": done.sha256()})
    return done.sha256()


def _print(
    options: SubcaptionOptions, done: Manifest, counts: TextViewCounts, report: dict[str, Any]
) -> None:
    n = counts.n_images
    table(
        f"{options.target}: {'would hold' if options.dry_run else 'holds'} {n} images",
        ("view", "images", "share", "existed before"),
        [
            (view, count, f"{100 * count / n:.1f} %" if n else "", counts.kept.get(view, 0))
            for view, count in counts.views.items()
        ],
    )
    with_subcaption = sum(map(bool, done.column("subcaption_1", "")))
    say(
        f"  {counts.n_subcaptions} new sub-captions"
        + (f", {with_subcaption} images have one" if with_subcaption else "")
        + (f"; {counts.cut} captions had more than {report['max']} sentences" if counts.cut else "")
    )
    for name, kind in (
        ("empty_captions", "empty caption"),
        ("no_sentence", "caption without a sentence"),
    ):
        if n_rows := report[f"n_{name}"]:
            shown = ", ".join(str(row) for row in report[f"{name}_rows"][:5])
            say(f"  {n_rows} × {kind} (row {shown}{', …' if n_rows > 5 else ''})")
    if counts.no_diagnosis:
        say(f"  {counts.no_diagnosis} images without a diagnosis")
    if counts.denied:
        say(f"  {counts.denied} concepts left out because the caption denies them")
    if report["llm"]:
        llm = report["llm"]
        unusable = ", ".join(f"{reason} {count}" for reason, count in llm["invalid"].items())
        say(
            f"  {llm['model']}: {llm['asked']} asked, {llm['cached']} from the cache"
            + (f"; unusable answers, split into sentences instead: {unusable}" if unusable else "")
        )
    if counts.unknown:
        table(
            f"{len(counts.unknown)} diseases that the ontology lacks",
            ("disease", "images", "nearest"),
            [
                (name, one["n"], one["nearest"] or "")
                for name, one in list(counts.unknown.items())[:_SHOWN]
            ],
        )
    if len(counts.unknown) > _SHOWN:
        rest = len(counts.unknown) - _SHOWN
        say(f"  ... and {rest} more in {os.fspath(options.target)}/subcaptions.json")
