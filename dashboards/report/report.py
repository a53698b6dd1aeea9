"""The report of a run: one HTML file with everything in it, that opens without a network.

The figures are the explorer's (plotly.js stands in the file once), each with its table, n, interval
and definition. The same run gives the same bytes: no time, no random id, no path of this machine.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dermaudit import __version__
from dermaudit.errors import DermauditError
from dermaudit.files import sha256_file, write_text

from ..exhibits import latents as evidence
from ..exhibits import limits, markup, overview, pictures, suppression
from ..exhibits.run_view import POOLED, RunView, latent_title
from ..exhibits.tables import Exhibit, Table
from .stage import REPORT

FORMAT_VERSION = 1
CONCEPT_SECTIONS = 24
THUMBNAILS = 8
MAPS = 3
FLIPS = 24
_WIDTH = 690  # fits a printed A4 page at its own size
_MAP_SIDE, _THUMB_SIDE = 224, 128
_DRAW = (
    "function draw(id, figure) { Plotly.newPlot(id, figure.data, figure.layout, "
    "{displaylogo: false, displayModeBar: false}); }\n"
    # On paper nothing can be unfolded: every figure goes with its table.
    'addEventListener("beforeprint", () => '
    'document.querySelectorAll("details").forEach(d => { d.open = true; }));'
)


def write_report(
    run: Path | str, out: Path | None = None, *, force: bool = False
) -> tuple[Path, int]:
    """Write the report of a run and enter it as its stage `report`; returns (path, bytes).

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

    def make() -> tuple[list[Path], dict[str, Any]]:
        write_text(path, build(view))
        return [path], {"bytes": path.stat().st_size}

    target.perform(REPORT, _inputs(), make, reads=upstream, force=force)
    return path, path.stat().st_size


def _inputs() -> dict[str, Any]:
    """What the report is made from beside the run's stages: this package's own files."""
    here = Path(__file__).parents[1]
    names = sorted(
        p.relative_to(here).as_posix() for p in here.rglob("*") if p.suffix in (".py", ".css")
    )
    return {
        "format_version": FORMAT_VERSION,
        "code": {name: sha256_file(here / name) for name in names},
    }


def build(view: RunView) -> str:
    """The whole report as one HTML document."""
    import plotly.offline

    page = _Page(view)
    page.overview()
    page.concepts()
    page.suppressions()
    page.limits()
    name = escape(str(view.run.meta.get("name")))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    contents = "".join(
        f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title in page.contents
    )
    licence = view.data_facts.get("licence")
    licence_line = (
        f"Licence of the images: {escape(str(licence))}."
        if licence
        else "Licence of the images: not stated beside the manifest; ask before you pass this file on."
    )
    model = view.run.meta.get("model") or {}
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A browser that honours it fetches nothing, whatever is in the file.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
        f"<title>Audit of {name}</title>\n<style>\n{style}{markup.GRID_CSS}</style>\n"
        f"<script>{plotly.offline.get_plotlyjs()}</script>\n<script>{_DRAW}</script>\n</head>\n<body>\n<main>\n"
        f"<h1>Audit of {name}</h1>\n"
        f"<p>Model {escape(str(model.get('name')))}, {view.n} images.</p>\n"
        f'<p class="banner"><strong>{markup.RESEARCH_USE}.</strong> Every number is from the test '
        "split unless it says otherwise; what could not be measured is listed with its reason.</p>\n"
        f'<nav aria-label="Contents"><ul>{contents}</ul></nav>\n'
        + "\n".join(page.parts)
        + f"\n<footer><p>{licence_line}</p><p>{markup.RESEARCH_USE}. "
        f"Written by dermaudit {escape(__version__)} from the run "
        f"{name} (stages {view.key[:16]}).</p></footer>\n</main>\n</body>\n</html>\n"
    )


