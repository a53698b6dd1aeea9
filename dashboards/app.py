"""The explorer as Streamlit runs it: settings, the four pages, navigation.

Streamlit runs this file as a script and resolves links, so imports are absolute and pages are
callables. Nothing here or in a page imports torch, sae_lens or transformer_lens.
"""

import streamlit as st

from dermaudit.dashboards import page_concepts, page_image, page_overview, page_suppression

st.set_page_config(page_title="dermaudit", layout="wide")
chosen = st.navigation(
    [
        st.Page(page_overview.show, title="Overview", url_path="overview", default=True),
        st.Page(page_concepts.show, title="Concepts", url_path="concepts"),
        st.Page(page_image.show, title="Image", url_path="image"),
        st.Page(page_suppression.show, title="Suppression", url_path="suppression"),
    ]
)
with st.sidebar:
    st.toggle("Blur pictures", key="blur", help="Clinical pictures can be hard to look at.")
chosen.run()
