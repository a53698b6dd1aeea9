"""What a page of the explorer declares, how the pages are found, and the frame that each has."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import streamlit as st

from dermaudit.dashboards import pages
from dermaudit.dashboards.exhibits import markup
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.exhibits.tables import word
from dermaudit.dashboards.pages import display, session
from dermaudit.errors import DermauditError


@dataclass(frozen=True)
class Page:
    """One page of the explorer.

    Every module of this folder that defines `PAGE` is a page; there is no list to edit.

    Attributes:
        path: the address, such as "images" for http://127.0.0.1:8501/images.
        title: the name in the menu, and the heading unless `heading` is given.
        show: draws the body of the page from a run.
        order: the place in the menu. A page without one is opened from other pages only.
        heading: returns the heading of a page about one image or one latent.
        needs_run: False for a page that is also shown without a run; `show` then receives None.
    """

    path: str
    title: str
    show: Callable[..., None]
    order: int | None = None
    heading: Callable[[RunView], str] | None = None
    needs_run: bool = True


def find_pages() -> list[Page]:
    """Return all pages, those of the menu first and in its order."""
    names = sorted(module.name for module in pkgutil.iter_modules(pages.__path__))
    modules = [importlib.import_module(f"{pages.__name__}.{name}") for name in names]
    found = [module.PAGE for module in modules if hasattr(module, "PAGE")]
    return sorted(found, key=lambda page: (page.order is None, page.order, page.path))


def open_page(page: Page) -> None:
    """Show one page: style, heading, banner, then its body. An error of the run becomes a sentence."""
    session.note_arrival(page.path)
    display.style()
    run, heading, failed = None, page.title, None
    try:
        if page.needs_run or os.environ.get(session.RUN_VARIABLE):
            run = session.view()
            heading = page.heading(run) if page.heading else page.title
    except DermauditError as error:
        failed = error
    st.title(display.plain(heading), anchor=False)
    of_run = ""
    if run is not None:
        name = escape(str(run.run.meta.get("name")))
        of_run = f" Run <strong>{name}</strong>, {word(run.n)} images."
    st.html(f'<p class="da-banner">{markup.RESEARCH_USE}.{of_run}</p>')
    if failed is not None:
        display.warn(failed)
        if page.needs_run:
            return
    try:
        page.show(run)
    except DermauditError as error:
        display.warn(error)
