"""Typed vocabularies: concepts with synonyms and opposites, read from TOML or JSON.

Text vectors are template ensembles with the empty template, or the opposites, taken off
(SemanticLens' null template); diagnosis words are kept out of bottlenecks (they would leak the answer).
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError, unknown
from dermaudit.files import sha256_json

TYPES = ("artifact", "clinical", "colour", "acquisition", "anatomy", "diagnosis")
_BUNDLED = Path(__file__).parent


@dataclass(frozen=True)
class Concept:
    """One entry: `id` (the column name in manifests), `type`, its terms, its opposites, and the ids of what it is
    easily mistaken for.
    """

    id: str
    type: str
    terms: tuple[str, ...]
    opposites: tuple[str, ...] = ()
    mistaken_for: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """Concepts with their words, prompt templates, and distractor words."""

    name: str
    concepts: tuple[Concept, ...]
    templates: tuple[str, ...]
    distractors: tuple[str, ...]

    @classmethod
    def load(cls, name: str | Path = "dermoscopy") -> Vocabulary:
        """A bundled vocabulary by name, or a TOML / JSON file. UserInputError names what is wrong."""
        path = Path(name)
        if not path.suffix:
            bundled = {file.stem: file for file in _BUNDLED.glob("*.toml")}
            if str(name) not in bundled:
                raise unknown("vocabulary", str(name), bundled)
            path = bundled[str(name)]
        try:
            text = path.read_text(encoding="utf-8")
            raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError as error:
            raise UserInputError(f"vocabulary {path} does not exist") from error
        except OSError as error:
            raise UserInputError(f"vocabulary {path} cannot be read: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserInputError(f"vocabulary {path} cannot be read: {error}") from error
        return cls._from(raw, path)

    @classmethod
    def _from(cls, raw: dict[str, Any], path: Path) -> Vocabulary:
        tables = raw.get("concepts", {}) if isinstance(raw, dict) else None
        if not isinstance(tables, dict):
            raise UserInputError(f"{path} is not a vocabulary", "add a [concepts.<name>] table")
        concepts = []
        for key, entry in tables.items():
            if not isinstance(entry, dict):
                raise UserInputError(
                    f"{path}: concept '{key}' is not a table", f"write [concepts.{key}]"
                )
            terms, kind = entry.get("terms"), entry.get("type")
            if not _is_words(terms) or not terms:
                raise UserInputError(f"{path}: concept '{key}' has no terms", 'add terms = ["…"]')
            for name in ("opposites", "mistaken_for"):
                if not _is_words(entry.get(name, [])):
                    raise UserInputError(
                        f"{path}: {name} of concept '{key}' is not a list of words",
                        f'write {name} = ["…"]',
                    )
            if kind not in TYPES:
                raise UserInputError(
                    f"{path}: concept '{key}' has type '{kind}'", f"one of: {', '.join(TYPES)}"
                )
            more = (tuple(entry.get(name, ())) for name in ("opposites", "mistaken_for"))
            concepts.append(Concept(key, kind, tuple(terms), *more))
        if not concepts:
            raise UserInputError(f"{path} has no concepts", "add a [concepts.<name>] table")
        ids = [concept.id for concept in concepts]
        for concept in concepts:
            if lost := sorted(set(concept.mistaken_for) - set(ids)):
                raise UserInputError(
                    f"{path}: concept '{concept.id}' is mistaken for '{lost[0]}', which is no concept of it",
                    f"add a [concepts.{lost[0]}] table",
                )
        templates, distractors = raw.get("templates", ["{}"]), raw.get("distractors", {})
        words = distractors.get("words", []) if isinstance(distractors, dict) else None
        if not _is_words(templates) or not templates or words is None or not _is_words(words):
            raise UserInputError(f"{path}: templates and distractors.words are lists of words")
        if any("{}" not in template for template in templates):
            raise UserInputError(f"{path}: every template needs {{}}")
        return cls(str(raw.get("name", path.stem)), tuple(concepts), tuple(templates), tuple(words))

    def concept(self, word: str) -> Concept:
        """The concept with this id or synonym; the nearest one is offered for an unknown word."""
        for concept in self.concepts:
            if word == concept.id or word.lower() in (term.lower() for term in concept.terms):
                return concept
        raise unknown("concept", word, [concept.id for concept in self.concepts])

    @property
    def mistaken_for(self) -> dict[str, set[str]]:
        """{concept: those that it is easily mistaken for}, in both directions."""
        found: dict[str, set[str]] = {concept.id: set() for concept in self.concepts}
        for concept in self.concepts:
            for other in concept.mistaken_for:
                found[concept.id].add(other)
                found[other].add(concept.id)
        return found

    def sha256(self) -> str:
        """Return the hash of everything in the vocabulary."""
        return sha256_json(
            {
                "concepts": {
                    c.id: [c.type, list(c.terms), list(c.opposites), list(c.mistaken_for)]
                    for c in self.concepts
                },
                "templates": list(self.templates),
                "distractors": list(self.distractors),
            }
        )

    def as_json(self) -> str:
        """Return the vocabulary as JSON that `load` reads; the concepts keep their order."""
        concepts = {
            c.id: {
                "type": c.type,
                "terms": c.terms,
                "opposites": c.opposites,
                "mistaken_for": c.mistaken_for,
            }
            for c in self.concepts
        }
        value = {
            "name": self.name,
            "concepts": concepts,
            "templates": self.templates,
            "distractors": {"words": self.distractors},
        }
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    def text_vectors(self, tower: Any) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of the concepts (c, d) and of the distractors (r, d).

        Per term and template a normalised text embedding; mean; minus the mean of the term's
        opposites (or of the bare templates); normalised. The vector of one concept does not depend
        on which others are there.
        """
        empty = _mean_vector(tower, [t.replace("{}", "").strip() or "skin" for t in self.templates])
        rows = []
        for concept in self.concepts:
            positive = _mean_vector(
                tower, [t.replace("{}", w) for w in concept.terms for t in self.templates]
            )
            reference = empty
            if concept.opposites:
                reference = _mean_vector(
                    tower, [t.replace("{}", w) for w in concept.opposites for t in self.templates]
                )
            rows.append(_unit(positive - reference))
        words = [
            _unit(_mean_vector(tower, [t.replace("{}", word) for t in self.templates]) - empty)
            for word in self.distractors
        ]
        return np.stack(rows), np.stack(words) if words else np.zeros((0, rows[0].size))


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _mean_vector(tower: Any, texts: list[str]) -> np.ndarray:
    import torch

    with torch.no_grad():
        vectors = tower.encode_text(texts, normalize=True)
    return _unit(vectors.mean(0).double().numpy())


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-12)
