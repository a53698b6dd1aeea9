"""What the pages share: the open run, caches keyed by its hashes, links, and the state of filters.

The run comes through the environment (`dermaudit explore` sets it), so that the address of a page
can be reloaded or sent to somebody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from dermaudit.dashboards.exhibits import pictures
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.errors import DermauditError, UserInputError

RUN_VARIABLE = "DERMAUDIT_RUN"

# Streamlit draws a page again, without loading it, when the browser goes back or forward. A link
# within the explorer does the same: it adds its address to the history and reports the move. The
# session is kept, one step Back undoes one click, and a click with a modifier key opens a tab.
#
# Streamlit adds an entry to the history for every parameter that the server writes. Only what the user
# does makes an entry here: parameters that the server adds to a page just opened (filters that are
# kept), and the blur, which belongs to the session, replace the address instead. After a click in the
# menu Streamlit writes the parameters of the new page to the address of the old page first: this
# is left out, so that the old page keeps its entry.
_FOLLOW_LINKS = """<script>
window.dermauditOpen = (address) => {
  window.dermauditLeaves = false;
  window.dermauditActed = true;
  history.pushState({}, "", new URL(address, location.href));
  dispatchEvent(new PopStateEvent("popstate", {state: {}}));
  document.querySelector("[data-testid=stMain]")?.scrollTo(0, 0);
};
if (!window.dermauditFollows) {
  window.dermauditFollows = true;
  const unblurred = (address) => {
    const url = new URL(address, location.href);
    url.searchParams.delete("blur");
    return url.href;
  };
  const push = history.pushState.bind(history);
  history.pushState = (state, unused, address) => {
    const to = new URL(address, location.href);
    const samePage = to.pathname === location.pathname;
    if (samePage && window.dermauditLeaves) return;
    const replace = samePage && (!window.dermauditActed || unblurred(to) === unblurred(location));
    if (replace) return history.replaceState(state, unused, address);
    window.dermauditActed = window.dermauditLeaves = false;
    push(state, unused, address);
  };
  for (const event of ["click", "keydown", "input"])
    document.addEventListener(event, () => {
      window.dermauditActed = true;
      window.dermauditLeaves = false;
    }, true);
  document.addEventListener("click", (event) => {
    window.dermauditLeaves = !!event.target.closest("[data-testid=stSidebarNavLink]");
  }, true);
  addEventListener("popstate", () => { window.dermauditActed = window.dermauditLeaves = false; });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-page]");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    window.dermauditOpen(link.getAttribute("href"));
  });
}
</script>"""


# ---- the run, and what is computed from it once


@st.cache_resource(max_entries=4, show_spinner="Reading the run …")
def _open(path: str, stamp: tuple[int, int]) -> RunView:
    del stamp  # part of the cache's key: a run that was written to is opened again
    return RunView.open(path)


def run_path() -> str:
    """Return the folder of the run that is explored. UserInputError when none was named."""
    path = os.environ.get(RUN_VARIABLE)
    if not path:
        raise UserInputError(
            "no run was named", "start the explorer with: dermaudit explore --run RUN"
        )
    return path


def view() -> RunView:
    """Return the run that is explored."""
    path = run_path()
    file = Path(path) / "run.json"
    stat = file.stat() if file.is_file() else None
    return _open(path, (stat.st_mtime_ns, stat.st_size) if stat else (0, 0))


def _key(run: RunView) -> str:
    """Return what a cache entry is valid for: this folder, with these stages."""
    return f"{run.run.path.absolute()} {run.key}"


@st.cache_data(max_entries=4096, show_spinner=False)
def _thumbnail(key: str, row: int, side: int, _view: RunView) -> bytes | str:
    del key
    try:
        return pictures.thumbnail(_view, row, side)
    except DermauditError as error:
        return error.message


def thumbnail(run: RunView, row: int, side: int) -> bytes | str:
    """Return image `row` as webp bytes, or the sentence that says why it cannot be shown."""
    return _thumbnail(_key(run), row, side, run)


@st.cache_data(max_entries=256, show_spinner=False)
def _patch_map(key: str, row: int, site: str, latent: int, opacity: float, _view: RunView) -> Any:
    del key
    return pictures.patch_map(_view, row, site, latent, opacity=opacity)


def patch_map(run: RunView, row: int, site: str, latent: int, opacity: float) -> pictures.PatchMap:
    """Return the map of a latent over an image, computed once."""
    return _patch_map(_key(run), row, site, latent, opacity, run)


@st.cache_data(max_entries=256, show_spinner=False)
def _computed(key: str, name: str, arguments: tuple[Any, ...], _make: Callable[[], Any]) -> Any:
    del key, name, arguments
    try:
        return _make()
    except DermauditError as error:
        return error


def computed(run: RunView, name: str, arguments: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """Return `make()`, computed once for this run, name and arguments; raise its error again."""
    found = _computed(_key(run), name, arguments, make)
    if isinstance(found, DermauditError):
        raise found
    return found


# ---- links


def address(path: str, **parameters: Any) -> str:
    """Return the address of a page, relative to the explorer, with the blur kept on."""
    if st.session_state.get("blur"):
        parameters["blur"] = "1"
    return path + ("?" + urlencode(parameters) if parameters else "")


def latent_address(site: str, latent: int) -> str:
    """Return the address of the page of one latent."""
    return address("concept", latent=f"{site}/{latent}")


def follow_links() -> None:
    """Let links between pages work without loading the explorer again."""
    st.html(_FOLLOW_LINKS, unsafe_allow_javascript=True)


def go(to: str) -> None:
    """Open another page, as a click on a link to it does."""
    target = json.dumps(to).replace("<", "\\u003c")
    st.html(f"<script>window.dermauditOpen({target})</script>", unsafe_allow_javascript=True)


# ---- state that outlives a page: the blur, and filters


def blur_toggle() -> None:
    """Show the switch that blurs pictures. It holds for the session; the address follows it."""
    if "blur" not in st.session_state:
        st.session_state["blur"] = st.query_params.get("blur") == "1"
    st.toggle("Blur pictures", key="blur", help="Clinical pictures can be hard to look at.")
    _write_parameter("blur", "1" if st.session_state["blur"] else "", "")


def note_arrival(path: str) -> None:
    """Note whether this run of the script opens another page than the run before it."""
    st.session_state["arrived"] = st.session_state.get("page") != path
    st.session_state["page"] = path


def _write_parameter(name: str, value: str, default: str) -> None:
    if value == default:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != value:
        st.query_params[name] = value


def start_value(parameter: str, default: str, options: Sequence[str] | None = None) -> str:
    """Prepare the state of a filter whose value is part of the address; return the widget's key.

    An address that names a value, or that changes while the page stays open (Back, Forward), sets
    the filter. Otherwise the widget's own value counts, and a page that is opened again shows the
    value that it was left with.
    """
    key, last = f"widget:{parameter}", st.session_state.get(f"kept:{parameter}", default)
    linked = st.query_params.get(parameter)
    arrived = st.session_state.get("arrived", True)
    if linked is not None or not arrived:
        linked = default if linked is None else linked
        if arrived or linked != last:
            st.session_state[key] = linked
    if key not in st.session_state:
        st.session_state[key] = last
    if options and st.session_state[key] not in options:
        st.session_state[key] = default
    return key


def keep_value(parameter: str, value: str, default: str) -> str:
    """Write the value of a filter to the address and to the session, and return it."""
    st.session_state[f"kept:{parameter}"] = value
    _write_parameter(parameter, value, default)
    return value


def choice(label: str, options: Sequence[str], parameter: str) -> str:
    """Show a select box whose value is part of the address; return the value."""
    key = start_value(parameter, options[0], options)
    return keep_value(parameter, st.selectbox(label, options, key=key), options[0])
