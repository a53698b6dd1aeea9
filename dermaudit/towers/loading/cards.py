"""The files next to a checkpoint's weights: the model card and the list of training images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from dermaudit.errors import UserInputError
from dermaudit.files import read_json

CARD_FILE = "README.md"
TRAINING_FILE = "training_images.json"
#: a training image is known by this many hex digits of the sha256 of its file (64 bits).
HASH_DIGITS = 16


@dataclass(frozen=True)
class ModelCard:
    """`text`: the whole Markdown. `front`: the `key: value` lines of its YAML front matter."""

    text: str = ""
    front: dict[str, str] = field(default_factory=dict)

    @property
    def licence(self) -> str:
        """The licence of the weights, as the card names it."""
        return self.front.get("license_name") or self.front.get("license") or "not stated"


def read_card(folder: Path | None) -> ModelCard:
    """Return the card in `folder`; an empty one if there is no folder or no README.md."""
    path = folder / CARD_FILE if folder else None
    if path is None or not path.is_file():
        return ModelCard()
    text = path.read_text(encoding="utf-8", errors="replace")
    front: dict[str, str] = {}
    lines = text.splitlines()
    if lines and lines[0].strip() == "---":
        for line in lines[1:]:
            if line.strip() == "---":
                break
            key, colon, value = line.partition(":")
            # Only flat `key: value` lines: lists and nested keys of a card are not read here.
            if colon and value.strip() and not line.startswith((" ", "-", "#")):
                front[key.strip()] = value.strip().strip("\"'")
    return ModelCard(text, front)


def read_training_hashes(folder: Path | None) -> frozenset[str]:
    """Return the hashes of `training_images.json`; empty if there is no such file.

    Errors: UserInputError when the file is there and cannot be read as one: a checkpoint that
    trained on a test image must not pass because its list is broken.
    """
    path = folder / TRAINING_FILE if folder else None
    if path is None or not path.is_file():
        return frozenset()
    value = read_json(path, "list of training images")
    hashes = value.get("sha256") if isinstance(value, dict) else None
    if not isinstance(hashes, list) or not all(
        isinstance(h, str) and len(h) >= HASH_DIGITS for h in hashes
    ):
        raise UserInputError(
            f'{path} must hold {{"sha256": [...]}} with at least {HASH_DIGITS} hex digits each',
            "restore it from the checkpoint's release",
        )
    return frozenset(h[:HASH_DIGITS].lower() for h in hashes)
