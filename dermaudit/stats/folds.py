"""Folds that keep the rows of a group together, and have alike shares of each kind of row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int


def group_folds(
    kind: np.ndarray, groups: np.ndarray, n: int, seed: int = 0
) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held"]]]:
    """Return n pairs of row numbers (training rows, rows held out) of rows with these kinds and groups (m,).

    StratifiedGroupKFold goes through the groups one at a time. Where each row is its own group,
    StratifiedKFold makes folds of the same kind in a fraction of the time.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    alone = len(np.unique(groups)) == len(groups)
    folds = StratifiedKFold if alone else StratifiedGroupKFold
    split = folds(n, shuffle=True, random_state=seed).split(kind, kind, None if alone else groups)
    return [(train, held) for train, held in split]
