"""Rows: the same numbers as the whole array, whatever the shards, the order and the dtype."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import UserInputError
from dermaudit.sae import ActivationStore
from dermaudit.sae.store.rows import Rows, as_float32

SIZES = (3, 1, 4)
TOKENS, D = 2, 5


def write_store(folder, dtype="float32"):
    """A store of 8 images in three shards, two tokens each; its rows as one float32 array."""
    values = np.random.default_rng(0).normal(size=(8, TOKENS, D)).astype(np.float32)
    store = ActivationStore.create(folder, {"site": "s", "d": D, "tokens": TOKENS, "dtype": dtype})
    at = 0
    for i, n in enumerate(SIZES):
        part = values[at : at + n]
        rows = np.arange(at, at + n)
        store.write_shard(
            i, part if dtype == "bfloat16" else part.astype(dtype), 7 - rows, 100 + rows
        )
        at += n
    return store


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def both(request, tmp_path_factory):
    """(rows, the array they should equal)."""
    store = write_store(tmp_path_factory.mktemp("rows") / "s", request.param)
    whole = store.read()[0][::-1].astype(np.float32)  # read() is in the order of images
    return store.rows(), whole.reshape(-1, D)


def test_shape_and_what_belongs_to_a_row(both):
    rows, _ = both
    assert (rows.n, rows.d, rows.tokens) == (16, D, TOKENS)
    np.testing.assert_array_equal(rows.images(3, 8), [6, 5, 5, 4, 4])
    np.testing.assert_array_equal(rows.groups(3, 8), [101, 102, 102, 103, 103])
    np.testing.assert_array_equal(rows.images(0, 16), np.repeat(np.arange(7, -1, -1), 2))


def test_read__every_span(both):
    rows, whole = both
    for start in range(17):
        for stop in range(start, 17):
            read = rows.read(start, stop)
            assert read.dtype == np.float32 and read.flags.c_contiguous
            np.testing.assert_array_equal(read, whole[start:stop])


@settings(max_examples=60, deadline=None)
@given(index=st.lists(st.integers(0, 15), max_size=40))
def test_take__any_order_any_number_of_times(both, index):
    rows, whole = both
    taken = rows.take(np.array(index, dtype=np.int64))
    assert taken.dtype == np.float32 and taken.shape == (len(index), D)
    np.testing.assert_array_equal(taken, whole[index])


def test_out_of_range_is_an_error(both):
    rows, _ = both
    for bad in (lambda: rows.read(-1, 2), lambda: rows.read(0, 17), lambda: rows.read(3, 2)):
        with pytest.raises(IndexError):
            bad()
    for index in ([-1], [16], [0, 99]):
        with pytest.raises(IndexError):
            rows.take(np.array(index))


def test_of_images__rows_of_a_split(both):
    rows, _ = both
    chosen = np.zeros(8, dtype=bool)
    chosen[[7, 2]] = True  # stored as the first image and the sixth
    np.testing.assert_array_equal(rows.of_images(chosen), [0, 1, 10, 11])


def test_a_store_is_mapped_and_not_copied(tmp_path):
    rows = write_store(tmp_path / "s").rows()
    assert all(
        isinstance(part.base, np.memmap) or isinstance(part, np.memmap) for part in rows._parts
    )
    part = rows._parts[0]
    assert not part.flags.writeable


def test_of_array__the_same_contract():
    acts = np.random.default_rng(1).normal(size=(4, 3, 2)).astype(np.float16)
    rows = Rows.of(acts, groups=np.array([9, 9, 8, 8]))
    assert (rows.n, rows.d, rows.tokens) == (12, 2, 3)
    np.testing.assert_array_equal(rows.read(2, 7), acts.reshape(-1, 2)[2:7].astype(np.float32))
    np.testing.assert_array_equal(rows.take(np.array([11, 0])), acts.reshape(-1, 2)[[11, 0]])
    np.testing.assert_array_equal(rows.images(2, 7), [0, 1, 1, 1, 2])
    np.testing.assert_array_equal(rows.groups(2, 7), [9, 9, 9, 9, 8])
    pooled = Rows.of(acts[:, 0])
    np.testing.assert_array_equal(pooled.images(0, 4), pooled.groups(0, 4))
    assert Rows.of(np.empty((0, 3), np.float32)).take(np.array([], dtype=int)).shape == (0, 3)


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), int), np.zeros((2, 2), complex)])
def test_of_array__what_is_no_rows(array):
    with pytest.raises(UserInputError, match="rows must be floating"):
        Rows.of(array)


def test_take__of_one_float32_array_does_not_alias_it():
    array = np.ones((4, 2), np.float32)
    Rows.of(array).take(np.array([0, 1]))[:] = 5
    Rows.of(array).read(0, 4)[:] = 5
    assert (array == 1).all()


def test_as_float32__bfloat16_bits():
    # 1.0 is 0x3f80, -2.5 is 0xc020, inf 0x7f80.
    bits = np.array([0x3F80, 0xC020, 0x7F80], np.uint16)
    np.testing.assert_array_equal(as_float32(bits), np.array([1.0, -2.5, np.inf], np.float32))
