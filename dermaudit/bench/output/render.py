"""Tables of a benchmark as text, Markdown, LaTeX or Parquet.

A sheet holds the formatted cells, equal in every format, and the same figures as unrounded records,
which Parquet and JSON contain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dermaudit.console import say, table
from dermaudit.errors import UserInputError, unknown
from dermaudit.files import write_parquet, write_text
from dermaudit.stats.intervals import MIN_CELL
from dermaudit.stats.paired import Comparison, Figures, least_p, plain

SUFFIX = {"text": ".txt", "markdown": ".md", "latex": ".tex", "parquet": ".parquet"}
TOO_SMALL = "n too small"
WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced acc.",
    "macro_f1": "macro-F1",
    "weighted_f1": "weighted F1",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "auroc": "AUROC",
}


@dataclass
class Sheet:
    """One table: `rows` of formatted cells under `header`; `records` are the same figures, unrounded."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Undefined figures are null in JSON and Parquet, not nan.
        self.records = [{key: _null(value) for key, value in r.items()} for r in self.records]


def _null(value: Any) -> Any:
    return plain(value) if isinstance(value, float) else value


def cell(value: float, low: float, high: float, digits: int = 3, n: int = MIN_CELL) -> str:
    """Return `0.796 [0.776, 0.815]`, "n too small" for fewer than 30 images, "–" where undefined."""
    if n < MIN_CELL:
        return TOO_SMALL
    if plain(value) is None:
        return "–"
    if plain(low) is None:
        return f"{value:.{digits}f} [–]"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def cells_of(
    figures: Figures, model: int, metrics: Sequence[str], digits: int = 3, n: int = MIN_CELL
) -> list[str]:
    """Return the cells of some metrics of one model."""
    return [
        cell(figures.points[model, k], *figures.interval(model, k), digits, n)
        for k in map(figures.metrics.index, metrics)
    ]


def figure_sheet(
    title: str,
    figures: Figures,
    shown: Sequence[str],
    n: int,
    *,
    digits: int = 3,
    what: str = "figure",
    **columns: Any,
) -> Sheet:
    """Return a sheet with one row per model and one column per metric."""
    rows = [
        (model, *cells_of(figures, m, shown, digits, n)) for m, model in enumerate(figures.models)
    ]
    header = ("model", *(WORDS.get(name, name) for name in shown))
    records = figures.records(table=what, **columns, n=n)
    if n < MIN_CELL:
        records = [{**row, "value": None, "low": None, "high": None} for row in records]
    return Sheet(title, header, rows, records=records)


def comparison_sheet(
    figures: Figures, comparisons: Sequence[Comparison], *, digits: int = 3, **columns: Any
) -> Sheet:
    """Return paired differences, p by the percentile of the bootstrap, Holm over the whole sheet."""
    rows = [
        (
            WORDS.get(c.metric, c.metric),
            f"{c.model} − {c.other}",
            cell(c.difference, c.low, c.high, digits),
            _p(c.p),
            _p(c.p_holm),
        )
        for c in comparisons
    ]
    sheet = Sheet(
        "Paired differences on the same images (two-sided p by paired bootstrap; Holm over this table)",
        ("measure", "models", "difference", "p", "p (Holm)"),
        rows,
        records=[
            {
                "table": "difference",
                **columns,
                "model": c.model,
                "other": c.other,
                "metric": c.metric,
                "value": plain(c.difference),
                "low": plain(c.low),
                "high": plain(c.high),
                "p": plain(c.p),
                "p_holm": plain(c.p_holm),
            }
            for c in comparisons
        ],
    )
    floor = least_p(figures.n_draws, len(comparisons))
    if floor > 0.05:
        sheet.notes.append(
            f"{figures.n_draws} draws cannot show p (Holm) below {floor:.3f} for "
            f"{len(comparisons)} comparisons: use more --draws, or --reference MODEL"
        )
    return sheet


def _p(value: float) -> str:
    return "–" if plain(value) is None else f"{value:.4f}"


# ---- formats


def check_output(form: str | None, out: Path | None) -> str:
    """Return the format of a table that goes to the file `out` (to the screen without).

    Errors: UserInputError for an unknown format, and for Parquet without a file.
    """
    if form is None and out is not None:
        by_suffix = {suffix: name for name, suffix in SUFFIX.items()}
        if out.suffix not in by_suffix:
            raise UserInputError(
                f"the format of --out {out} does not follow from its name",
                f"end it in {', '.join(SUFFIX.values())}, or give --format",
            )
        return by_suffix[out.suffix]
    form = check_format(form or "text")
    if form == "parquet" and out is None:
        raise UserInputError("--format parquet needs a file", "give --out TABLE.parquet")
    return form


def check_format(form: str) -> str:
    """Return `form`. Errors: UserInputError for an unknown format."""
    if form not in SUFFIX:
        raise unknown("format", form, SUFFIX)
    return form


def save(sheets: Sequence[Sheet], form: str, path: Path) -> None:
    """Write the sheets into one file, whole or not at all."""
    if form == "parquet":
        import pyarrow as pa

        write_parquet(path, pa.Table.from_pylist(_even([r for s in sheets for r in s.records])))
    else:
        write_text(path, RENDER[form](sheets))


def show(sheets: Sequence[Sheet], form: str = "text") -> None:
    """Print the sheets for people."""
    if form != "text":
        say(RENDER[form](sheets).rstrip())
        return
    for sheet in sheets:
        table(sheet.title, sheet.header, sheet.rows)
        for note in sheet.notes:
            say(f"  {note}")


def text(sheets: Sequence[Sheet]) -> str:
    """Return the sheets as aligned text."""
    parts = []
    for sheet in sheets:
        cells = [[str(c) for c in row] for row in (sheet.header, *sheet.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(sheet.header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in cells]
        rule = "  ".join("-" * w for w in widths)
        body = [lines[0], rule, *lines[1:], *sheet.notes]
        parts.append("\n".join([sheet.title, *(line.rstrip() for line in body)]))
    return "\n\n".join(parts) + "\n"


def markdown(sheets: Sequence[Sheet]) -> str:
    """Return the sheets as Markdown tables."""
    parts = []
    for sheet in sheets:
        rows = [sheet.header, ["---"] * len(sheet.header), *sheet.rows]
        lines = ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]
        parts.append("\n".join([f"**{sheet.title}**", "", *lines]))
        parts.extend(sheet.notes)
    return "\n\n".join(parts) + "\n"


def latex(sheets: Sequence[Sheet]) -> str:
    """Return the sheets as LaTeX tables with booktabs."""
    parts = []
    for sheet in sheets:
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (sheet.header, *sheet.rows)]
        caption = ". ".join(_escaped(s) for s in (sheet.title, *sheet.notes))
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    r"\centering",
                    rf"\caption{{{caption}}}",
                    rf"\begin{{tabular}}{{{'l' * len(sheet.header)}}}",
                    r"\toprule",
                    lines[0],
                    r"\midrule",
                    *lines[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "% needs \\usepackage{booktabs}\n" + "\n\n".join(parts) + "\n"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "−": "$-$", "–": "--", "→": r"$\rightarrow$", "≤": r"$\leq$", "≥": r"$\geq$",
    "<": r"$<$", ">": r"$>$", "…": r"\ldots{}",
}  # fmt: skip


def _escaped(value: object) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in str(value))


RENDER = {"text": text, "markdown": markdown, "latex": latex}


def _even(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records with equal keys: pyarrow takes the columns from the first one."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return [{name: record.get(name) for name in names} for record in records]
