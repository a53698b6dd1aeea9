"""The report of a run: one HTML file with everything in it, that opens without a network.

The figures are the explorer's (plotly.js is in the file once), each with its table, n, interval and
definition. The same run gives the same bytes: no time, no random id, no path of this machine.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dermaudit import __version__
from dermaudit.errors import DermauditError
from dermaudit.files import sha256_file, write_text
from dermaudit.run.records import Made

from ..exhibits import latents, limits, markup, overview, pictures, suppression, verdict
from ..exhibits.run_view import POOLED, RunView, latent_title
from ..exhibits.tables import Exhibit, Table, reason, site_title
from .stage import REPORT

FORMAT_VERSION = 1
CONCEPT_SECTIONS = 24
THUMBNAILS = 8
MAPS = 3
FLIPS = 24
LONG_TABLE = 40  # rows; a longer table is folded, and is not printed
_WIDTH, _NARROW, _LOW = 690, 340, 260  # px: one figure; width and height of one of three
_MAP_SIDE, _THUMB_SIDE = 224, 128
_HERE = Path(__file__).parent
_SOURCES = (".py", ".css", ".html", ".js")


def write_report(
    run: Path | str, out: Path | None = None, *, force: bool = False
) -> tuple[Path, int]:
    """Write the report of a run and enter it as its stage `report`; return (path, bytes).

    A report written elsewhere (`out`) is not entered: the run's record names only its own files.
    Nothing is done again where the stage is fresh, unless `force`.
    """
    view = RunView.open(run)
    target = view.run
    upstream = target.current_stages(besides="report")
    if out is not None:
        write_text(out, build(view))
        return out, out.stat().st_size
    path = target.files.report

    def make() -> Made[dict[str, Any]]:
        write_text(path, build(view))
        return [path], {"bytes": path.stat().st_size}

    target.perform(REPORT, _inputs(), make, reads=upstream, force=force)
    return path, path.stat().st_size


def _inputs() -> dict[str, Any]:
    """Return what the report is made from beside the run's stages: this package's own files."""
    here = _HERE.parent
    names = sorted(p.relative_to(here).as_posix() for p in here.rglob("*") if p.suffix in _SOURCES)
    return {
        "format_version": FORMAT_VERSION,
        "code": {name: sha256_file(here / name) for name in names},
    }


def build(view: RunView) -> str:
    """Return the report as HTML."""
    from plotly.offline import get_plotlyjs

    model = view.run.meta.get("model") or {}
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    style = markup.GRID_CSS + (_HERE / "report.css").read_text(encoding="utf-8")
    return (
        markup.environment(_HERE)
        .get_template("report.html")
        .render(
            name=str(view.run.meta.get("name")),
            model=str(model.get("name")),
            n=view.n,
            licence=view.data_facts.get("licence"),
            stages=view.key[:16],
            version=__version__,
            research_use=markup.RESEARCH_USE,
            long=LONG_TABLE,
            # Text of this package and of plotly, not of a run: it is not escaped.
            style=Markup(style),
            script=Markup(script),
            plotly=Markup(get_plotlyjs()),
            sections=_Sections(view).all(),
        )
    )


@dataclass(frozen=True)
class Part:
    """What stands under one heading; the template shows the fields that are set, in this order."""

    title: str = ""
    level: int = 3
    text: str = ""
    missing: str = ""
    cards: Sequence[markup.Card] = ()
    width: int = 110
    steps: Sequence[tuple[tuple[int, int, int], float, float]] = ()
    exhibit: Exhibit | None = None
    anchor: str = ""  # the id of the figure
    figure: Markup | None = None  # the figure as JSON
    caption: str = ""
    items: Sequence[str] = ()
    parts: Sequence[Part] = ()  # side by side


@dataclass(frozen=True)
class Section:
    """A section of the report: a title and its parts."""

    title: str
    parts: list[Part]


Make = Callable[[], Exhibit]


class _Sections:
    """Makes the sections of the report of one run."""

    def __init__(self, view: RunView) -> None:
        self.view = view
        self._figures = 0
        self._thumbnails: dict[int, bytes] = {}

    def all(self) -> list[Section]:
        """Return the sections in reading order."""
        view = self.view
        found: list[tuple[str, Make]] = [
            (title, functools.partial(make, view))
            for title, make in (
                ("How well one latent detects each labelled concept", overview.found),
                ("How many latents have a name", overview.naming),
                ("Predicting the target from a few concepts", overview.bottleneck),
                ("The classifier of this run", overview.head),
            )
        ]
        data: list[tuple[str, Make]] = [
            (title, functools.partial(make, view))
            for title, make in (
                ("Model, data and versions", overview.provenance),
                ("Images of each label", overview.counts),
                ("Images of each skin tone", overview.skin_tones),
                ("Which artifacts go with which label", overview.artifact_prevalence),
                ("Sparse autoencoders", overview.sae),
            )
        ]
        judged: list[tuple[str, Make]] = [
            ("Which artifacts the model leans on", functools.partial(verdict.verdict, view)),
            (
                "How far the prediction moves with the artifact",
                functools.partial(verdict.leaning, view),
            ),
        ]
        missing = Table(("what", "why"), list(limits.unmeasured(view)))
        return [
            Section("Verdict", [self._part(*each) for each in judged]),
            Section("What was found", [self._part(*each) for each in found]),
            Section("The images and the model", [self._part(*each) for each in data]),
            Section("Concepts", self._concepts()),
            Section("Suppression", self._suppressions()),
            Section(limits.UNMEASURED, [Part(exhibit=Exhibit("", "", missing))]),
            Section(limits.DO_NOT_USE, [Part(items=limits.do_not_use_if(view))]),
        ]

    # ---- concepts

    def _concepts(self) -> list[Part]:
        try:
            rows = latents.concept_rows(self.view)
        except DermauditError as error:
            return [Part(missing=reason(error))]
        named = sum(bool(r["name"]) for r in rows)
        shown = self._chosen(rows)
        everything = Part(
            text=f"{len(rows)} latents fire, {named} of them are named. {len(shown)} are shown "
            "below: those that are the best latent of a label, then the named ones with the highest "
            "z. The table holds all; it is not printed.",
            exhibit=Exhibit("all latents", latents.CONCEPTS_CAPTION, latents.concept_table(rows)),
        )
        return [everything, *(self._concept(row) for row in shown)]

    def _chosen(self, rows: list[latents.LatentRow]) -> list[latents.LatentRow]:
        """Return the latents that get a heading: first those chosen for a label, then by z."""
        order = {r.concept: i for i, r in enumerate(latents.label_choices(self.view))}
        best = sorted((r for r in rows if r["best_for"]), key=lambda r: order[r["best_for"] or ""])
        rest = [r for r in rows if r["name"] and not r["best_for"]]
        return (best + rest)[:CONCEPT_SECTIONS]

    def _concept(self, row: latents.LatentRow) -> Part:
        view, site, latent = self.view, row["site"], row["latent"]
        best = f", best for {row['best_for']}" if row["best_for"] else ""
        top = latents.active_rows(view, site, latent)[:THUMBNAILS]
        cards = [self._card(i, f"activation {value:.3g}", view.labels[i]) for i, value in top]
        figures = [
            self._part(title, make, level=4, width=_NARROW)
            for title, make in (
                ("Activations", functools.partial(latents.activations, view, row)),
                ("Words that fit best", functools.partial(latents.rival_names, row)),
                (
                    "How well it ranks labelled images",
                    functools.partial(latents.against_labels, view, row),
                ),
            )
        ]
        part = Part(
            f"{latent_title(row)}: latent {latent}, {site_title(site)}{best}",
            cards=cards,
            width=100,
            parts=figures,
        )
        return part if site == POOLED else self._with_maps(part, row, [i for i, _ in top[:MAPS]])

    def _with_maps(self, part: Part, row: latents.LatentRow, images: Sequence[int]) -> Part:
        """Return the part of a latent with maps over its strongest images beside the images."""
        latent, cards, last = row["latent"], [], None
        for i in images:
            try:
                last = pictures.patch_map(self.view, i, row["site"], latent, side=_MAP_SIDE)
            except DermauditError as error:
                cards.append(markup.Card(None, "", (f"image {i}",), missing=error.message))
                continue
            alt = f"Map of latent {latent} over image {i}: {last.in_words}"
            cards.append(markup.Card(last.picture, alt, (f"map of image {i}", last.in_words)))
        part = replace(part, cards=[*part.cards, *cards])
        if last is None:
            return part
        return replace(part, steps=markup.scale_steps(last), caption=markup.map_caption(last))

    # ---- suppression

    def _suppressions(self) -> list[Part]:
        if not self.view.suppressions:
            return [Part(missing="Not measured: no recipe was made in this run.")]
        return [part for concept in self.view.suppressions for part in self._suppression(concept)]

    def _suppression(self, concept: str) -> list[Part]:
        view = self.view

        def part(title: str, make: Callable[..., Exhibit], width: int = _WIDTH) -> Part:
            return self._part(title, functools.partial(make, view, concept), 4, width)

        first = Part(f"Suppressing {concept}")
        try:
            suppression.measured(view, concept)
        except DermauditError as error:
            first = replace(first, missing=reason(error))
            if view.has_recipe(concept):
                return [first, part("Suppressed latents", suppression.latents)]
            return [first]
        beside = [part("Compared with random latents", suppression.null, _NARROW)]
        if view.has_recipe(concept):
            beside.append(part("Suppressed latents", suppression.latents))
        return [
            first,
            part("The effect at its three operating points", suppression.effect),
            part("Sensitivity and specificity of each group", suppression.groups),
            Part(level=4, parts=beside),
            part(f"{concept} drawn onto images", suppression.insertion),
            self._flips(concept),
        ]

    def _flips(self, concept: str) -> Part:
        make = functools.partial(suppression.flips, self.view, concept)
        part = self._part("Images whose decision changes", make, 4)
        if part.exhibit is None:
            return part
        cases = suppression.cases(self.view, concept)
        shown = cases[:FLIPS]
        rest = (
            f"The first {len(shown)} of {len(cases)} are shown; "
            f"suppression/{concept}.parquet holds all."
        )
        cards = [
            self._card(c["row"], *suppression.case_lines(self.view, concept, c)) for c in shown
        ]
        return replace(part, cards=cards, caption=rest if len(cases) > len(shown) else "")

    # ---- pieces

    def _card(self, row: int, *lines: str) -> markup.Card:
        words = (f"image {row}", *(x for x in lines if x))
        try:
            if row not in self._thumbnails:
                self._thumbnails[row] = pictures.thumbnail(self.view, row, _THUMB_SIDE)
        except DermauditError as error:
            return markup.Card(None, "", words, missing=error.message)
        alt, file = f"Dermoscopic {', '.join(words)}", self.view.file_name(row)
        return markup.Card(self._thumbnails[row], alt, words, file=file)

    def _part(self, title: str, make: Make, level: int = 3, width: int = _WIDTH) -> Part:
        """Return the part of one exhibit, or under `title` the reason why there is none."""
        try:
            made = make()
        except DermauditError as error:
            return Part(title, level, missing=reason(error))
        if made.figure is None:
            return Part(made.title, level, exhibit=made)
        # The id of a figure is a running number, so that the bytes repeat.
        self._figures += 1
        layout = {**made.figure["layout"], "width": width}
        if width == _NARROW:
            layout["height"] = min(layout["height"], _LOW)
        spec = json.dumps(
            {"data": made.figure["data"], "layout": layout},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        # "</script>" in a label must not end the script.
        figure = Markup(spec.replace("<", "\\u003c"))
        return Part(
            made.title, level, exhibit=made, anchor=f"figure-{self._figures}", figure=figure
        )
