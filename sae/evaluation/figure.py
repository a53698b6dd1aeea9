"""One figure as it is kept and printed: a value, its interval, its n, and the control beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dermaudit.stats.intervals import GroupBootstrap

#: More groups than this are put together at random: an interval over bunches of whole groups is as
#: valid as one over groups, and sums for each bunch stay small however many patients there are.
MAX_BUNCHES = 4096


def number(value: float | None) -> float | None:
    """A JSON number; None for what is undefined."""
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
    """{value, low, high, n, control, control_is}: what is not known is None, never nan."""
    low, high = interval if interval is not None else (None, None)
    return {
        "value": number(value),
        "low": number(low),
        "high": number(high),
        "n": int(n),
        "control": number(control),
        "control_is": control_is,
        **more,
    }


def bunches(groups: Sequence[object], most: int = MAX_BUNCHES, seed: int = 0) -> np.ndarray:
    """A number 0 … for each row (n,) int64; rows of one group share it. At most `most` numbers."""
    groups = np.asarray(groups)
    if groups.dtype == object:
        groups = groups.astype(str)
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1 if len(member) else 0
    if count <= most:
        return member.astype(np.int64)
    dealt = np.random.default_rng(seed).permutation(count) % most
    return dealt[member].astype(np.int64)


def draws(n_groups: int, n_draws: int, seed: int) -> np.ndarray:
    """How often each group is in each bootstrap draw: (n_draws, n_groups) float64."""
    if not n_draws or not n_groups:
        return np.zeros((0, n_groups))
    return GroupBootstrap(np.arange(n_groups), n_draws, seed).matrix()
