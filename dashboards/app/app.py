"""The explorer as Streamlit runs it: settings, the pages, navigation.

Streamlit runs this file as a script and resolves links, so imports are absolute and pages are
callables. Nothing here or in a page imports torch, sae_lens or transformer_lens.
"""

import os

import streamlit as st

from dermaudit.dashboards.pages import concepts as page_concepts
from dermaudit.dashboards.pages import image as page_image
from dermaudit.dashboards.pages import overview as page_overview
from dermaudit.dashboards.pages import session
from dermaudit.dashboards.pages import suppression as page_suppression
from dermaudit.dashboards.pages import training as page_training

st.set_page_config(page_title="dermaudit", layout="wide")
pages = [
    st.Page(page_overview.show, title="Overview", url_path="overview", default=True),
    st.Page(page_concepts.show, title="Concepts", url_path="concepts"),
    st.Page(page_image.show, title="Image", url_path="image"),
    st.Page(page_suppression.show, title="Suppression", url_path="suppression"),
    st.Page(page_training.show, title="Training", url_path="training"),
]
if page_training.named_logs() and not os.environ.get(session.RUN_VARIABLE):
    # Logs alone: the other pages would have nothing to show.
    pages = [st.Page(page_training.show, title="Training", url_path="training", default=True)]
chosen = st.navigation(pages)
with st.sidebar:
    st.toggle("Blur pictures", key="blur", help="Clinical pictures can be hard to look at.")
chosen.run()
