"""The column that `bench retrieval` takes its captions from: it must be text, not numbers."""

from __future__ import annotations

from collections.abc import Sequence

from dermaudit.data import Manifest
from dermaudit.errors import UserInputError, unknown

#: text that names a row, not what is seen on it.
_NAMES = {"image", "image_id", "group", "split", "sha256"}


def captions_of(manifest: Manifest, column: str) -> list[str]:
    """Return the caption of each row, "" where blank.

    Errors: UserInputError for a column that is absent, is not text, or holds mostly numbers.
    """
    texts = [name for name in manifest.table.column_names if _is_text(manifest, name)]
    offered = [name for name in texts if name not in _NAMES]
    values = manifest.column(column)
    if values is None:
        raise unknown("column of captions", column, offered)
    if column not in texts:
        known = [value for value in values if value is not None]
        example = f", such as {known[0]}" if known else ""
        raise UserInputError(
            f"--column {column} of {manifest.path} holds "
            + (f"numbers, not text{example}" if known else "nothing"),
            f"columns of text: {', '.join(offered) or 'none'}",
        )
    return ["" if text is None else text.strip() for text in values]


def _is_text(manifest: Manifest, name: str) -> bool:
    import pyarrow.types as pat

    kind = manifest.table.schema.field(name).type
    if pat.is_dictionary(kind):
        kind = kind.value_type
    if not (pat.is_string(kind) or pat.is_large_string(kind)):
        return False
    return _mostly_words(manifest.column(name))


def _mostly_words(values: Sequence[str | None]) -> bool:
    """Return whether at most half of the non-blank values are numbers; False if all are blank."""
    known = [value.strip() for value in values if value is not None and value.strip()]
    return bool(known) and 2 * sum(map(_is_number, known)) <= len(known)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
