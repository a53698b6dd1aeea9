"""The script that Streamlit runs. It is not next to `pages`, which Streamlit would take for pages of its own."""
