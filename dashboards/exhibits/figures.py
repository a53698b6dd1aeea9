"""The plotly figures of the explorer and the report: plain, colour-blind safe, never colour alone.

Each function takes plain lists and returns a figure in plotly's JSON form, {"data", "layout"}, which
`st.plotly_chart` and plotly.js accept and which is made in microseconds. Series differ by marker shape
or hatching as well as by colour (Okabe-Ito), every axis has its words, text is 14 px, and the colours
have a contrast of 3:1 on a white and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#7A7A7A"
Interval = tuple[float, float] | None
Figure = dict[str, Any]

_GRID = "rgba(128, 128, 128, 0.28)"  # visible on a white and on a dark page
_FONT = {"family": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif", "size": 14}
_CLEAR = "rgba(0, 0, 0, 0)"


def escaped(text: str) -> str:
    """Return a word of the data with the tags in it escaped, which plotly would interpret."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def plot_axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """Return an axis with its words and a faint grid; `more` are further settings of plotly."""
    axis: dict[str, Any] = {
        "automargin": True,
        "zeroline": False,
        "gridcolor": _GRID,
        "tickfont": {"size": 14},
        **more,
    }
    if title:
        axis["title"] = {"text": title, "font": {"size": 14}}
    return axis


def above(text: str, x: float, y: float, **more: Any) -> dict[str, Any]:
    """Return words that begin at x and stand above y, which is a share of the height."""
    return {
        "x": x,
        "y": y,
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "text": text,
        "showarrow": False,
        "font": {"size": 14},
        **more,
    }


def _rows(**more: Any) -> dict[str, Any]:
    """Return a vertical axis of words, the first on top."""
    return plot_axis(type="category", autorange="reversed", ticksuffix="  ", **more)


def plot(
    data: list[dict[str, Any]],
    x: dict[str, Any],
    y: dict[str, Any],
    height: int,
    *,
    legend: bool = False,
    lines: Sequence[tuple[float, str]] = (),
    **layout: Any,
) -> Figure:
    """Return a figure of traces and axes; `lines` are vertical references (position, words)."""
    shapes = [
        {
            "type": "line",
            "x0": at,
            "x1": at,
            "y0": 0,
            "y1": 1,
            "yref": "paper",
            "line": {"dash": "dot", "color": GREY, "width": 2},
        }
        for at, _ in lines
    ]
    notes = [above(text, at, 1, xshift=-2) for at, text in lines if text]
    return {
        "data": data,
        "layout": {
            "xaxis": x,
            "yaxis": y,
            "height": height,
            "font": _FONT,
            "showlegend": legend,
            "hovermode": "closest",
            "bargap": 0.25,
            "shapes": shapes,
            "annotations": notes,
            "paper_bgcolor": _CLEAR,
            "plot_bgcolor": _CLEAR,
            "margin": {"l": 8, "r": 16, "t": 38 if legend or notes else 12, "b": 8},
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 1.0,
                "yanchor": "bottom",
                "font": {"size": 14},
            },
            **layout,
        },
    }


def _dots(
    name: str,
    x: Sequence[float | None],
    y: Sequence[str] | Sequence[float],
    symbol: str,
    colour: str,
    spans: Sequence[Interval] | None = None,
    size: int = 11,
) -> dict[str, Any]:
    """Return one series of markers with their intervals."""
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "marker": {
            "symbol": symbol,
            "size": size,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        "hovertemplate": f"%{{y}}: %{{x:.3f}}<extra>{name}</extra>",
    }
    if spans is not None:
        both = list(zip(x, spans, strict=True))
        trace["error_x"] = {
            "type": "data",
            "symmetric": False,
            "thickness": 1.6,
            "width": 4,
            "color": colour,
            "array": [s[1] - v if s and v is not None else 0 for v, s in both],
            "arrayminus": [v - s[0] if s and v is not None else 0 for v, s in both],
        }
    return trace


def phi_grid(
    rows: list[str], columns: list[str], phi: list[list[float | None]], text: list[list[str]]
) -> Figure:
    """Return φ of each row with each column, the number in every cell; orange with, blue against.

    The colours are the same in every run, from -1 to 1, and follow the square root of |φ|, so that
    small values can be told apart and are not shown like large ones.
    """
    ticks = [-1.0, -0.5, -0.2, -0.05, 0.0, 0.05, 0.2, 0.5, 1.0]
    grid = {
        "type": "heatmap",
        "z": [[None if v is None else _signed_root(v) for v in line] for line in phi],
        "x": [escaped(c).replace("\n", "<br>") for c in columns],
        "y": [escaped(r) for r in rows],
        "text": text,
        "texttemplate": "%{text}",
        "zmin": -1,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "textfont": {"size": 14},
        "colorscale": [[0, BLUE], [0.5, "#F7F7F7"], [1, ORANGE]],
        "hovertemplate": "%{y}, %{x}: φ %{text}<extra></extra>",
        "colorbar": {
            "title": {"text": "φ"},
            "thickness": 12,
            "tickvals": [_signed_root(v) for v in ticks],
            "ticktext": [f"{v:+g}" if v else "0" for v in ticks],
        },
    }
    return plot(
        [grid],
        plot_axis(side="top", showgrid=False, type="category"),
        _rows(showgrid=False),
        max(260, 90 + 34 * len(rows)),
    )


def _signed_root(value: float) -> float:
    return math.copysign(math.sqrt(abs(value)), value)


def ranked(
    names: list[str],
    values: list[float | None],
    spans: list[Interval],
    *,
    axis: str,
    label: str,
    marks: dict[str, list[float | None]] | None = None,
    bounds: tuple[float, float] | None = None,
    reference: tuple[float, str] | None = None,
) -> Figure:
    """Return one dot with its interval a row, with other marks (a diamond, then a bar)."""
    names, axis = [escaped(n) for n in names], escaped(axis)
    shapes = (("diamond-open", ORANGE), ("line-ns-open", GREY))
    data = [
        _dots(name, at, names, symbol, colour, size=12)
        for (name, at), (symbol, colour) in zip((marks or {}).items(), shapes, strict=False)
    ]
    data.append(_dots(label, values, names, "circle", BLUE, spans, size=9))
    x = plot_axis(axis, **({"range": list(bounds)} if bounds else {}))
    return plot(
        data,
        x,
        _rows(),
        90 + 30 * len(names) + (30 if marks else 0),
        legend=bool(marks),
        lines=[reference] if reference else [],
    )


def histogram(
    series: dict[str, Sequence[float]], threshold: float, *, axis: str, bins: int = 40
) -> Figure:
    """Return a histogram of activations, stacked by series (solid, then hatched)."""
    top = max((max(v) for v in series.values() if len(v)), default=1.0)
    size = max(top, 1e-9) / bins
    data = [
        {
            "type": "histogram",
            "x": [round(float(v), 6) for v in values],
            "name": escaped(f"{name} (n = {len(values)})"),
            "xbins": {"start": 0, "end": top + size, "size": size},
            "marker": {"color": colour, "pattern": {"shape": pattern}, "line": {"width": 0}},
            "hovertemplate": f"%{{x}}: %{{y}} images<extra>{escaped(name)}</extra>",
        }
        for (name, values), colour, pattern in zip(
            series.items(), (BLUE, ORANGE, GREY), ("", "/", "."), strict=False
        )
    ]
    figure = plot(
        data,
        plot_axis(axis, range=[0, top + size]),
        plot_axis("images"),
        300,
        legend=len(series) > 1,
        lines=[(threshold, f"threshold {threshold:.3g}")] if threshold > 0 else [],
        barmode="stack",
    )
    if len(series) > 1:
        # Two lines above the plot: the legend, and below it the word of the threshold.
        figure["layout"]["margin"]["t"] = 58
        figure["layout"]["legend"]["y"] = 1.1
    return figure


def scores(
    names: list[str], values: list[float], *, axis: str, hatched: Sequence[bool] = ()
) -> Figure:
    """Return horizontal bars, the number at each; `hatched` bars are of another kind."""
    names = [escaped(n) for n in names]
    marks = ["/" if h else "" for h in hatched] or ["" for _ in names]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": values,
        "y": names,
        "text": [f"{v:.2f}" for v in values],
        "textposition": "outside",
        "cliponaxis": False,
        "textfont": {"size": 14},
        "marker": {"color": [ORANGE if m else BLUE for m in marks], "pattern": {"shape": marks}},
        "hovertemplate": "%{y}: %{x:.3f}<extra></extra>",
    }
    largest, least = max([*values, 0.0]), min([*values, 0.0])
    room = 0.14 * max(largest - least, 1e-9)
    span = [least - (room if least < 0 else 0), largest + room]
    return plot([bars], plot_axis(axis, range=span), _rows(), 76 + 30 * len(names))


def pairs(
    names: list[str],
    first: tuple[str, list[float | None]],
    second: tuple[str, list[float | None]],
    first_ci: list[Interval],
    second_ci: list[Interval],
    *,
    axis: str,
    bounds: tuple[float, float] | None = None,
    lines: Sequence[tuple[float, str]] = (),
) -> Figure:
    """Return two dots a row with intervals: an open square for the first series, a full circle for the second.

    A series is its name and its values. They are set a little apart, so that overlapping intervals can be told
    from each other.
    """
    names = [escaped(n) for n in names]
    at = list(range(len(names)))
    data = [
        _dots(*first, [i - 0.14 for i in at], "square-open", ORANGE, first_ci),
        _dots(*second, [i + 0.14 for i in at], "circle", BLUE, second_ci, size=9),
    ]
    for trace in data:
        trace["text"] = names
        trace["hovertemplate"] = f"%{{text}}: %{{x:.3f}}<extra>{trace['name']}</extra>"
    y = plot_axis(tickvals=at, ticktext=names, range=[len(names) - 0.5, -0.5], ticksuffix="  ")
    x = plot_axis(axis, **({"range": list(bounds)} if bounds else {}))
    return plot(data, x, y, 110 + 46 * len(names), legend=True, lines=lines)


def null_strip(control: list[float], effect: float, interval: Interval, *, axis: str) -> Figure:
    """Return an effect and its null: open circles for random sets, a full diamond for the recipe."""
    rows = ["this recipe", "random sets"]
    data = [
        _dots(rows[1], control, [rows[1]] * len(control), "circle-open", GREY, size=10),
        _dots(rows[0], [effect], [rows[0]], "diamond", BLUE, [interval], size=12),
    ]
    y = _rows(categoryorder="array", categoryarray=rows)
    return plot(data, plot_axis(axis), y, 190, lines=[(0.0, "no change")])
