"""Words for signs on the skin, and which of them a caption mentions.

A vocabulary is JSON `{concept: [terms]}` (MAKE's ConceptTerms.json, arXiv 2505.09372), a JSON list, or
a text file of one term a line. Terms are matched as whole words, the longest first, singular and
plural alike; "no scale" is not a mention of scale.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from dermaudit.errors import UserInputError
from dermaudit.files import sha256_json

from ..manifest.missing_path import missing

_BUNDLED = Path(__file__).parent / "concept_words.json"
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_CUES = {"no", "without", "denies", "denied", "lacks", "lacking", "neither", "never", "nor"}
_TWO_CUES = {
    ("absence", "of"),
    ("free", "of"),
    ("negative", "for"),
    ("lack", "of"),
    ("rather", "than"),
}
_AFTER = {("not", word) for word in ("seen", "present", "visible", "found", "noted", "observed")}
_NO_CUES = {("no", "longer"), ("not", "only"), ("no", "doubt"), ("without", "doubt")}
# Words at which a negation ends. A comma or "and" ends it too, unless an "or" follows: "no
# scale, crust, or pus" denies three things, "no scale, red papules" one.
_BE = {"is", "are", "was", "were"}
_STOPS = {"but", "with", "however", "although", "though", "yet", "except", "which", *_BE}
_BREAK = re.compile(r"[.;:!?()\n]")


class ConceptMentions(NamedTuple):
    """Concepts that a text says are present, and those that it denies, each once, in text order."""

    present: list[str]
    denied: list[str]


class ConceptWords:
    """A vocabulary: `concepts` {concept: its terms}. A term of two concepts belongs to the first."""

    def __init__(self, concepts: dict[str, list[str]]) -> None:
        self.concepts = concepts
        self._of: dict[tuple[str, ...], str] = {}
        for concept, terms in concepts.items():
            for term in terms:
                self._of.setdefault(_words(term), concept)
        self._of.pop((), None)
        self._longest: dict[str, int] = {}  # first word -> number of words of the longest such term
        for words in self._of:
            self._longest[words[0]] = max(self._longest.get(words[0], 0), len(words))

    @classmethod
    def load(cls, path: Path | str | None = None) -> ConceptWords:
        """Read a vocabulary; without a path, the one of the toolkit.

        Errors: UserInputError naming the file and the concept or line.
        """
        path = _BUNDLED if path is None else Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError as error:
            raise missing(path, "vocabulary") from error
        except OSError as error:
            raise UserInputError(f"vocabulary {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserInputError(
                f"vocabulary {path} is not UTF-8 text ({error.reason} at byte {error.start})",
                "save it again as UTF-8",
            ) from error
        if path.suffix.lower() == ".json":
            return cls(_from_json(text, path))
        terms = [line.strip() for line in text.splitlines()]
        terms = [term for term in terms if term and not term.startswith("#")]
        return cls(_checked({term: [term] for term in terms}, path))

    def sha256(self) -> str:
        """Return the hash of the vocabulary."""
        return sha256_json(self.concepts)

    def find(self, text: str) -> ConceptMentions:
        """Return the concepts in a text. At each word the longest term that begins there counts."""
        present: dict[str, None] = {}
        denied: dict[str, None] = {}
        for clause in _BREAK.split(text.replace("’", "'")):
            spans = [(match[0], match.start()) for match in _WORD.finditer(clause)]
            words = [_stem(word) for word, _ in spans]
            scope = _denied(clause, spans)
            at = 0
            while at < len(words):
                n = self._match(words, at)
                if n:
                    concept = self._of[tuple(words[at : at + n])]
                    (denied if scope[at] else present).setdefault(concept)
                at += max(n, 1)
        return ConceptMentions(list(present), [c for c in denied if c not in present])

    def _match(self, words: list[str], at: int) -> int:
        """Return the number of words of the longest term that begins here, 0 without one."""
        for n in range(self._longest.get(words[at], 0), 0, -1):
            if tuple(words[at : at + n]) in self._of:
                return n
        return 0


def _from_json(text: str, path: Path) -> dict[str, list[str]]:
    try:
        raw = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserInputError(f"vocabulary {path} is not valid JSON ({error})") from error
    if isinstance(raw, list):
        raw = {term if isinstance(term, str) else json.dumps(term): [term] for term in raw}
    if not isinstance(raw, dict):
        raise UserInputError(
            f"vocabulary {path} is not an object of terms", 'write {"scale": ["scale", "scaly"]}'
        )
    return _checked(raw, path)


def _checked(raw: dict[str, Any], path: Path) -> dict[str, list[str]]:
    for concept, terms in raw.items():
        if not is_word_list(terms) or not all(map(_words, terms)):
            raise UserInputError(
                f"vocabulary {path}: the terms of '{concept}' are not a list of words",
                'write {"scale": ["scale", "scaly"]}',
            )
    if not raw:
        raise UserInputError(f"vocabulary {path} has no term", "write one term a line")
    return {" ".join(concept.replace("_", " ").split()): terms for concept, terms in raw.items()}


def is_word_list(value: Any) -> bool:
    """Return whether a value from a file is a list of texts, none of them blank."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(word, str) and word.strip() for word in value)
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(_stem(word) for word in _WORD.findall(text.replace("’", "'")))


def _stem(word: str) -> str:
    """Return a word without its plural. Both sides are stemmed, so it need not be an English word."""
    word = word.casefold().removesuffix("'s")
    if len(word) > 4 and word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def _denied(clause: str, spans: list[tuple[str, int]]) -> list[bool]:
    """Return for each word whether a negation reaches it."""
    words = [word.casefold() for word, _ in spans]
    # comma[i]: whether a comma is between word i - 1 and word i.
    comma = [False] + [
        "," in clause[start + len(word) : following]
        for (word, start), (_, following) in itertools.pairwise(spans)
    ]
    scope = [False] * len(words)
    for at, word in enumerate(words):
        pair = (word, words[at + 1] if at + 1 < len(words) else "")
        if word == "non" and at + 1 < len(words):  # "non-scaly red plaque": the next word alone
            scope[at + 1] = True
        elif pair in _AFTER or (word == "absent" and at and words[at - 1] in _BE):
            for i in range(at - 1, -1, -1):  # "scale is not seen": back to the last comma
                scope[i] = True
                if comma[i]:
                    break
        elif pair not in _NO_CUES and (word in _CUES or pair in _TWO_CUES):
            _reach(words, comma, scope, at + 1)
    return scope


def _reach(words: list[str], comma: list[bool], scope: list[bool], start: int) -> None:
    """Mark the words that a negation before `start` reaches."""
    stop = next((i for i in range(start, len(words)) if words[i] in _STOPS), len(words))
    listed = any(word in ("or", "nor") for word in words[start:stop])
    for i in range(start, stop):
        if not listed and i > start and (comma[i] or words[i] == "and"):
            return
        scope[i] = True
