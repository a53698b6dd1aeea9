"""The figures of the results pages, as SVG text."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]


def suppression_figure(results: dict[str, Figures]) -> str:
    """Return an SVG: cross-group AUROC before and after suppression, with the interval of the change drawn
    from the figure before."""
    left, width, row, top = 150, 420, 26, 46
    body, y = [], top

    def x(value: float) -> float:
        return left + width * value

    for title, figures in zip(("phantoms", "real images"), results.values(), strict=True):
        body.append(f'<text x="8" y="{y}" font-weight="bold">{title}</text>')
        for name, s in figures["suppression"].items():
            if s["cross_group_auroc_before"] is None:
                continue
            y += row
            before, after = s["cross_group_auroc_before"], s["cross_group_auroc_after"]
            low, high = (min(1.0, max(0.0, before + change)) for change in s["ci"])
            body += [
                f'<text x="8" y="{y + 4}">{name}{" (refused)" if s["refused"] else ""}</text>',
                f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y}" y2="{y}" stroke="#0072B2" stroke-width="2"/>',
                f'<line x1="{x(s["oracle"]):.1f}" x2="{x(s["oracle"]):.1f}" y1="{y - 7}" y2="{y + 7}" '
                'stroke="#555" stroke-width="2"/>',
                f'<rect x="{x(before) - 4:.1f}" y="{y - 4}" width="8" height="8" fill="white" '
                'stroke="#D55E00" stroke-width="2"/>',
                f'<circle cx="{x(after):.1f}" cy="{y}" r="4.5" fill="#0072B2"/>',
            ]
        y += row + 8
    ticks = [
        f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="28" y2="{y - 20}" stroke="#ddd"/>'
        f'<text x="{x(v):.1f}" y="{y - 4}" text-anchor="middle">{v:g}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    legend = (
        '<text x="8" y="16">Cross-group AUROC: □ before, ● after (line: 95 % interval of the change), '
        "| a head without the trap</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 40}" height="{y + 6}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([legend, *ticks, *body])
        + "\n</svg>\n"
    )


def curve_figure(results: dict[str, Figures]) -> str:
    """Return an SVG: the cross-group AUROC over the strength of the trap, a panel for each artifact."""
    side, gap, columns = 130, 34, 4
    body: list[str] = []
    top = 58
    for title, figures in zip(("phantoms", "real images"), results.values(), strict=True):
        body.append(f'<text x="8" y="{top - 22}" font-weight="bold">{title}</text>')
        curves = list(figures["curves"].items())
        for number_, (artifact, points) in enumerate(curves):
            left = 34 + (number_ % columns) * (side + gap)
            upper = top + (number_ // columns) * (side + gap + 6)
            body.append(curve_panel(artifact, points, left, upper, side))
        top += -(-len(curves) // columns) * (side + gap + 6) + 30
    width = 34 + columns * (side + gap)
    legend = (
        '<text x="8" y="16">Cross-group AUROC over P(artifact | target) where the head is fitted, .5 to 1: '
        '<tspan fill="#D55E00">before</tspan>, <tspan fill="#0072B2">after suppression</tspan>, '
        '<tspan fill="#555">without the trap</tspan></text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top - 20}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([legend, *body])
        + "\n</svg>\n"
    )


def curve_panel(artifact: str, points: list[Figures], left: int, upper: int, side: int) -> str:
    """Return one panel, with axes from .5 to 1 and from 0 to 1."""

    def place(strength: float, value: float) -> str:
        return f"{left + 2 * (strength - 0.5) * side:.1f},{upper + (1 - value) * side:.1f}"

    lines = [
        f'<rect x="{left}" y="{upper}" width="{side}" height="{side}" fill="none" stroke="#ccc"/>',
        f'<text x="{left}" y="{upper - 5}">{artifact}</text>',
    ]
    for value in (0, 0.5, 1):
        y = upper + (1 - value) * side + 4
        lines.append(f'<text x="{left - 4}" y="{y}" text-anchor="end" fill="#555">{value:g}</text>')
    low, high = (
        [place(p["strength"], min(1.0, max(0.0, p["before"] + p["ci"][end]))) for p in points]
        for end in (0, 1)
    )
    lines.append(f'<polygon points="{" ".join(low + high[::-1])}" fill="#0072B2" opacity="0.18"/>')
    for key, colour in (("oracle", "#555"), ("before", "#D55E00"), ("after", "#0072B2")):
        path = " ".join(place(p["strength"], p[key]) for p in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "\n".join(lines)
