"""Curves over time in panels: the figures of a training, where a series keeps its style on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import figures

Line = tuple[Sequence[float], Sequence[float | None]]
_LINES = tuple(
    zip(
        (figures.BLUE, figures.ORANGE, "#009E73", "#CC79A7", figures.GREY, "#9467BD"),
        ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot"),
        ("circle", "square-open", "diamond", "triangle-up-open", "x-thin-open", "star"),
        strict=True,
    )
)


def curves(
    panels: Sequence[tuple[str, Mapping[str, Line]]],
    names: Sequence[str],
    *,
    axis: str,
    from_zero: bool = False,
) -> figures.Figure:
    """Return panels (title, {name: (x, y)}) in two columns; a y of None is a gap.

    The position in `names` gives colour, dash and marker, so that a name keeps its own in every
    figure of a page.
    """
    several = len(names) > 1
    rows = -(-len(panels) // 2)
    height = 260 * rows + 20 + (30 if several else 0)
    figure = figures.plot([], {}, {}, height, legend=several)
    layout = figure["layout"]
    del layout["xaxis"], layout["yaxis"]
    few = max((len(x) for _, lines in panels for x, _ in lines.values()), default=0) <= 40
    for i, (title, lines) in enumerate(panels):
        row, column = divmod(i, 2)
        left = 0.54 * column
        right = left + 0.46 if len(panels) > 1 else 1.0
        top = 1 - row / rows - (0.0 if row == 0 else 36 / height)
        bottom = 1 - (row + 1) / rows + (52 / height if rows > 1 else 0)
        # plotly calls axis 1 x, and the others x2, x3, …
        number = "" if i == 0 else str(i + 1)
        layout[f"xaxis{number}"] = figures.plot_axis(
            axis, anchor=f"y{number}", domain=[left, right], rangemode="tozero"
        )
        layout[f"yaxis{number}"] = figures.plot_axis(
            anchor=f"x{number}",
            domain=[bottom, top],
            exponentformat="power",
            rangemode="tozero" if from_zero else "normal",
        )
        layout["annotations"].append(
            figures.above(f"<b>{figures.escaped(title)}</b>", left, top, xref="paper")
        )
        shown = {trace["legendgroup"] for trace in figure["data"]}
        figure["data"] += [
            _curve(name, line, names.index(name), title, number, few, legend=name not in shown)
            for name, line in lines.items()
        ]
    layout["margin"]["t"] = 64 if several else 34
    layout["legend"]["y"] = 1 + 26 / height
    return figure


def _curve(
    name: str, line: Line, place: int, title: str, axis: str, few: bool, *, legend: bool
) -> dict[str, Any]:
    """Return one line of a panel; `place` gives its colour, dash and marker."""
    colour, dash, symbol = _LINES[place % len(_LINES)]
    return {
        "type": "scatter",
        # A line of one point is visible only by its marker; hundreds of markers hide a line.
        "mode": "lines+markers" if few else "lines",
        "name": figures.escaped(name),
        "legendgroup": name,
        "showlegend": legend,
        "x": list(line[0]),
        "y": list(line[1]),
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "connectgaps": False,
        "line": {"color": colour, "width": 2, "dash": dash},
        "marker": {
            "symbol": symbol,
            "size": 7,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        "hovertemplate": f"{figures.escaped(title)}: %{{y:.4g}} at %{{x:,}}<extra>%{{fullData.name}}</extra>",
    }
