"""HTML pieces that the explorer and the report share: grids of pictures, tables, scales of maps.

They are jinja templates with automatic escaping: labels and file names are other people's text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from . import pictures
from .tables import Table

RESEARCH_USE = "Research use, not a medical device"
_HERE = Path(__file__).parent
GRID_CSS = (_HERE / "pieces.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Card:
    """One picture of a grid: webp bytes (None: `missing` says why), alt text, lines under it.

    With `map` the picture and its map lie side by side in one figure. `file` is the file of the image:
    such a name is too long to stand under a small picture, so it is the tooltip.
    """

    picture: bytes | None
    alt: str
    lines: tuple[str, ...] = ()
    link: str | None = None
    missing: str = ""
    map: bytes | None = None
    map_alt: str = ""
    file: str = ""


def _data_uri(picture: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(picture).decode("ascii")


def environment(*folders: Path) -> Environment:
    """Return the jinja environment of the templates here and in `folders`: every value is escaped."""
    made = Environment(
        loader=FileSystemLoader([_HERE, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["uri"] = _data_uri
    return made


_PIECES = environment().get_template("pieces.html").module


def _piece(name: str, *arguments: object) -> Markup:
    return getattr(_PIECES, name)(*arguments)


def grid(cards: Iterable[Card], *, width: int = 160) -> Markup:
    """Return cards side by side, as many as fit; keyboard focus goes through the links."""
    return _piece("grid", list(cards), width)


def scale_steps(made: pictures.PatchMap) -> list[tuple[tuple[int, int, int], float, float]]:
    """Return the steps of a map: colour, lower and upper bound."""
    ends = [*made.edges[1:], made.top]
    return list(zip(pictures.LEVELS, made.edges, ends, strict=True))


def scale(made: pictures.PatchMap) -> Markup:
    """Return the steps of a map with their values in words: read without colour by their order."""
    return _piece("scale", scale_steps(made))


def table(content: Table) -> Markup:
    """Return a table with a header row; numbers are set flush right, words flush left."""
    return _piece("table", content)


def map_card(made: pictures.PatchMap, row: int, latent: int, link: str | None = None) -> Card:
    """Return one figure with an image and the map of a latent over it."""
    return Card(
        made.plain,
        f"Image {row} without its map",
        (f"image {row}: {made.in_words}",),
        link,
        map=made.picture,
        map_alt=f"Map of latent {latent} over image {row}: {made.in_words}",
    )


def map_caption(made: pictures.PatchMap) -> str:
    """Return how a map is read."""
    return (
        "Activation of each patch, from the stored activations and the SAE's weights, on an "
        f"absolute scale: 0 to {made.top:.2f}, the latent's largest in this run; the latent fires "
        f"{made.fires}. Outlined: patches in which it fires; outlined twice as thick: 60 % of the "
        "largest and more. A patch has seen its neighbours, so a map shows where the model holds "
        "the information, not the outline of the thing."
    )
