"""A tree of diseases, read from nested JSON objects: names, synonyms, paths and distances.

The format is that of the Derm1M ontology (arXiv 2503.14911): a key is a disease, its value holds the
finer ones, `{}` is a leaf; a key may hold several names between commas. Nodes are numbered in
pre-order, so that a parent comes before its children. A leaf without a name (the published file has
one: 370 of its 371 keys are diseases) is left out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError, closest

from ..manifest.blank_cells import says_nothing
from ..manifest.missing_path import missing

SEPARATOR = " > "  # between the names of a path in a manifest's `ontology` column
_QUALIFIERS = {"nos"}  # "Chronic dermatitis, NOS": not otherwise specified, no second name


class Ontology:
    """A tree of diseases.

    `names[i]` is the first name of node i in lower case, `synonyms[i]` are all its names; `parent[i]` is
    None and `depth[i]` is 1 at a root. A name may occur at two places of the tree ("melanocytic", benign
    and malignant); see `find`.
    """

    def __init__(
        self,
        synonyms: Sequence[tuple[str, ...]],
        parent: Sequence[int | None],
        keys: Sequence[str] | None = None,
    ) -> None:
        self.synonyms = list(synonyms)
        self.parent = list(parent)
        self.names = [names[0] for names in self.synonyms]
        self.depth: list[int] = []
        for above in self.parent:
            self.depth.append(1 if above is None else self.depth[above] + 1)
        # A node with this first name comes before one that has it as a synonym, and both come
        # before the whole text of a key ("chronic dermatitis, nos").
        self._places: dict[str, list[int]] = {}
        for bearers in (
            [names[:1] for names in self.synonyms],
            self.synonyms,
            [[key] for key in keys or []],
        ):
            for index, names in enumerate(bearers):
                for name in names:
                    places = self._places.setdefault(_fold(name), [])
                    if index not in places:
                        places.append(index)

    @classmethod
    def load(cls, path: Path | str) -> Ontology:
        """Read a JSON file. Errors: UserInputError naming the file and the keys down to the fault."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
            tree = json.loads(text, object_pairs_hook=_object)
        except FileNotFoundError as error:
            raise missing(path, "ontology") from error
        except OSError as error:
            raise UserInputError(f"ontology {path} cannot be read: {error.strerror}") from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UserInputError(
                f"ontology {path} is not valid JSON ({error})",
                'write nested objects: {"nail diseases": {"onycholysis": {}}}',
            ) from error
        except _Twice as error:
            raise UserInputError(
                f"ontology {path}: the key '{error}' occurs twice in one object",
                "join the two: the second would replace the first",
            ) from error
        return cls.from_tree(tree, str(path))

    @classmethod
    def from_tree(cls, tree: dict[str, Any], where: str = "the ontology") -> Ontology:
        """Build from nested dicts; `where` is their name in messages. Errors: UserInputError."""
        if not isinstance(tree, dict):
            raise UserInputError(
                f"{where} holds {_kind(tree)}, not an object of diseases",
                'write nested objects: {"nail diseases": {"onycholysis": {}}}',
            )
        synonyms: list[tuple[str, ...]] = []
        parent: list[int | None] = []
        keys: list[str] = []
        # A stack, not recursion: a hostile file may nest deeper than Python does.
        pending: list[tuple[str, Any, int | None]] = [
            (key, below, None) for key, below in reversed(tree.items())
        ]
        while pending:
            key, below, above = pending.pop()
            names = _names(key)
            if not names and below == {}:
                continue
            if not isinstance(below, dict) or not names:
                at: list[str] = [key]
                while above is not None:
                    at.append(keys[above])
                    above = parent[above]
                fault = "names no disease" if not names else f"is {_kind(below)}, not an object"
                raise UserInputError(
                    f"{where}: '{SEPARATOR.join(reversed(at))}' {fault}",
                    "a key is a disease, its value an object of the finer ones, {} for a leaf",
                )
            index = len(keys)
            keys.append(key)
            synonyms.append(names)
            parent.append(above)
            pending += [(finer, rest, index) for finer, rest in reversed(below.items())]
        if not keys:
            raise UserInputError(f"{where} holds no disease", "write at least one key")
        return cls(synonyms, parent, keys)

    def __len__(self) -> int:
        return len(self.names)

    # ---- names

    def find_all(self, name: str) -> list[int]:
        """Return every node of this name: first by first name, then by synonym, each in pre-order.

        Letter case, spaces, accents and the kind of apostrophe do not matter.
        """
        return list(self._places.get(_fold(name), ()))

    def find(self, name: str | None) -> int | None:
        """Return the first node of a name; None if it is unknown, blank, or a placeholder for a blank."""
        if name is None or says_nothing(name):
            return None
        places = self._places.get(_fold(name))
        return places[0] if places else None

    def closest(self, name: str) -> str | None:
        """Return the name in the tree most similar to an unknown one, None if nothing is similar."""
        if says_nothing(name):
            return None
        return closest(name, (word for names in self.synonyms for word in names))

    # ---- the tree

    def ancestors(self, index: int) -> list[int]:
        """Return the nodes from the root to this one, itself included."""
        found = [index]
        while (above := self.parent[found[-1]]) is not None:
            found.append(above)
        return found[::-1]

    def path(self, index: int) -> list[str]:
        """Return the names from the root to this node."""
        return [self.names[node] for node in self.ancestors(index)]

    def distance(self, a: int, b: int) -> float:
        """Return 1 - 2 depth(lca) / (depth(a) + depth(b)) of two nodes (Wu & Palmer, ACL 1994).

        0 for the same node, 1 when they share no root.
        """
        shared = 0
        for left, right in zip(self.ancestors(a), self.ancestors(b), strict=False):
            if left != right:
                break
            shared += 1
        return 1.0 - 2.0 * shared / (self.depth[a] + self.depth[b])

    def distances(self, indices: Sequence[int]) -> np.ndarray:
        """Return `distance` between all pairs of k nodes: float64 (k, k), 0 on the diagonal."""
        depth = np.array([self.depth[index] for index in indices], dtype=np.float64)
        paths = np.full((len(depth), int(depth.max(initial=0))), -1)
        for row, index in enumerate(indices):
            paths[row, : self.depth[index]] = self.ancestors(index)
        shared = np.zeros((len(depth), len(depth)))
        for level in paths.T:  # in a tree the same node at a level means the same nodes above it
            shared += (level[:, None] == level[None, :]) & (level >= 0)[:, None]
        return 1.0 - 2.0 * shared / np.maximum(depth[:, None] + depth[None, :], 1.0)


class _Twice(Exception):
    """A key that occurs twice in one JSON object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def _names(key: str) -> tuple[str, ...]:
    """Return the names of a key, split at commas outside brackets, in lower case, each once."""
    parts = re.split(r",(?![^()]*\))", key.lower())
    names = [" ".join(part.split()) for part in parts]
    names = [n for i, n in enumerate(names) if n and not (i and n in _QUALIFIERS)]
    return tuple(dict.fromkeys(names))


def _fold(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name.replace("’", "'").replace("`", "'"))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return " ".join(plain.casefold().split())


def _kind(value: Any) -> str:
    words = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else words.get(type(value), "a number")
