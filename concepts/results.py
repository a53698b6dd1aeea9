"""How the stages of concepts write results: rounded figures, and a reason where evidence is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, final

from dermaudit.errors import EvidenceError
from dermaudit.files import write_json
from dermaudit.run.records import Made, Summary


@final
class Reason(TypedDict):
    """Why a result is missing, and the numbers that show it."""

    reason: str
    numbers: Any


def rounded(value: Any, digits: int = 6) -> Any:
    """Return a JSON value with its floats rounded, and None for a float that is not finite."""
    if isinstance(value, float):
        return round(value, digits) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item, digits) for item in value]
    return value


def make_or_give_reason(
    make: Callable[[], Made[Summary]], reason_file: Path, *results: Path
) -> Made[Summary | Reason]:
    """Call `make`. If it raises EvidenceError, write its reason to `reason_file` as the result.

    The files of the other outcome (`reason_file`, or `results`) are removed, so that a run never
    holds both a result and a reason for its absence.
    """
    try:
        made = make()
    except EvidenceError as error:
        for path in results:
            path.unlink(missing_ok=True)
        reason = Reason(reason=error.message, numbers=rounded(error.numbers))
        write_json(reason_file, reason)
        return [reason_file], reason
    reason_file.unlink(missing_ok=True)
    return made


def interval_text(low: float | None, high: float | None, digits: int = 2) -> str:
    """Return an interval as text; its bounds are None where too few bootstrap draws were defined."""
    if low is None or high is None:
        return "[interval undefined]"
    return f"[{low:.{digits}f}, {high:.{digits}f}]"
