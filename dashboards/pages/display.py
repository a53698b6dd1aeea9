"""How the pages show things: exhibits, tables, grids of pictures, links, sentences about errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

import pyarrow as pa
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dermaudit.dashboards.exhibits import markup, pictures
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.exhibits.tables import Exhibit, Table, reason, word
from dermaudit.dashboards.pages import session
from dermaudit.errors import DermauditError

PER_PAGE = 24
SMALL = 40

_CSS = (
    markup.GRID_CSS
    + """
[data-testid=stMainBlockContainer] { padding-top: 3.2rem; }
.da-banner { border-left: 4px solid #0072B2; padding: 4px 12px; font-size: 15px; }
.da-caption { font-size: 14px; line-height: 1.5; max-width: 100ch; opacity: 0.9; }
.da-links { font-size: 15px; line-height: 1.9; }
.da-links a { margin-right: 14px; color: inherit; text-decoration: underline; }
h1 { font-size: 2.1rem !important; } h2 { font-size: 1.5rem !important; }
h3 { font-size: 1.25rem !important; }
@media (max-width: 1279px) {
  /* Two figures side by side need the width of two figures. */
  [class*="st-key-halves"] [data-testid=stHorizontalBlock] { flex-direction: column; }
  [class*="st-key-halves"] [data-testid=stColumn] { width: 100%; flex: 1 1 auto; }
  [data-testid=stMainBlockContainer] { padding-left: 2rem; padding-right: 2rem; }
}
"""
)


def style() -> None:
    """Add the style sheet of the pages, and the blur where it is on."""
    blur = ".da-grid img { filter: blur(9px); }" if st.session_state.get("blur") else ""
    st.html(f"<style>{_CSS}{blur}</style>")


def plain(text: str) -> str:
    """Return text for Markdown with its special characters taken literally."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#$~|" else c for c in text)


# ---- sentences


def warn(error: DermauditError) -> None:
    """Show an error as a sentence with its fix."""
    st.warning(error.message + (f"  \n{error.hint}" if error.hint else ""))


def note(error: DermauditError) -> None:
    """Show what is missing and no fault, with what can be done."""
    st.info(error.message + (f"  \n{error.hint}" if error.hint else ""))


def absent(error: DermauditError) -> None:
    """Show why an exhibit is not there."""
    st.info(reason(error))


def caption(text: str) -> None:
    """Show a definition under a figure. The grey of st.caption has less contrast than 4.5:1."""
    st.html(f'<p class="da-caption">{escape(text)}</p>')


def links(words: str, targets: Iterable[tuple[str, str]]) -> None:
    """Show a line of links (text, address) to other pages."""
    made = [
        f'<a href="{escape(to)}" target="_self" data-page>{escape(text)}</a>'
        for text, to in targets
    ]
    if made:
        st.html(f'<p class="da-links">{escape(words)} {" ".join(made)}</p>')


# ---- exhibits and tables


def halves(key: str) -> Sequence[DeltaGenerator]:
    """Return two columns, which lie one below the other on a narrow screen."""
    return st.container(key=f"halves-{key}").columns(2, gap="large")


def exhibit(
    title: str,
    make: Callable[[], Exhibit],
    run: RunView,
    *arguments: Any,
    open_table: bool = False,
    open_row: Callable[[int], str] | None = None,
) -> None:
    """Show an exhibit under its title: figure, caption, notes, table; or why there is none."""
    try:
        made = session.computed(run, title, arguments, make)
    except DermauditError as error:
        st.header(plain(title), anchor=False)
        absent(error)
        return
    st.header(plain(made.title), anchor=False)
    present(made, key=f"{title} {arguments}", open_table=open_table, open_row=open_row)


def present(
    made: Exhibit,
    *,
    key: str,
    open_table: bool = False,
    open_row: Callable[[int], str] | None = None,
) -> None:
    """Show figure, notes, caption and table of an exhibit, without its title.

    With `open_row` a click on a row of the table opens the address that it returns.
    """
    if made.figure is not None:
        st.plotly_chart(
            _coloured(made.figure),
            theme=None,
            alt=made.alt,
            key=f"figure {key}",
            config={"displaylogo": False, "displayModeBar": False},
        )
    if made.notes:
        notes = "; ".join(note.removesuffix(".") for note in made.notes)
        st.markdown(f"**Note.** {plain(notes)}.")
    caption(made.caption)
    if made.figure is None or open_table:
        small_table(made.table)
        return
    with st.expander("Table of this figure"):
        table(made.table, alt=made.title, key=f"table {key}", open_row=open_row)


