"""One figure as it is stored and printed: a value, its interval, its n, and its control."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermaudit.stats.intervals import GroupBootstrap

#: More groups than this are merged at random. An interval over merged groups is as valid as one over
#: groups, and the sums for each group stay small however many patients there are.
MAX_GROUPS = 4096


def json_number(value: float | None) -> float | None:
    """Return a JSON number, rounded to 6 digits; None if it is undefined."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def figure(
    value: float | None,
    n: int,
    interval: tuple[float, float] | None = None,
    *,
    control: float | None = None,
    control_is: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Return {value, low, high, n, control, control_is}; what is not known is None, never nan."""
    low, high = interval if interval is not None else (None, None)
    return {
        "value": json_number(value),
        "low": json_number(low),
        "high": json_number(high),
        "n": int(n),
        "control": json_number(control),
        "control_is": control_is,
        **more,
    }


def group_numbers(
    groups: Sequence[object] | np.ndarray, most: int = MAX_GROUPS, seed: int = 0
) -> np.ndarray:
    """Return a number 0 … for each row (n,) int64; rows of one group share it.

    More than `most` groups are merged at random.
    """
    names = np.asarray(groups)
    if names.dtype == object:
        names = names.astype(str)
    _, member = np.unique(names, return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    if count <= most:
        return member.astype(np.int64)
    dealt = np.random.default_rng(seed).permutation(count) % most
    return dealt[member].astype(np.int64)


def bootstrap_weights(n_groups: int, n_draws: int, seed: int) -> np.ndarray:
    """Return how often each group is in each bootstrap draw: (n_draws, n_groups) float64."""
    if not n_draws or not n_groups:
        return np.zeros((0, n_groups))
    return GroupBootstrap(np.arange(n_groups), n_draws, seed).matrix()
