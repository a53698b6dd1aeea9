"""The one split of a data set: train / val / test 70 / 10 / 20 by the hash of the group.

Owned by the data (design §4): made once by `data convert` and `data phantom`, read by everyone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "val", "test")


def split_of(group: str) -> str:
    """train, val or test for one group: the first 8 bytes of sha256(group) as a share of 2**64."""
    share = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def assign(groups: Iterable[str]) -> list[str]:
    """The split of every row; rows of one group always share it."""
    return [split_of(group) for group in groups]
