"""`vocabulary check`: what in a vocabulary would make names or bottlenecks misleading."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from dermaudit.console import say, table
from dermaudit.errors import UserInputError

from .vocabulary import Concept, Vocabulary

#: Diagnoses that published lists of concept words contain as synonyms of clinical signs; the bundled vocabulary has
#: those of dermoscopy.
DIAGNOSES = (
    "psoriasis", "impetigo", "scabies", "urticaria", "vitiligo", "eczema", "dermatitis", "acne", "rosacea", "lupus",
    "tinea", "wart", "lentigo", "carcinoma", "melanoma", "nevus", "naevus", "keratosis", "angioma", "dermatofibroma",
    "hemangioma", "sarcoma", "lymphoma", "herpes", "zoster", "molluscum", "xanthoma", "keloid",
)  # fmt: skip
_MARKUP = re.compile(r"[<>{}\\$&#]|https?:")
_WITH_OPPOSITES = ("artifact", "clinical")


@dataclass(frozen=True)
class Finding:
    """One finding: a fault makes results wrong, a note may be meant."""

    kind: str  # fault or note
    concept: str  # the concept, or "distractors"
    what: str


def findings(vocabulary: Vocabulary) -> list[Finding]:
    """Return what is wrong with a vocabulary, faults first."""
    found: list[Finding] = []
    owner: dict[str, str] = {}
    for concept in vocabulary.concepts:
        for term in concept.terms:
            found += _of_term(concept, term)
            other = owner.setdefault(term.lower(), concept.id)
            if other != concept.id:
                found.append(Finding("fault", concept.id, f"'{term}' is a term of {other} too"))
        if len({term.lower() for term in concept.terms}) < len(concept.terms):
            found.append(Finding("note", concept.id, "a term stands twice"))
        if concept.type in _WITH_OPPOSITES and not concept.opposites:
            found.append(
                Finding("note", concept.id, "no opposites: its words are compared with none")
            )
    for word in vocabulary.distractors:
        if word.lower() in owner:
            found.append(
                Finding("fault", "distractors", f"'{word}' is a term of {owner[word.lower()]}")
            )
    return sorted(found, key=lambda one: one.kind)


def _of_term(concept: Concept, term: str) -> list[Finding]:
    found = []
    words = set(re.findall(r"\w+", term.lower()))
    if concept.type != "diagnosis" and (named := sorted(words & set(DIAGNOSES))):
        found.append(
            Finding(
                "fault",
                concept.id,
                f"'{term}' names a diagnosis ({named[0]}), and the concept is of type {concept.type}",
            )
        )
    if _MARKUP.search(term):
        found.append(Finding("fault", concept.id, f"'{term}' contains markup"))
    elif not term.isascii():
        found.append(
            Finding(
                "note", concept.id, f"'{term}' is not English; most text towers read English alone"
            )
        )
    return found


def check_vocabulary(file: str) -> dict[str, Any]:
    """Print and return the findings of a vocabulary. UserInputError if one of them is a fault."""
    vocabulary = Vocabulary.load(file)
    found = findings(vocabulary)
    kinds = dict(Counter(concept.type for concept in vocabulary.concepts))
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    say(
        f"{vocabulary.name}: {counted}; {len(vocabulary.distractors)} distractors; "
        f"sha256 {vocabulary.sha256()[:12]}…"
    )
    if found:
        table("findings", ("kind", "concept", "what"), [(f.kind, f.concept, f.what) for f in found])
    faults = [one for one in found if one.kind == "fault"]
    if faults:
        first, more = faults[0], "s" if len(faults) > 1 else ""
        raise UserInputError(
            f"{file} has {len(faults)} fault{more}; the first: concept '{first.concept}': {first.what}",
            "correct them, and check again",
        )
    return {
        "name": vocabulary.name,
        "sha256": vocabulary.sha256(),
        "concepts": kinds,
        "distractors": len(vocabulary.distractors),
        "findings": [{"concept": one.concept, "what": one.what} for one in found],
    }
