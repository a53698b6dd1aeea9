"""The errors that users see: one sentence that names the file, row or flag, a hint, and an exit code.

Exit codes (design §5): 1 an internal error, 2 bad input, 3 not enough evidence. Every
command imports this module first, so it imports nothing heavy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class DermauditError(Exception):
    """Base of all errors that a user may see. `code` is the identifier that `--json` prints."""

    exit_code = 1
    code = "fault"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints for the error."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UserInputError(DermauditError):
    """A file, row, flag or name that cannot be used as it is."""

    exit_code = 2
    code = "bad_input"


class StaleArtifactError(UserInputError):
    """A file of the run whose inputs have changed since it was written."""

    code = "stale"


class AlteredArtifactError(StaleArtifactError):
    """A file of the run that was changed or removed after its stage wrote it."""


class ForeignArtifactError(UserInputError):
    """A file that belongs to another model, data set or program."""

    code = "foreign"


class LockedRunError(UserInputError):
    """Another process writes to the run."""

    code = "locked"


class NoSpaceError(UserInputError):
    """The disk, or the file-size limit, is full."""

    code = "no_space"


class EvidenceError(DermauditError):
    """The claim cannot be made: the numbers that fell short are in `numbers`."""

    exit_code = 3
    code = "no_evidence"

    def __init__(
        self, message: str, hint: str | None = None, numbers: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message, hint)
        self.numbers = numbers or {}

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints for the error."""
        return {**super().as_json(), "numbers": self.numbers}


def closest(word: str, options: Iterable[str]) -> str | None:
    """The option most like `word`, or None when nothing is near."""
    by_folded = {option.lower(): option for option in options}
    found = difflib.get_close_matches(word.lower(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def unknown(kind: str, word: str, options: Iterable[str]) -> UserInputError:
    """The error for a name that is not among `options`, with the nearest one offered."""
    options = list(options)
    near = closest(word, options)
    tail = f": did you mean '{near}'?" if near else ""
    known = ", ".join(options[:24]) + (", …" if len(options) > 24 else "")
    return UserInputError(f"unknown {kind} '{word}'{tail}", f"known: {known or 'none'}")
