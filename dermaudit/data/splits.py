"""The one split of a data set: train / val / test 70 / 10 / 20 by the hash of the group.

Owned by the data (design §4): made once by `data convert` and `data phantom`, read by everyone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

SPLITS = ("train", "val", "test")


def split_of(group: str) -> str:
    """Return train, val or test for one group: the first 8 bytes of sha256(group) as a share of 2**64."""
    share = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8], "big") / 2**64
    return "train" if share < 0.7 else "val" if share < 0.8 else "test"


def assign(groups: Iterable[str]) -> list[str]:
    """Return the split of every image; images of one group always share it.

    Each group gets `split_of(group)`. Where that leaves train, val or test empty although there are
    three groups or more, the groups are ranked by their hash instead: the last fifth (at least one)
    becomes test, the tenth before it (at least one) val, the rest train.
    """
    groups = list(groups)
    split = {group: split_of(group) for group in groups}
    if len(split) >= len(SPLITS) and set(split.values()) != set(SPLITS):
        ranked = sorted(split, key=lambda g: (hashlib.sha256(g.encode("utf-8")).digest(), g))
        n_test = max(1, round(0.2 * len(ranked)))
        n_val = max(1, round(0.1 * len(ranked)))
        first_val, first_test = len(ranked) - n_test - n_val, len(ranked) - n_test
        split = {
            group: "train" if rank < first_val else "val" if rank < first_test else "test"
            for rank, group in enumerate(ranked)
        }
    return [split[group] for group in groups]
