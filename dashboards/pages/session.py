"""What the pages share: the run that is open, caches keyed by its hashes, and how exhibits are shown.

The run comes through the environment (`dermaudit explore` sets it), so that a page can be reloaded
or mailed as a link. Errors of the family become sentences on the page; nothing prints a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pyarrow as pa
import streamlit as st

from dermaudit.dashboards.exhibits import markup, pictures
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.exhibits.tables import Exhibit, Table, word
from dermaudit.errors import DermauditError, UserInputError

RUN_VARIABLE = "DERMAUDIT_RUN"
PER_PAGE = 24
SMALL = 40

_CSS = (
    markup.GRID_CSS
    + """
.da-banner { border-left: 4px solid #0072B2; padding: 4px 12px; font-size: 15px; }
.da-caption { font-size: 14px; line-height: 1.5; max-width: 100ch; opacity: 0.9; }
.wide { overflow-x: auto; }
.wide table { border-collapse: collapse; font-size: 14px; line-height: 1.4; }
.wide th, .wide td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top;
  border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.4); }
.wide th { font-weight: 600; }
.wide .num { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.da-links { font-size: 15px; line-height: 1.9; }
.da-links a { margin-right: 14px; color: inherit; text-decoration: underline; }
"""
)


@st.cache_resource(max_entries=4, show_spinner="Reading the run …")
def _open(path: str, stamp: tuple[int, int]) -> RunView:
    del stamp  # part of the cache's key: a run written to again is opened again
    return RunView.open(path)


def view() -> RunView:
    """The run that is explored."""
    path = os.environ.get(RUN_VARIABLE)
    if not path:
        raise UserInputError(
            "no run was named", "start the explorer with: dermaudit explore --run RUN"
        )
    file = Path(path) / "run.json"
    stat = file.stat() if file.is_file() else None
    return _open(path, (stat.st_mtime_ns, stat.st_size) if stat else (0, 0))


@st.cache_data(max_entries=4096, show_spinner=False)
def _thumbnail(key: str, row: int, side: int, _view: RunView) -> bytes | str:
    del key
    try:
        return pictures.thumbnail(_view, row, side)
    except DermauditError as error:
        return error.message


@st.cache_data(max_entries=256, show_spinner=False)
def _patch_map(key: str, row: int, site: str, latent: int, opacity: float, _view: RunView) -> Any:
    del key
    return pictures.patch_map(_view, row, site, latent, opacity=opacity)


@st.cache_data(max_entries=256, show_spinner=False)
def _computed(key: str, name: str, arguments: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    del key, name, arguments
    try:
        return _make()
    except DermauditError as error:
        return error


def _key(run: RunView) -> str:
    """What a cache entry is valid for: this folder, with these stages."""
    return f"{run.run.path.absolute()} {run.key}"


def computed(run: RunView, name: str, arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """`make()`, kept for this run, name and arguments; an error of the family is raised again."""
    found = _computed(_key(run), name, arguments, make)
    if isinstance(found, DermauditError):
        raise found
    return found


def patch_map(run: RunView, row: int, site: str, latent: int, opacity: float) -> pictures.PatchMap:
    return _patch_map(_key(run), row, site, latent, opacity, run)


def page(title: str, body: Callable[..., None], *, alone: bool = False) -> None:
    """One page: style, banner, title, then `body`; a run that cannot be read is a sentence.
    With `alone` the page goes on without a run: `body` is given None."""
    st.html(f"<style>{_CSS}</style>")
    st.title(plain(title))
    try:
        run = _run_or_none(alone)
        name = "" if run is None else escape(str(run.run.meta.get("name")))
        of_run = "" if run is None else f" Run <strong>{name}</strong>, {word(run.n)} images."
        st.html(f'<p class="da-banner">{markup.RESEARCH_USE}.{of_run}</p>')
        body(run)
    except DermauditError as error:
        tell(error)


def _run_or_none(alone: bool) -> RunView | None:
    if alone and not os.environ.get(RUN_VARIABLE):
        return None
    try:
        return view()
    except DermauditError as error:
        if not alone:
            raise
        tell(error)
        return None


def tell(error: DermauditError) -> None:
    """An error as a sentence with its mend."""
    st.warning(error.message + (f"  \n{error.hint}" if error.hint else ""))


def exhibit(
    title: str, make: Callable[[], Exhibit], run: RunView, *arguments: Any, open_table: bool = False
) -> None:
    """Show an exhibit under its title: figure, caption, notes, table; or why there is none."""
    st.subheader(title)
    try:
        made = computed(run, title, arguments, make)
    except DermauditError as error:
        st.info(f"Not measured: {error.message}" if error.exit_code == 3 else error.message)
        return
    present(made, open_table=open_table)


def present(made: Exhibit, *, title: bool = False, open_table: bool = False) -> None:
    """An exhibit that is made: figure, notes, caption, table; with `title`, under its own."""
    if title:
        st.subheader(plain(made.title))
    if made.figure is not None:
        st.plotly_chart(
            _coloured(made.figure),
            theme=None,
            alt=made.alt,
            # Two figures may hold the same numbers; Streamlit then asks for names that differ.
            key=made.title if title else None,
            config={"displaylogo": False, "displayModeBar": False},
        )
    if made.notes:
        st.markdown("**Note.** " + plain("; ".join(made.notes)) + ".")
    caption(made.caption)
    if made.figure is None or open_table:
        small_table(made.table)
    else:
        with st.expander("Table of this figure"):
            table(made.table, alt=made.title)


def note(error: DermauditError) -> None:
    """What is missing and no fault, with what can be done."""
    st.info(error.message + (f"  \n{error.hint}" if error.hint else ""))


def caption(text: str) -> None:
    """A definition under a figure. Not st.caption: its grey keeps less than 4.5:1."""
    st.html(f'<p class="da-caption">{escape(text)}</p>')


def _coloured(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure with its words in the page's own ink (plotly's grey is too faint on either)."""
    ink = "#FAFAFA" if st.context.theme.type == "dark" else "#1B1B1B"
    layout = figure["layout"]
    return {"data": figure["data"], "layout": {**layout, "font": {**layout["font"], "color": ink}}}


def plain(text: str) -> str:
    """Text for Markdown with its marks taken as they are."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#$~|" else c for c in text)


def arrow(content: Table) -> pa.Table:
    """A Table as Arrow: numbers stay numbers (sortable), intervals become words."""
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
    """A table that is read, not sorted: plain HTML, its words wrap and nothing is cut off."""
    if len(content.rows) > SMALL:
        table(content, alt=", ".join(content.header))
    else:
        st.html(markup.table(content))


def table(content: Table, *, alt: str, select: bool = False, key: str | None = None) -> int | None:
    """Show a sortable table; with `select` the chosen row's index is returned."""
    data = arrow(content)
    config = {
        name: st.column_config.NumberColumn(
            format="percent" if name in content.shares else f"%.{content.digits}f"
        )
        for name, kind in zip(data.column_names, data.schema.types, strict=True)
        if pa.types.is_floating(kind)
    }
    height = 36 * (min(len(content.rows), 16) + 1) + 2
    options: dict[str, Any] = {
        "height": height,
        "hide_index": True,
        "column_config": config,
        "alt": f"Table: {alt}",
        "placeholder": "–",
    }
    if not select:
        st.dataframe(data, **options)
        return None
    state = st.dataframe(data, **options, on_select="rerun", selection_mode="single-row", key=key)
    chosen = state["selection"]["rows"]
    return int(chosen[0]) if chosen else None


def latent_link(site: str, latent: int) -> str:
    """The address of a latent's page, relative to the explorer."""
    return "concepts?" + urlencode({"latent": f"{site}/{latent}"})


def card(
    run: RunView, row: int, *lines: str, side: int = pictures.SIDE, link: bool = True
) -> markup.Card:
    """The card of image `row`: picture, alt text with what is known of it, and its lines."""
    found = _thumbnail(_key(run), row, side, run)
    said = ", ".join(
        [f"image {row}", *(x for x in (run.labels[row], run.splits[row]) if x), *lines]
    )
    return markup.Card(
        found if isinstance(found, bytes) else None,
        f"Dermoscopic {said}",
        (f"image {row}", *lines),
        "image?" + urlencode({"row": row}) if link else None,
        found if isinstance(found, str) else "",
    )


def paged_grid(run: RunView, entries: Sequence[tuple[int, tuple[str, ...]]], key: str) -> None:
    """Pictures of (row, lines), 24 a page; turning the page reruns this grid alone."""

    @st.fragment
    def show() -> None:
        pages = max(1, -(-len(entries) // PER_PAGE))
        number = st.pagination(pages, key=f"{key}-page") if pages > 1 else 1
        part = entries[(number - 1) * PER_PAGE : number * PER_PAGE]
        blur = (
            "<style>.da-grid img { filter: blur(9px); }</style>"
            if st.session_state.get("blur")
            else ""
        )
        st.html(blur + markup.grid([card(run, row, *lines) for row, lines in part], width=140))

    if entries:
        show()
    else:
        st.info("No image.")


def start_value(parameter: str, default: str, options: Sequence[str] | None = None) -> str:
    """Prepare the state of a widget that a link can preset; return the key of the widget.

    The link is read once, when the page is opened: afterwards the widget's own state counts, and the
    link follows it. A value that the page had earlier in this session comes before the default.
    """
    key = f"widget:{parameter}"
    if key not in st.session_state or (options and st.session_state[key] not in options):
        linked = st.query_params.get(parameter, st.session_state.get(f"kept:{parameter}", default))
        st.session_state[key] = linked if not options or linked in options else default
    return key


def keep_value(parameter: str, value: str, default: str) -> str:
    """Write the value of a widget to the link and to the session, and return it."""
    st.session_state[f"kept:{parameter}"] = value
    if value != default:
        st.query_params[parameter] = value
    elif parameter in st.query_params:
        del st.query_params[parameter]
    return value


def choice(label: str, options: Sequence[str], parameter: str) -> str:
    """A select box whose value is part of the link."""
    key = start_value(parameter, options[0], options)
    return keep_value(parameter, st.selectbox(label, options, key=key), options[0])
