"""Sentences of a caption, by a Punkt model (nupunkt) that knows abbreviations and decimals.

A split at every full stop would give "2", "5 cm" and "e.g" as texts for an image.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

# In addition to those of the model, which is trained on general and legal English. Units ("2 cm.") are left
# to it: they end sentences more often than not.
_ABBREVIATIONS = ["b.i.d", "t.i.d", "q.i.d", "q.d", "p.o", "h.s", "d.d"]
# "…on the arm.The lesion…": a full stop without its space, as scraped captions have it.
_GLUED = re.compile(r"(?<=[a-z]{3}[.!?])(?=[A-Z][a-z ])")
_LETTERS = re.compile(r"[^\W\d_]{2}")


def sentences(caption: str) -> list[str]:
    """Return the sentences in order, each once, without those that have no word (".", "2.")."""
    text = " ".join(_GLUED.sub(" ", caption).split())
    found = [part.strip() for part in _segmenter()(text)]
    return list(dict.fromkeys(part for part in found if _LETTERS.search(part)))


@lru_cache(maxsize=1)
def _segmenter() -> Callable[[str], list[str]]:
    from nupunkt import load_default_model

    tokenizer = load_default_model()  # a new one at each call: no other user of it is affected
    tokenizer.add_abbreviations(_ABBREVIATIONS)
    return lambda text: list(tokenizer.tokenize(text)) if text else []


def segmenter_version() -> str:
    """Return name and version of the segmenter: another version may put the boundaries elsewhere."""
    from importlib.metadata import version

    return f"nupunkt {version('nupunkt')}"
