"""The texts of an image: its raw caption, and the views that MAKE contrasts.

Views have the order raw caption, ontology caption, visual-concept caption, sub-captions; one that is
absent is None. They come from facts (columns of truth, with a random wording each time) or from the text columns
of the manifest, as `dermaudit data subcaptions` writes them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from dermaudit.data import Manifest

from .facts import VIEW_FRAMES, Fact, caption, lineage

Views = list[str | None]
COLUMNS = ("caption", "ontology_caption", "concept_caption")


class TextSource(Protocol):
    """Where captions come from. `rows` count as the training images do."""

    def raw(self, row: int, rng: random.Random) -> str:
        """Return the raw caption of an image."""
        ...

    def views(self, row: int, rng: random.Random, k: int) -> Views:
        """Return the three captions of an image and k sub-captions."""
        ...


class FactTexts:
    """Captions that are generated from facts; `keep` and `deny` as in facts.caption."""

    def __init__(self, facts: Sequence[Fact], keep: float, deny: float) -> None:
        self.facts, self.keep, self.deny = list(facts), keep, deny

    def raw(self, row: int, rng: random.Random) -> str:
        """Return the raw caption of an image."""
        return caption(self.facts, row, rng, self.keep, self.deny)

    def views(self, row: int, rng: random.Random, k: int) -> Views:
        """Sub-captions are single facts that are present; the ontology caption is the diagnosis with
        its kind; the concept caption lists the clinical signs.
        """
        present = [f for f in self.facts if f.values[row] > 0.5]
        diagnosis = next((f for f in present if f.kind == "label"), None)
        signs = [rng.choice(f.wordings) for f in present if f.kind == "concept"]
        rng.shuffle(signs)
        parts = [rng.choice(f.wordings) for f in present if f.kind != "label"]
        subs = rng.sample(parts, min(k, len(parts)))
        return [
            self.raw(row, rng),
            VIEW_FRAMES[0].format(lineage(diagnosis, rng)) if diagnosis else None,
            VIEW_FRAMES[1].format(", ".join(signs)) if signs else None,
            *subs,
            *[None] * (k - len(subs)),
        ]


class ColumnTexts:
    """Captions as the manifest's text columns hold them; blank cells are views that are not there."""

    def __init__(self, manifest: Manifest) -> None:
        names = manifest.table.column_names
        subs = sorted(
            (n for n in names if n.startswith("subcaption_") and n[11:].isdigit()),
            key=lambda n: int(n[11:]),
        )
        full = [[_text(v) for v in manifest.column(name, "")] for name in COLUMNS]
        self._full = [list(row) for row in zip(*full, strict=True)]
        columns = [[_text(v) for v in manifest.column(name, "")] for name in subs]
        self._subs = [
            [text for text in (column[i] for column in columns) if text] for i in range(manifest.n)
        ]

    def has_caption(self, row: int) -> bool:
        """Return whether an image has a raw caption."""
        return bool(self._full[row][0])

    def take(self, rows: Sequence[int]) -> ColumnTexts:
        """Return the texts of some rows."""
        other = object.__new__(ColumnTexts)
        other._full = [self._full[i] for i in rows]
        other._subs = [self._subs[i] for i in rows]
        return other

    def all(self) -> list[str]:
        """Every text, for a tokenizer of one's own."""
        return [
            t
            for full, subs in zip(self._full, self._subs, strict=True)
            for t in (*full, *subs)
            if t
        ]

    def raw(self, row: int, rng: random.Random) -> str:
        """Return the raw caption of an image."""
        return self._full[row][0] or next((t for t in self._full[row] if t), "")

    def views(self, row: int, rng: random.Random, k: int) -> Views:
        """Return the three captions of an image and k of its sub-captions."""
        subs = self._subs[row]
        # In the order of the text; where there are more than k, others each time.
        picked = sorted(rng.sample(range(len(subs)), min(k, len(subs))))
        return [*self._full[row], *(subs[i] for i in picked), *[None] * (k - len(picked))]


def _text(value: Any) -> str | None:
    text = str(value).strip() if value is not None else ""
    return text or None
