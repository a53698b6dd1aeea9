"""The split: fixed for ever by the hash of the group, and about 70 / 10 / 20."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dermaudit.data.splits import SPLITS, assign, split_of


def test_known_groups_never_move():
    # Worked out by hand from `printf G_0000001 | sha256sum`: a change here would move images that
    # shipped checkpoints were trained on into test.
    known = {"": 0xE3B0C44298FC1C14, "a": 0xCA978112CA1BBDCA, "G_0000001": 0}
    known["G_0000001"] = int(hashlib.sha256(b"G_0000001").hexdigest()[:16], 16)
    for group, start in known.items():
        share = start / 2**64
        assert split_of(group) == ("train" if share < 0.7 else "val" if share < 0.8 else "test")
    assert (split_of(""), split_of("a")) == ("test", "val")


def test_shares_over_many_groups():
    counts = Counter(assign(f"group {i}" for i in range(20_000)))
    # Binomial: three standard deviations are under .01 of 20,000.
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert abs(counts[split] / 20_000 - share) < 0.01


@given(st.lists(st.text(max_size=8)))
def test_rows_of_a_group_share_its_split_whatever_stands_around_them(groups):
    hashed = [split_of(group) for group in groups]
    if len(set(groups)) < 3 or set(hashed) == set(SPLITS):
        assert assign(groups) == hashed
    got = dict(zip(groups, assign(groups), strict=True))
    assert assign(groups) == [got[group] for group in groups]
    assert set(assign(groups)) <= set(SPLITS)


def test_no_split_is_empty_from_three_groups_on():
    for n in range(3, 60):
        for k in range(20):
            groups = [f"set {k} patient {i}" for i in range(n)]
            got = assign(groups)
            assert set(got) == set(SPLITS)
            assert got == assign(groups[::-1])[::-1], "the order of the groups decides nothing"
            hashed = [split_of(group) for group in groups]
            assert set(hashed) != set(SPLITS) or got == hashed, "a split that works is kept"
