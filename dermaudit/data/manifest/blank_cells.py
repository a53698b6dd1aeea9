"""Cells whose text means "blank": "No age information", "no definitive diagnosis", "N/A".

Derm1M writes such sentences where a column is unknown (arXiv 2503.14911). Blank is unknown: taken as
text they would become a disease, a body site and the most frequent caption.
"""

from __future__ import annotations

import re

_NOTHING = {
    "",
    "-",
    "none",
    "null",
    "nan",
    "n/a",
    "na",
    "unknown",
    "unspecified",
    "not available",
    "not applicable",
    "not specified",
    "not provided",
}
# Whole cells only: "no scale is seen" is a finding. Brackets come from answers of a language model.
_SENTINEL = re.compile(
    r"no (?:[\w/ -]+ )?(?:information|info)(?: (?:is )?(?:available|provided|given))?"
    r"|no (?:definitive |definite |specific |clear )?diagnos[ie]s"
    r"|no (?:visual |skin |visual skin )?concepts?"
    r"|no matching attributes?"
    r"|no (?:symptoms?|body locations?|age|gender|disease|disease label|ontology|caption)"
)


def says_nothing(text: str | None) -> bool:
    """Return whether a cell is blank or a placeholder for a blank."""
    if text is None:
        return True
    bare = " ".join(text.lower().split()).strip("[]().,; ")
    return bare in _NOTHING or _SENTINEL.fullmatch(bare) is not None


def known(text: str | None) -> str | None:
    """Return the cell with single spaces, None if it is blank or a placeholder."""
    if text is None or says_nothing(text):
        return None
    return " ".join(text.split())
