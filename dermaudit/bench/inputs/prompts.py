"""The prompts of the zero-shot benchmark: classes with their names, and templates around them.

No torch here: classes and templates are checked before a model is opened.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.data.captions.concept_words import is_word_list
from dermaudit.errors import UserInputError, closest
from dermaudit.towers.prompts import TEMPLATES as OWN_TEMPLATES
from dermaudit.towers.prompts import ham_classes

#: the ensemble that DermFM-Zero's zero-shot figures were made with (arXiv 2602.10624).
DERMFM_TEMPLATES = (
    "This is a skin image of {}",
    "This is a skin image of {}.",
    "A skin image of {}.",
    "An image of {}, a skin condition.",
    "{}, a skin disorder, is shown in this image.",
    "The skin lesion depicted is {}.",
    "The skin cancer in this image is {}.",
    "This image depicts {}, a type of skin cancer.",
)
TEMPLATES: dict[str, tuple[str, ...]] = {"dermfm": DERMFM_TEMPLATES, "dermaudit": OWN_TEMPLATES}

Classes = dict[str, list[str]]


def built_in_classes() -> dict[str, Classes]:
    """Return {set: {code: names}}. PAD-UFES-20 and ISIC 2019 use their own codes."""
    ham = ham_classes()
    isic = {
        "MEL": ham["mel"], "NV": ham["nv"], "BCC": ham["bcc"], "AK": ["actinic keratosis"],
        "BKL": ham["bkl"], "DF": ham["df"], "VASC": ham["vasc"],
        "SCC": ["squamous cell carcinoma"],
    }  # fmt: skip
    pad = {
        "NEV": ["nevus"], "BCC": ["basal cell carcinoma"], "ACK": ["actinic keratosis"],
        "SEK": ["seborrheic keratosis"], "SCC": ["squamous cell carcinoma"], "MEL": ["melanoma"],
    }  # fmt: skip
    malignancy = {"benign": ["benign"], "malignant": ["malignant"]}
    return {"ham": ham, "pad": pad, "isic": isic, "malignancy": malignancy}


def load_templates(name: str) -> list[str]:
    """Return the templates of a built-in set, or of a file: one per line, or a JSON list.

    Each template has exactly one {}. Errors: UserInputError.
    """
    if name in TEMPLATES:
        return list(TEMPLATES[name])
    path = Path(name)
    if not path.is_file():
        near = closest(name, TEMPLATES)
        tail = f": did you mean '{near}'?" if near else ""
        raise UserInputError(
            f"--templates {name} is neither a file nor a set{tail}", f"sets: {', '.join(TEMPLATES)}"
        )
    text = _text(path)
    if path.suffix.lower() == ".json":
        try:
            lines = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserInputError(f"{path} is not valid JSON ({error})") from error
        if not isinstance(lines, list):
            raise UserInputError(f"{path} is not a list", 'write ["dermoscopy of {}", …]')
    else:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise UserInputError(f"{path} holds no template", "write one a line: dermoscopy of {}")
    for number, line in enumerate(lines, 1):
        if not isinstance(line, str) or line.count("{}") != 1 or "{" in line.replace("{}", ""):
            raise UserInputError(
                f"{path}, template {number}: '{line}' must have exactly one {{}}",
                "for example: dermoscopy of {}",
            )
    return lines


def named_classes(name: str) -> Classes:
    """Return {code: names} of a built-in set, or of a TOML or JSON file, in its order.

    Errors: UserInputError.
    """
    sets = built_in_classes()
    return sets[name] if name in sets else _read_classes(Path(name), sets)


def load_classes(name: str | None, labels: Sequence[str | None], where: Any) -> Classes:
    """Return the classes called `name`, or without a name the built-in set that has all `labels`.

    Errors: UserInputError, also when no image has a label.
    """
    known = sorted({label for label in labels if label})
    if not known:
        raise UserInputError(
            f"{where} has no label to score zero-shot", "it needs a `label` column with values"
        )
    if name is not None:
        return named_classes(name)
    for classes in built_in_classes().values():
        if not _unmatched(known, classes):
            return classes
    raise UserInputError(
        f"no built-in set of classes has all labels of {where} ({', '.join(known[:8])}"
        + (", …)" if len(known) > 8 else ")"),
        'name them in a file: --classes classes.toml with lines such as mel = ["melanoma"]',
    )


def _unmatched(labels: Sequence[str], classes: Classes) -> list[str]:
    by_word = class_of(classes)
    return [label for label in labels if _fold(label) not in by_word]


def class_of(classes: Classes) -> dict[str, int]:
    """Return {folded code or name: number of its class}; a code wins over another class's name."""
    found = {}
    for number, names in enumerate(classes.values()):
        for word in names:
            found.setdefault(_fold(word), number)
    return {**found, **{_fold(code): number for number, code in enumerate(classes)}}


def _fold(word: str) -> str:
    return " ".join(word.lower().replace("_", " ").split())


def truth_numbers(labels: Sequence[str | None], classes: Classes, where: Any) -> np.ndarray:
    """Return the class number of each label (n,), -1 where unknown.

    Errors: UserInputError that lists all labels outside the classes.
    """
    unmatched = _unmatched(sorted({label for label in labels if label}), classes)
    if unmatched:
        words = [*classes, *(w for names in classes.values() for w in names)]
        listed = []
        for label in unmatched:
            near = closest(label, words)
            tail = f"; did you mean '{near}'?" if near else ""
            listed.append(f"'{label}' ({sum(other == label for other in labels)} images{tail})")
        left_out = ", ".join("'" + label.replace("'", "''") + "'" for label in unmatched)
        raise UserInputError(
            f"{where}: {len(unmatched)} of the labels "
            f"{'is' if len(unmatched) == 1 else 'are'} none of the classes "
            f"{', '.join(list(classes)[:12])}{', …' if len(classes) > 12 else ''}: {', '.join(listed)}",
            'add them to --classes FILE, or leave their rows out with --where "label not in '
            f'({left_out})"',
        )
    by_word = class_of(classes)
    return np.array([by_word[_fold(label)] if label else -1 for label in labels], dtype=int)


def _read_classes(path: Path, sets: dict[str, Classes]) -> Classes:
    if not path.is_file():
        near = closest(str(path), sets)
        tail = f": did you mean '{near}'?" if near else ""
        raise UserInputError(
            f"--classes {path} is neither a file nor a set{tail}", f"sets: {', '.join(sets)}"
        )
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix.lower() not in readers:
        raise UserInputError(f"--classes {path} must be a .toml or a .json file")
    try:
        value = readers[path.suffix.lower()](_text(path))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise UserInputError(
            f"{path} is not valid {path.suffix[1:].upper()} ({error})",
            'write code = ["name", "other name"] for each class',
        ) from error
    if not isinstance(value, dict) or len(value) < 2:
        raise UserInputError(f"{path} needs at least two classes", 'mel = ["melanoma"]')
    classes: Classes = {}
    for code, names in value.items():
        names = [names] if isinstance(names, str) else names
        if not is_word_list(names):
            raise UserInputError(
                f"{path}: class '{code}' needs a list of names", f'write {code} = ["its name"]'
            )
        classes[str(code)] = names
    return classes


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserInputError(f"{path} is not UTF-8 text", "save it again as UTF-8") from error
