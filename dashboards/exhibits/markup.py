"""HTML pieces that the explorer and the report share: grids of pictures, tables, swatches.

Everything that comes from a run is escaped here: labels and file names are other people's text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from .tables import Table

RESEARCH_USE = "Research use, not a medical device"


@dataclass(frozen=True)
class Card:
    """One picture of a grid: webp bytes (None: `missing` says why), alt text, lines under it."""

    picture: bytes | None
    alt: str
    lines: tuple[str, ...] = ()
    link: str | None = None
    missing: str = ""


def data_uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def grid(cards: Iterable[Card], *, width: int = 160) -> str:
    """Cards side by side, as many as fit; keyboard focus goes through the links."""
    items = []
    for card in cards:
        if card.picture is None:
            shown = f'<span class="da-missing">{escape(card.missing)}</span>'
        else:
            shown = f'<img src="{data_uri(card.picture)}" alt="{escape(card.alt)}">'
        if card.link:
            shown = (
                f'<a href="{escape(card.link)}" target="_self" title="Open this image">{shown}</a>'
            )
        lines = "<br>".join(escape(line) for line in card.lines)
        items.append(f"<figure>{shown}<figcaption>{lines}</figcaption></figure>")
    return f'<div class="da-grid" style="--da-card:{width}px">{"".join(items)}</div>'


GRID_CSS = """
.da-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(var(--da-card), 1fr)); gap: 14px 12px; }
.da-grid figure { margin: 0; break-inside: avoid; }
.da-grid a { display: block; border-radius: 4px; }
.da-grid a:focus-visible { outline: 3px solid #0072B2; outline-offset: 2px; }
.da-grid img { display: block; width: 100%; max-width: calc(var(--da-card) * 1.3); height: auto; border-radius: 4px; }
.da-grid figcaption { font-size: 14px; line-height: 1.35; padding-top: 4px; overflow-wrap: anywhere; }
.da-missing { display: flex; align-items: center; min-height: 110px; padding: 8px; font-size: 14px;
  border: 1px dashed currentColor; border-radius: 4px; }
.da-scale { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 14px; margin: 6px 0; }
.da-scale span { display: inline-flex; align-items: center; gap: 6px; }
.da-scale i { width: 18px; height: 18px; display: inline-block; border: 1px solid currentColor; }
"""


def scale(colours: Iterable[tuple[int, int, int]], edges: list[float], top: float) -> str:
    """The steps of a map with their values in words: read without colour by their order."""
    ends = [*edges[1:], top]
    items = "".join(
        f'<span><i style="background:rgb({r},{g},{b})"></i>{low:.2f} – {high:.2f}</span>'
        for (r, g, b), low, high in zip(colours, edges, ends, strict=True)
    )
    return f'<div class="da-scale">{items}</div>'


def table(content: Table, *, caption: str = "") -> str:
    """A table with a header row; numbers are set flush right, words flush left."""
    right = content.numeric()

    def cell(tag: str, text: str, i: int) -> str:
        cls = ' class="num"' if right[i] else ""
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{cls}{scope}>{escape(text)}</{tag}>"

    head = "".join(cell("th", h, i) for i, h in enumerate(content.header))
    body = "".join(
        "<tr>" + "".join(cell("td", text, i) for i, text in enumerate(row)) + "</tr>"
        for row in content.words()
    )
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{said}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