def _coloured(figure: dict[str, Any]) -> dict[str, Any]:
    """Return a figure with its text in the colour of the page's text."""
    ink = "#FAFAFA" if st.context.theme.type == "dark" else "#1B1B1B"
    layout = figure["layout"]
    return {"data": figure["data"], "layout": {**layout, "font": {**layout["font"], "color": ink}}}


def _arrow(content: Table) -> pa.Table:
    """Return a Table as Arrow: numbers stay numbers (sortable), intervals become words."""
    columns = {}
    for i, name in enumerate(content.header):
        values = [row[i] for row in content.rows]
        numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
        if numbers and len(numbers) + values.count(None) == len(values):
            kind = pa.float64() if any(isinstance(v, float) for v in numbers) else pa.int64()
            columns[name] = pa.array(values, kind)
        else:
            columns[name] = pa.array(
                [None if v is None else word(v, content.digits) for v in values], pa.string()
            )
    return pa.table(columns)


def small_table(content: Table) -> None:
    """Show a table that is read, not sorted: plain HTML whose words wrap."""
    if len(content.rows) > SMALL:
        table(content, alt=", ".join(content.header))
    else:
        st.html(markup.table(content))


def table(
    content: Table,
    *,
    alt: str,
    key: str | None = None,
    open_row: Callable[[int], str] | None = None,
) -> None:
    """Show a sortable table. With `open_row` a click anywhere on a row opens its address."""
    data = _arrow(content)
    options: dict[str, Any] = {
        "height": 36 * (min(len(content.rows), 16) + 1) + 2,
        "hide_index": True,
        "column_config": {
            # The mark of a wrong name must not be cut off.
            content.header[0]: st.column_config.TextColumn(width=180),
        }
        | {
            name: st.column_config.NumberColumn(
                format="percent" if name in content.shares else f"%.{content.digits}f"
            )
            for name, kind in zip(data.column_names, data.schema.types, strict=True)
            if pa.types.is_floating(kind)
        },
        "alt": f"Table: {alt}",
        "placeholder": "–",
    }
    if open_row is None:
        st.dataframe(data, **options)
        return
    # A cell, not a row: a row is selected by a box in front of it, a cell by a click anywhere.
    state = st.dataframe(data, **options, on_select="rerun", selection_mode="single-cell", key=key)
    cells = state["selection"]["cells"]
    chosen = int(cells[0][0]) if cells else None
    if chosen is not None and st.session_state.get(f"opened {key}") != chosen:
        session.go(open_row(chosen))
    st.session_state[f"opened {key}"] = chosen


# ---- pictures


def card(
    run: RunView, row: int, *lines: str, side: int = pictures.SIDE, link: bool = True
) -> markup.Card:
    """Return the card of image `row`: picture, alt text with what is known of it, and its lines."""
    found = session.thumbnail(run, row, side)
    known = [f"image {row}", *(x for x in (run.labels[row], run.splits[row]) if x), *lines]
    return markup.Card(
        found if isinstance(found, bytes) else None,
        f"Dermoscopic {', '.join(known)}",
        (f"image {row}", *lines),
        session.address("image", row=row) if link else None,
        found if isinstance(found, str) else "",
        file=run.file_name(row),
    )


def paged_grid(run: RunView, entries: Sequence[tuple[int, tuple[str, ...]]], key: str) -> None:
    """Show pictures of (row, lines), 24 a page; turning the page draws this grid alone."""

    @st.fragment
    def show() -> None:
        pages = max(1, -(-len(entries) // PER_PAGE))
        number = (
            st.pagination(pages, key=f"{key}-page", persist_state="session") if pages > 1 else 1
        )
        part = entries[(number - 1) * PER_PAGE : number * PER_PAGE]
        st.html(
            markup.grid(
                [card(run, row, *(line for line in lines if line)) for row, lines in part],
                width=140,
            )
        )

    if entries:
        show()
    else:
        st.info("No image.")


def patch_maps(run: RunView, rows: Iterable[int], site: str, latent: int, width: int) -> None:
    """Show images beside the map of one latent over them, with the scale of the map."""
    opacity = st.slider("Opacity of the map", 0.0, 1.0, 0.55, 0.05)
    cards, last = [], None
    for row in rows:
        try:
            last = session.patch_map(run, row, site, latent, opacity)
        except DermauditError as error:
            cards.append(markup.Card(None, "", (f"image {row}",), missing=error.message))
            continue
        cards.append(markup.map_card(last, row, latent, session.address("image", row=row)))
    st.html(markup.grid(cards, width=width))
    if last is not None:
        st.html(markup.scale(last))
        caption(markup.map_caption(last))
