"""Concepts that are scored, and their words: templates, terms, and the columns of the same name.

No torch here: templates and terms are checked before a model is opened. Terms are MAKE's
(arXiv 2505.09372, a JSON of concept -> terms); terms that name a disease are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermaudit.data import Manifest
from dermaudit.data.captions.concept_words import is_word_list
from dermaudit.errors import UserInputError
from dermaudit.files import read_json
from dermaudit.stats.intervals import MIN_CELL

from .prompts import built_in_classes

#: (with the term, without it).
TEMPLATES: dict[str, tuple[tuple[str, str], ...]] = {
    "skin": (
        ("This is skin image of {}", "This is skin image"),
        ("This is dermatology image of {}", "This is dermatology image"),
        ("This is image of {}", "This is image"),
        ("A skin image of {}", "A skin image"),
        ("An image of {}, a skin condition.", "An image of a skin condition."),
        ("{}, a skin disorder, is shown in this image.", "a skin disorder is shown in this image."),
    ),
    "dermoscopy": (
        ("This is dermatoscopy of {}", "This is dermatoscopy"),
        ("This is dermoscopy of {}", "This is dermoscopy"),
    ),
}
MIN_CASES = 5  # positives, and negatives, below which an AUROC is noise
_FORM = 'write {"ulcer": ["ulcer", "erosion"]}: concept -> terms'


@dataclass(frozen=True)
class BenchConcept:
    """A concept: `truth` (n,) 1, 0, nan = unknown; `own_name` if its only term is its name."""

    name: str
    truth: np.ndarray
    terms: tuple[str, ...]
    own_name: bool = False


def read_terms(path: Path) -> dict[str, tuple[str, ...]]:
    """Return {concept: terms} of a ConceptTerms.json. Errors: UserInputError naming the concept."""
    if not path.is_file():
        raise UserInputError(
            f"--terms {path} " + ("is not a file" if path.exists() else "does not exist"),
            f"{_FORM}; without --terms concepts are asked for by their names",
        )
    value = read_json(path, "terms")
    if not isinstance(value, dict) or not value:
        raise UserInputError(f"{path} holds no concepts", _FORM)
    for name, terms in value.items():
        if not is_word_list(terms):
            raise UserInputError(
                f"{path}: '{name}' needs a list of terms", f'write "{name}": ["{name}"]'
            )
    return {name: tuple(terms) for name, terms in value.items()}


def concepts_of(
    manifest: Manifest, terms: Mapping[str, Sequence[str]], rows: np.ndarray
) -> tuple[list[BenchConcept], list[str]]:
    """Return (the concept and artifact columns with their terms, terms that have no column).

    A column without terms is described by its own name. Errors: UserInputError without such a column.
    """
    truth = manifest.truth()
    if not truth:
        raise UserInputError(
            f"{manifest.path} has no concept: or artifact: column",
            "annotation is scored against them: concept:<name> with 1, 0 or blank",
        )
    by_name: dict[str, tuple[str, ...]] = {}
    for name, words in terms.items():
        by_name.setdefault(_fold(name), tuple(words))
    found = []
    for name, (_, values) in truth.items():
        known = np.asarray(values, dtype=float)[rows]
        words = by_name.pop(_fold(name), None)
        found.append(BenchConcept(name, known, words or (name.replace("_", " "),), words is None))
    return found, sorted(by_name)


def enough(truth: np.ndarray) -> bool:
    """Return whether 30 images have known truth, at least 5 with and 5 without the concept."""
    known = np.isfinite(truth)
    n_pos = int((truth[known] > 0.5).sum())
    return int(known.sum()) >= MIN_CELL and MIN_CASES <= n_pos <= int(known.sum()) - MIN_CASES


def diagnosis_terms(
    concepts: Iterable[BenchConcept], labels: Iterable[str | None]
) -> dict[str, list[str]]:
    """Return {concept: its terms that name a diagnosis}, only concepts that have one.

    A diagnosis is a label of the data set or a name of a built-in class; a term names it if it contains
    its words in sequence, the last one also in the plural.
    """
    names = {name for group in built_in_classes().values() for ns in group.values() for name in ns}
    diagnoses = [_fold(name).split() for name in {*names, *filter(None, labels)}]
    found = {}
    for concept in concepts:
        named = [t for t in concept.terms if any(_holds(_fold(t).split(), d) for d in diagnoses)]
        if named:
            found[concept.name] = named
    return found


def _holds(words: list[str], part: list[str]) -> bool:
    n = len(part)
    if not n:
        return False
    plural = [*part[:-1], f"{part[-1]}s"]
    return any(words[i : i + n] in (part, plural) for i in range(len(words) - n + 1))


def _fold(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