class _Page:
    """Collects the parts of the document in reading order, and the list of contents."""

    def __init__(self, view: RunView) -> None:
        self.view = view
        self.parts: list[str] = []
        self.contents: list[tuple[str, str]] = []
        self._figures = 0
        self._thumbnails: dict[int, bytes] = {}

    # ---- sections

    def overview(self) -> None:
        self._section("What was found")
        view = self.view
        for title, make in (
            ("Concepts with a label: the best single latent", overview.found),
            ("Names", overview.naming),
            ("Concept bottlenecks", overview.bottleneck),
            ("The run's head", overview.head),
        ):
            self._exhibit(title, functools.partial(make, view))
        self._section("The images and the model")
        self._heading("Provenance")
        self.parts.append(markup.table(overview.provenance(view)))
        for title, make in (
            ("Images", overview.counts),
            ("Skin tones", overview.skin_tones),
            ("Artifacts by label", overview.artifact_prevalence),
            ("Sparse autoencoders", overview.sae),
        ):
            self._exhibit(title, functools.partial(make, view))

    def concepts(self) -> None:
        self._section("Concepts")
        try:
            rows = evidence.concept_rows(self.view)
        except DermauditError as error:
            self._absent(error)
            return
        named = sum(bool(r["name"]) for r in rows)
        shown = self._chosen(rows)
        self.parts.append(
            f"<p>{len(rows)} latents fire, {named} of them are named. {len(shown)} are shown "
            "below: those that are the best latent of a "
            "label, then the named ones with the highest z. The table holds all.</p>"
        )
        self.parts.append(
            f'<p class="caption">{escape(evidence.CONCEPTS_CAPTION)}</p>'
            + _folded(f"All {len(rows)} latents", markup.table(evidence.concept_table(rows)))
        )
        for row in shown:
            self._concept(row)

    def suppressions(self) -> None:
        self._section("Suppression")
        view = self.view
        if not view.suppressions:
            self.parts.append('<p class="absent">Not measured: no recipe was made in this run.</p>')
        for concept in view.suppressions:
            self._heading(f"Suppressing {concept}")
            try:
                suppression.measured(view, concept)
            except DermauditError as error:
                self._absent(error)
                if view.has_recipe(concept):
                    self._exhibit(
                        "The recipe", functools.partial(suppression.latents, view, concept), level=4
                    )
                continue
            for title, make in (
                ("Before and after, by group", suppression.groups),
                ("By the edit, or by the threshold", suppression.thresholds),
                ("Against random latents", suppression.null),
                ("What it does and what it costs", suppression.cost),
                ("The recipe", suppression.latents),
            ):
                self._exhibit(title, functools.partial(make, view, concept), level=4)
            self._flips(concept)

    def limits(self) -> None:
        self._section("What could not be measured, and why")
        self.parts.append(markup.table(Table(("what", "why"), list(limits.unmeasured(self.view)))))
        self._section("Do not use this run if")
        items = "".join(f"<li>{escape(line)}</li>" for line in limits.do_not_use_if(self.view))
        self.parts.append(f"<ul>{items}</ul>")

    # ---- pieces

    def _chosen(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The latents that get a section of their own: chosen for a label first, then by z."""
        order = {r["concept"]: i for i, r in enumerate(evidence.label_choices(self.view))}
        best = sorted((r for r in rows if r["best_for"]), key=lambda r: order[r["best_for"]])
        rest = [r for r in rows if r["name"] and not r["best_for"]]
        return (best + rest)[:CONCEPT_SECTIONS]

    def _concept(self, row: dict[str, Any]) -> None:
        view, site, latent = self.view, row["site"], row["latent"]
        best = f", best for {row['best_for']}" if row["best_for"] else ""
        self._heading(f"{latent_title(row)}: latent {latent} of {site}{best}")
        top = evidence.active_rows(view, site, latent)[:THUMBNAILS]
        self.parts.append(
            markup.grid(
                [self._card(i, f"activation {value:.3g}", view.labels[i]) for i, value in top],
                width=110,
            )
        )
        if site != POOLED:
            self._maps(site, latent, [i for i, _ in top[:MAPS]])
        for title, make in (
            ("Activations", functools.partial(evidence.activations, view, row)),
            ("Rival names", functools.partial(evidence.rival_names, row)),
            ("Evidence against labels", functools.partial(evidence.against_labels, view, row)),
        ):
            self._exhibit(title, make, level=4)

    def _maps(self, site: str, latent: int, rows: Sequence[int]) -> None:
        cards, last = [], None
        for i in rows:
            try:
                last = pictures.patch_map(self.view, i, site, latent, side=_MAP_SIDE)
            except DermauditError as error:
                cards.append(markup.Card(None, "", (f"image {i}",), missing=error.message))
                continue
            said = f"image {i}: {last.in_words}"
            cards.append(markup.Card(last.picture, f"Map of latent {latent} over {said}", (said,)))
        self.parts.append(markup.grid(cards, width=220))
        if last is not None:
            self.parts.append(markup.scale(pictures.LEVELS, last.edges, last.top))
            self.parts.append(
                '<p class="caption">Activation of each patch on an absolute scale, 0 to '
                f"{last.top:.2f}, the latent's largest in this run; it fires "
                f"{last.fires}. Outlined: patches in which it fires; twice as thick: 60 "
                "% of the largest and more.</p>"
            )

    def _flips(self, concept: str) -> None:
        try:
            cases, made = suppression.flips(self.view, concept)
        except DermauditError as error:
            self._absent(error)
            return
        target = suppression.measured(self.view, concept)["target"]
        self._show(made, 4)
        shown = cases[:FLIPS]
        if len(cases) > len(shown):
            self.parts.append(
                f"<p>The first {len(shown)} of {len(cases)} are shown; "
                f"suppression/{escape(concept)}.parquet holds all.</p>"
            )
        self.parts.append(
            markup.grid(
                [
                    self._card(
                        c["row"],
                        c["kind"],
                        f"p {c['p_before']:.2f} to {c['p_after']:.2f}, "
                        + ("by the edit" if c["cause"] == "edit" else "by the moved threshold"),
                        suppression.group_words(c["group4"], concept, target),
                    )
                    for c in shown
                ],
                width=110,
            )
        )

    def _card(self, row: int, *lines: str) -> markup.Card:
        said = ", ".join(x for x in (f"image {row}", *lines) if x)
        lines = (f"image {row}", *(x for x in lines if x))
        try:
            if row not in self._thumbnails:
                self._thumbnails[row] = pictures.thumbnail(self.view, row, _THUMB_SIDE)
        except DermauditError as error:
            return markup.Card(None, "", lines, missing=error.message)
        return markup.Card(self._thumbnails[row], f"Dermoscopic {said}", lines)

    def _section(self, title: str) -> None:
        anchor = f"s{len(self.contents) + 1}"
        self.contents.append((anchor, title))
        self.parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def _heading(self, title: str, level: int = 3) -> None:
        self.parts.append(f"<h{level}>{escape(title)}</h{level}>")

    def _absent(self, error: DermauditError) -> None:
        said = "Not measured: " if error.exit_code == 3 else ""
        self.parts.append(f'<p class="absent">{escape(said + error.message)}</p>')

    def _exhibit(self, title: str, make: Callable[[], Exhibit], level: int = 3) -> None:
        try:
            made = make()
        except DermauditError as error:
            self._heading(title, level)
            self._absent(error)
            return
        self._show(made, level)

    def _show(self, made: Exhibit, level: int) -> None:
        self._heading(made.title, level)
        if made.figure is not None:
            self.parts.append(self._figure(made))
        if made.notes:
            self.parts.append(f"<p><strong>Note.</strong> {escape('; '.join(made.notes))}.</p>")
        self.parts.append(f'<p class="caption">{escape(made.caption)}</p>')
        body = markup.table(made.table)
        self.parts.append(body if made.figure is None else _folded("Table of this figure", body))

    def _figure(self, made: Exhibit) -> str:
        """A figure by plotly.js, its id a running number so that the bytes repeat."""
        self._figures += 1
        spec = json.dumps(
            {"data": made.figure["data"], "layout": {**made.figure["layout"], "width": _WIDTH}},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        # "</script>" in a label must not end the script.
        spec = spec.replace("<", "\\u003c")
        name = f"figure-{self._figures}"
        return (
            f'<div class="figure" id="{name}" role="img" aria-label="{escape(made.alt)}"></div>\n'
            f'<script>draw("{name}", {spec});</script>'
        )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
