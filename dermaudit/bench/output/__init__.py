"""Tables of a benchmark as text, Markdown, LaTeX or Parquet, and where they are written."""
