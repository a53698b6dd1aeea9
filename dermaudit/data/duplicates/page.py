"""Suspected duplicates as one HTML file with thumbnails side by side, for the user to judge."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np

from dermaudit.files import write_text

SIDE = 160  # pixels of a thumbnail; padded, never squashed, so that two shapes can be compared

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;
 color:#1b1b1b;background:#fff}
h1{font-size:1.4rem;margin:0 0 .3rem}p{margin:.2rem 0 1rem}
ol{list-style:none;padding:0;margin:0}
li{display:grid;grid-template-columns:10rem 10rem 1fr;gap:1rem;align-items:start;
 padding:1rem 0;border-top:1px solid #ddd}
img{width:10rem;height:10rem;display:block}
dl{display:grid;grid-template-columns:auto 1fr;gap:0 1rem;margin:0}
dt{color:#666}dd{margin:0;overflow-wrap:anywhere}
@media(prefers-color-scheme:dark){body{color:#e8e8e8;background:#161616}li{border-color:#333}
 dt{color:#a0a0a0}}
@media(max-width:40rem){li{grid-template-columns:1fr 1fr}dl{grid-column:1/-1}img{width:100%;height:auto}}
"""


def write_page(
    path: Path,
    title: str,
    notes: Iterable[str],
    pairs: Iterable[tuple[np.ndarray | None, np.ndarray | None, dict[str, str]]],
) -> None:
    """Write the page; it needs no script and no network.

    `pairs`: (pixels uint8 (h, w, 3) or None where unreadable, the same of the second image, facts).
    """
    rows = []
    for number, (left, right, facts) in enumerate(pairs, start=1):
        entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
        rows.append(
            f"<li>{_picture(left, f'pair {number}, first')}{_picture(right, f'pair {number}, second')}"
            f"<dl>{entries}</dl></li>"
        )
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{paragraphs}<ol>\n"
        + "\n".join(rows)
        + "\n</ol></body></html>\n",
    )


def _picture(pixels: np.ndarray | None, alt: str) -> str:
    if pixels is None:
        return "<p>cannot be read</p>"
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{alt}" src="data:image/jpeg;base64,{data}">'
