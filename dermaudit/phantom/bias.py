"""P(concept | diagnosis) and P(artifact | diagnosis): the table that makes trap splits.

The defaults are `default_bias.toml`, which documents the format. A user's TOML or JSON file holds
only what differs; `[artifact.default]` is used for every diagnosis without a row of its own.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dermaudit.errors import UserInputError, unknown

from .vocabulary import ARTIFACTS, CONCEPTS, DIAGNOSES, SKIN_TYPES

# A lesion must have a colour: of these three at least one is always drawn.
BASE_COLORS = ("color_light_brown", "color_dark_brown", "color_red")
# The first excludes the second: one network is typical or atypical.
EXCLUSIVE = ("pigment_network_atypical", "pigment_network_typical")
# The structure shows the colour, so the colour is present wherever the structure is.
IMPLIES = {"regression": "color_white", "blue_whitish_veil": "color_blue_gray"}


@dataclass(frozen=True)
class BiasTable:
    """Probabilities: `diagnosis[d]`, `skin_type[t]`, `concept[d][name]`, `artifact[d][name]`."""

    diagnosis: Mapping[str, float]
    skin_type: Mapping[int, float]
    concept: Mapping[str, Mapping[str, float]]
    artifact: Mapping[str, Mapping[str, float]]

    def changed(self, changes: Mapping[str, Any], source: str = "bias table") -> BiasTable:
        """Return this table with `changes` (the layout of a file) laid over it, validated."""
        merged = _merge(self.as_dict(), changes, source)
        return _checked(merged, source)

    def as_dict(self) -> dict[str, Any]:
        """Return a nested dict in the layout of a file (skin types as text)."""
        return {
            "diagnosis": dict(self.diagnosis),
            "skin_type": {str(key): value for key, value in self.skin_type.items()},
            "concept": {key: dict(row) for key, row in self.concept.items()},
            "artifact": {key: dict(row) for key, row in self.artifact.items()},
        }


def load_bias_table(path: Path | str | None = None) -> BiasTable:
    """Return the default table, with the TOML or JSON file at `path` laid over it.

    Errors: UserInputError names the file and the row and key that cannot be used.
    """
    table = _default()
    if path is None:
        return table
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        changes = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise UserInputError(f"bias table {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise UserInputError(
            f"bias table {path} is not valid {kind} ({error})", "fix the file at that place"
        ) from error
    return table.changed(changes, source=f"bias table {path}")


@lru_cache(maxsize=1)
def _default() -> BiasTable:
    text = (Path(__file__).parent / "default_bias.toml").read_text(encoding="utf-8")
    empty = {"diagnosis": {}, "skin_type": {}, "concept": {}, "artifact": {}}
    return _checked(_merge(empty, tomllib.loads(text), "default bias table"), "default bias table")


_KEYS = {
    "diagnosis": DIAGNOSES,
    "skin_type": tuple(str(number) for number in SKIN_TYPES),
    "concept": CONCEPTS,
    "artifact": ARTIFACTS,
}


def _merge(base: dict[str, Any], changes: Any, source: str) -> dict[str, Any]:
    if not isinstance(changes, Mapping):
        raise UserInputError(f"{source}: expected a table of sections, found {_kind(changes)}")
    for section, rows in changes.items():
        where = f"{source}, [{section}]"
        if section not in _KEYS:
            raise _named(source, "section", section, _KEYS)
        if not isinstance(rows, Mapping):
            raise UserInputError(f"{where}: expected a table, found {_kind(rows)}")
        if section in ("diagnosis", "skin_type"):
            if section == "diagnosis" and rows:
                # A prior is complete: diagnoses that it leaves out are not drawn.
                base[section] = dict.fromkeys(_KEYS[section], 0.0)
            base[section].update(_numbers(rows, _KEYS[section], where, section, cap=False))
            continue
        for name in ("default", *(key for key in rows if key != "default")):
            if name not in rows:
                continue
            if name != "default" and name not in DIAGNOSES:
                raise _named(where, "diagnosis", name, ("default", *DIAGNOSES))
            row_where = f"{source}, [{section}.{name}]"
            if not isinstance(rows[name], Mapping):
                raise UserInputError(f"{row_where}: expected a table, found {_kind(rows[name])}")
            values = _numbers(rows[name], _KEYS[section], row_where, section, cap=True)
            for diagnosis in DIAGNOSES if name == "default" else (name,):
                base[section].setdefault(diagnosis, {}).update(values)
    return base


def _numbers(
    row: Mapping[str, Any], known: tuple[str, ...], where: str, kind: str, cap: bool
) -> dict[str, float]:
    found = {}
    for key, value in row.items():
        if key not in known:
            raise _named(where, kind, key, known)
        bad = isinstance(value, bool) or not isinstance(value, (int, float))
        if bad or not 0 <= value <= (1 if cap else float("inf")) or value == float("inf"):
            allowed = "a probability from 0 to 1" if cap else "a weight of 0 or more"
            raise UserInputError(f"{where}: {key} = {value!r} is not {allowed}")
        found[key] = float(value)
    return found


def _checked(merged: dict[str, Any], source: str) -> BiasTable:
    for section in ("diagnosis", "skin_type"):
        total = sum(merged[section].values())
        if total <= 0:
            raise UserInputError(f"{source}, [{section}]: the weights sum to {total:g}")
        merged[section] = {key: value / total for key, value in merged[section].items()}
    for diagnosis in DIAGNOSES:
        row = merged["concept"][diagnosis]
        where = f"{source}, [concept.{diagnosis}]"
        base = sum(row[name] for name in BASE_COLORS)
        if base < 1 - 1e-9:
            raise UserInputError(
                f"{where}: {' + '.join(BASE_COLORS)} = {base:g}, less than 1",
                "a lesion needs at least one of these colours: raise one of them",
            )
        networks = sum(row[name] for name in EXCLUSIVE)
        if networks > 1 + 1e-9:
            raise UserInputError(
                f"{where}: {' + '.join(EXCLUSIVE)} = {networks:g}, more than 1",
                "a network is typical or atypical, not both: lower one of them",
            )
        for structure, color in IMPLIES.items():
            if row[color] < row[structure] - 1e-9:
                raise UserInputError(
                    f"{where}: {color} = {row[color]:g} is below {structure} = {row[structure]:g}",
                    f"{structure} shows {color}: give {color} at least the same probability",
                )
    return BiasTable(
        diagnosis={name: merged["diagnosis"].get(name, 0.0) for name in DIAGNOSES},
        skin_type={number: merged["skin_type"].get(str(number), 0.0) for number in SKIN_TYPES},
        concept={d: {c: merged["concept"][d][c] for c in CONCEPTS} for d in DIAGNOSES},
        artifact={d: {a: merged["artifact"][d][a] for a in ARTIFACTS} for d in DIAGNOSES},
    )


def _named(where: str, kind: str, word: str, known: Any) -> UserInputError:
    error = unknown(kind, str(word), known)
    return UserInputError(f"{where}: {error.message}", error.hint)


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"
