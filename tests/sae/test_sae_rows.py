"""Rows of a store equal those of the whole array for any shards, order and dtype."""

from __future__ import annotations

import numpy as np
import pytest
from activation_stores import write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import UserInputError
from dermaudit.sae.store.rows import EmbeddingRows, as_float32

SIZES = (3, 1, 4)
TOKENS, D = 2, 5


def store_of_8_images(folder, dtype="float32"):
    """A store of 8 images with two tokens each, in three shards."""
    values = np.random.default_rng(0).normal(size=(8, TOKENS, D)).astype(np.float32)
    stored = values if dtype == "bfloat16" else values.astype(dtype)
    shards = [
        (stored[rows], 7 - rows, 100 + rows)
        for rows in np.split(np.arange(8), np.cumsum(SIZES)[:-1])
    ]
    return write_store(folder, shards, site="s", dtype=dtype)


@pytest.fixture(scope="module", params=["float32", "float16", "bfloat16"])
def both(request, tmp_path_factory):
    """(rows, the array they should equal)."""
    store = store_of_8_images(tmp_path_factory.mktemp("rows") / "s", request.param)
    whole = store.read()[0][::-1].astype(np.float32)  # read() is in the order of images
    return store.rows(), whole.reshape(-1, D)


def test_rows_have_shape_image_numbers_and_group_numbers(both):
    rows, _ = both
    assert (rows.n, rows.d, rows.tokens) == (16, D, TOKENS)
    np.testing.assert_array_equal(rows.image_rows, np.arange(7, -1, -1))
    np.testing.assert_array_equal(rows.image_groups, np.arange(100, 108))


def test_read_returns_every_span(both):
    rows, whole = both
    for start in range(17):
        for stop in range(start, 17):
            read = rows.read(start, stop)
            assert read.dtype == np.float32 and read.flags.c_contiguous
            np.testing.assert_array_equal(read, whole[start:stop])


@settings(max_examples=60, deadline=None)
@given(index=st.lists(st.integers(0, 15), max_size=40))
def test_take_returns_rows_in_any_order_and_repeated(both, index):
    rows, whole = both
    taken = rows.take(np.array(index, dtype=np.int64))
    assert taken.dtype == np.float32 and taken.shape == (len(index), D)
    np.testing.assert_array_equal(taken, whole[index])


def test_row_numbers_out_of_range_are_refused(both):
    rows, _ = both
    for bad in (lambda: rows.read(-1, 2), lambda: rows.read(0, 17), lambda: rows.read(3, 2)):
        with pytest.raises(IndexError):
            bad()
    for index in ([-1], [16], [0, 99]):
        with pytest.raises(IndexError):
            rows.take(np.array(index))


def test_of_images_returns_the_rows_of_a_split(both):
    rows, _ = both
    mask = np.zeros(8, dtype=bool)
    mask[[7, 2]] = True  # stored as the first image and the sixth
    np.testing.assert_array_equal(rows.of_images(mask), [0, 1, 10, 11])


def test_store_is_memory_mapped_and_not_copied(tmp_path):
    for array in store_of_8_images(tmp_path / "s").rows()._arrays:
        assert isinstance(array, np.memmap) or isinstance(array.base, np.memmap)
        assert not array.flags.writeable


def test_rows_of_an_array_are_read_like_those_of_a_store():
    acts = np.random.default_rng(1).normal(size=(4, 3, 2)).astype(np.float16)
    rows = EmbeddingRows.of(acts, groups=np.array([9, 9, 8, 8]))
    assert (rows.n, rows.d, rows.tokens) == (12, 2, 3)
    np.testing.assert_array_equal(rows.read(2, 7), acts.reshape(-1, 2)[2:7].astype(np.float32))
    np.testing.assert_array_equal(rows.take(np.array([11, 0])), acts.reshape(-1, 2)[[11, 0]])
    np.testing.assert_array_equal(rows.image_groups, [9, 9, 8, 8])
    pooled = EmbeddingRows.of(acts[:, 0])
    np.testing.assert_array_equal(pooled.image_rows, pooled.image_groups)
    assert EmbeddingRows.of(np.empty((0, 3), np.float32)).take(np.array([], dtype=int)).shape == (
        0,
        3,
    )


@pytest.mark.parametrize("array", [np.zeros(3), np.zeros((2, 2), int), np.zeros((2, 2), complex)])
def test_arrays_that_are_not_rows_are_refused(array):
    with pytest.raises(UserInputError, match="rows must be floating"):
        EmbeddingRows.of(array)


def test_take_and_read_copy_a_float32_array():
    array = np.ones((4, 2), np.float32)
    EmbeddingRows.of(array).take(np.array([0, 1]))[:] = 5
    EmbeddingRows.of(array).read(0, 4)[:] = 5
    assert (array == 1).all()


def test_as_float32_converts_bfloat16_bits():
    # 1.0 is 0x3f80, -2.5 is 0xc020, inf 0x7f80.
    bits = np.array([0x3F80, 0xC020, 0x7F80], np.uint16)
    np.testing.assert_array_equal(as_float32(bits), np.array([1.0, -2.5, np.inf], np.float32))
