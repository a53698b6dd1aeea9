"""What a caption may contain about an image: facts with wordings, from the columns of a manifest.

A fact is a truth column (`artifact:ruler`, `concept:streaks`), one value of `label`, or one value of
another column (`localization=back`). It is 1, 0 or unknown for each image; an unknown fact is never
mentioned and enters no loss.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermaudit.data import Manifest

_WORDINGS = Path(__file__).parents[1] / "recipes" / "wordings.toml"
#: of the ontology caption and the visual-concept caption of generated texts.
VIEW_FRAMES = ("a lesion diagnosed as {}", "a lesion that shows {}")
_FRAMES = ("dermoscopic image of {}", "dermoscopy of {}", "a lesion: {}", "{}")


@dataclass(frozen=True)
class Fact:
    """`values` (n,) 1, 0 or nan; `wordings` of presence, `denials` of absence (may be empty:
    then absence is not put into captions); `kind` concept, artifact, label or the column's name; `synonyms` are
    further wordings, kept out of every training.
    """

    name: str
    values: np.ndarray
    wordings: tuple[str, ...]
    denials: tuple[str, ...]
    kind: str = ""
    of: str = ""  # what the diagnosis is a kind of
    synonyms: tuple[str, ...] = ()


def facts_of(manifest: Manifest, columns: tuple[str, ...] = ()) -> list[Fact]:
    """Return the facts of a manifest: its truth columns, its labels, and the values of `columns`."""
    wordings = tomllib.loads(_WORDINGS.read_text(encoding="utf-8"))
    facts = []
    for name, (kind, values) in manifest.truth().items():
        names = tuple(wordings["present"].get(name, [name.replace("_", " ")]))
        values = np.asarray(values, dtype=np.float32)
        synonyms = tuple(wordings["synonyms"].get(name, ()))
        facts.append(Fact(name, values, names, _denied(names), kind, synonyms=synonyms))
    for column, kind in (("label", "label"), *((name, name) for name in columns)):
        raw = manifest.column(column, None)
        if raw is None:
            continue
        words = np.array(["" if w is None else str(w) for w in raw], dtype=object)
        for value in sorted(set(words) - {""}):
            values = np.where(words == "", np.nan, (words == value).astype(np.float32))
            table = wordings["diagnosis"] if kind == "label" else {}
            names = tuple(table.get(value, [value.replace("_", " ")]))
            of = wordings["lineage"].get(value, "") if kind == "label" else ""
            synonyms = tuple(wordings["synonyms"].get(value, ())) if kind == "label" else ()
            values = values.astype(np.float32)
            facts.append(Fact(f"{kind}={value}", values, names, (), kind, of, synonyms))
    return facts


def _denied(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return "no …" before the two shortest wordings, without their article."""
    bare = {word.removeprefix("a ").removeprefix("an ") for word in names}
    return tuple(f"no {word}" for word in sorted(bare, key=lambda word: (len(word), word))[:2])


def caption(facts: list[Fact], row: int, rng: random.Random, keep: float, deny: float) -> str:
    """Return one caption of an image: a random part of what is known, in random order and wording.

    `keep` is the chance that a present fact is mentioned, `deny` that an absent one is denied.
    """
    parts = []
    for fact in facts:
        value = fact.values[row]
        if value > 0.5 and rng.random() < keep:
            parts.append(rng.choice(fact.wordings))
        elif value < 0.5 and fact.denials and rng.random() < deny:
            parts.append(rng.choice(fact.denials))
    rng.shuffle(parts)
    return rng.choice(_FRAMES).format(", ".join(parts) if parts else "skin")


def corpus(facts: list[Fact], extra: tuple[str, ...] = ()) -> list[str]:
    """Return every wording, for the tokenizer."""
    words = (w for fact in facts for w in (*fact.wordings, *fact.denials, fact.of))
    return [*_FRAMES, *VIEW_FRAMES, *extra, *filter(None, words)]


def absent_sentence(fact: Fact, rng: random.Random) -> str:
    """Return the sentence that contrasts with a fact in the aspect loss: its denial, or the bare frame."""
    return rng.choice(fact.denials) if fact.denials else "a lesion"


def lineage(fact: Fact, rng: random.Random) -> str:
    """Return a diagnosis after the kind that it belongs to, as an ontology orders them."""
    wording = rng.choice(fact.wordings)
    return f"{fact.of}, {wording}" if fact.of else wording
