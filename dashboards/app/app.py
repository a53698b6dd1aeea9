"""The explorer as Streamlit runs it: settings, the menu of pages, and the page that is open.

Streamlit runs this file as a script and resolves links, so imports are absolute and pages are
callables.
"""

import functools
import os

import streamlit as st

from dermaudit.dashboards.pages import session, training
from dermaudit.dashboards.pages.page import find_pages, open_page

st.set_page_config(page_title="dermaudit", layout="wide")
pages = find_pages()
if training.named_logs() and not os.environ.get(session.RUN_VARIABLE):
    # Without a run the other pages would have nothing to show.
    pages = [page for page in pages if not page.needs_run]
first, *others = (
    st.Page(
        functools.partial(open_page, page),
        title=page.title,
        # The first page has the address of the explorer itself.
        url_path="" if index == 0 else page.path,
        default=index == 0,
        visibility="hidden" if page.order is None else "visible",
    )
    for index, page in enumerate(pages)
)
# Someone may also ask for the first page by its own name.
alias = st.Page(
    functools.partial(open_page, pages[0]),
    title=pages[0].title,
    url_path=pages[0].path,
    visibility="hidden",
)
chosen = st.navigation([first, *others, alias])
with st.sidebar:
    session.blur_toggle()
    session.follow_links()
chosen.run()
