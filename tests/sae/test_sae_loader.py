"""The order of rows: every row once an epoch, from (seed, epoch) alone, in memory or in chunks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.errors import UserInputError
from dermaudit.sae.store.loader import Loader, RowSubset, row_statistics
from dermaudit.sae.store.rows import EmbeddingRows


def numbered(n: int, d: int = 3) -> EmbeddingRows:
    """Row i holds i in each place."""
    return EmbeddingRows.of(np.repeat(np.arange(n, dtype=np.float32)[:, None], d, axis=1))


class Spy:
    """Rows that note how many were asked for at a time."""

    def __init__(self, rows):
        self.rows, self.n, self.d, self.asked = rows, rows.n, rows.d, []

    def take(self, index):
        self.asked.append(len(index))
        return self.rows.take(index)

    def read(self, start, stop):
        self.asked.append(stop - start)
        return self.rows.read(start, stop)

    def release(self):
        self.rows.release()


def epoch_of(loader: Loader, epoch: int) -> list[int]:
    steps = range(epoch * loader.per_epoch, (epoch + 1) * loader.per_epoch)
    return [int(row[0]) for step in steps for row in loader.batch_at(step)]


@given(
    n=st.integers(1, 900),
    batch=st.integers(1, 70),
    memory=st.sampled_from([200, 1000, 4000, 1 << 20]),
    seed=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_every_row_comes_once_in_an_epoch_except_the_last_partial_batch(n, batch, memory, seed):
    batch = min(batch, n)
    loader = Loader(numbered(n), batch, seed, memory)
    for epoch in (0, 1):
        seen = epoch_of(loader, epoch)
        assert len(seen) == len(set(seen)) == n // batch * batch


@pytest.mark.parametrize("memory", [2000, 1 << 20])
def test_order_depends_on_seed_and_epoch_alone(memory):
    first = Loader(numbered(500), 16, 7, memory)
    orders = [epoch_of(first, epoch) for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2]
    assert epoch_of(Loader(numbered(500), 16, 8, memory), 0) != orders[0]
    again = Loader(numbered(500), 16, 7, memory)
    for step in (70, 3, 92, 40, 41, 0):  # as after interruptions: from anywhere, in any order
        epoch, within = divmod(step, again.per_epoch)
        expected = orders[epoch][16 * within : 16 * (within + 1)]
        assert again.batch_at(step)[:, 0].tolist() == expected


def test_order_mixes_rows_from_the_whole_store():
    """Where a row stands says nothing of its number; in chunks, each buffer draws from everywhere."""
    for memory in (1 << 20, 12 * 800):
        seen = np.array(epoch_of(Loader(numbered(4000), 8, 0, memory), 0))
        assert abs(np.corrcoef(seen, np.arange(len(seen)))[0, 1]) < 0.15
        quarters = seen[:400] // 1000
        assert set(quarters.tolist()) == {0, 1, 2, 3}


def test_chunks_never_take_more_than_half_of_the_memory():
    spy = Spy(numbered(5000, d=4))
    loader = Loader(spy, 32, 0, memory=16 * 1000)
    assert not loader.whole
    epoch_of(loader, 0)
    assert max(spy.asked) <= 500 and len(loader._chunk[2]) <= 500 and sum(spy.asked) <= 5000
    assert len(spy.asked) >= 10


def test_released_rows_can_be_read_again(tmp_path):
    path = tmp_path / "rows.bin"
    np.arange(400, dtype=np.float32).tofile(path)
    rows = EmbeddingRows(
        [np.memmap(path, np.float32, "r", 0, (100, 4))], np.arange(100), np.arange(100), 4
    )
    before = rows.read(0, 100)
    rows.release()
    assert np.array_equal(rows.read(0, 100), before)
    RowSubset(numbered(5), np.arange(3)).release()  # nothing is mapped: nothing happens


def test_rows_in_memory_are_read_once():
    spy = Spy(numbered(1000))
    loader = Loader(spy, 32, 0)
    epoch_of(loader, 0), epoch_of(loader, 1)
    assert sum(spy.asked) == 1000


@pytest.mark.parametrize("memory", [1500, 1 << 20])
def test_shards_of_two_processes_form_the_batch(memory):
    loader, other = (Loader(numbered(333), 10, 1, memory) for _ in range(2))
    for step in range(70):
        halves = [loader.batch_at(step, slice(0, 5)), other.batch_at(step, slice(5, 10))]
        whole = Loader(numbered(333), 10, 1, memory).batch_at(step)
        assert np.array_equal(np.concatenate(halves), whole)


def test_batch_larger_than_the_rows_is_refused():
    with pytest.raises(UserInputError, match="a batch of 11 rows cannot be drawn from 10 rows"):
        Loader(numbered(10), 11, 0)


def test_row_subset_reads_rows_by_number():
    rows = numbered(50)
    some = RowSubset(rows, np.array([3, 4, 5, 20, 49]))
    assert (some.n, some.d) == (5, 3)
    assert some.read(0, 3)[:, 0].tolist() == [3, 4, 5]
    assert some.read(1, 5)[:, 0].tolist() == [4, 5, 20, 49]
    assert some.read(2, 2).shape == (0, 3)
    assert some.take(np.array([4, 0]))[:, 0].tolist() == [49, 3]


def test_row_statistics_equal_a_computation_by_hand():
    x = np.random.default_rng(0).normal(size=(70_000, 3)).astype(np.float32) + 5
    x[[0, 17, 69_999]] = [[np.nan, 0, 0], [0, np.inf, 0], [-np.inf] * 3]
    good = np.delete(x, [0, 17, 69_999], axis=0).astype(np.float64)
    found = row_statistics(EmbeddingRows.of(x))
    assert found.bad.tolist() == [0, 17, 69_999] and found.n == 69_997
    assert found.good.tolist()[:3] == [1, 2, 3] and len(found.good) == 69_997
    np.testing.assert_allclose(found.mean, good.mean(0), atol=1e-5)
    spread = np.linalg.norm(good - good.mean(0), axis=1).mean()
    assert found.spread == pytest.approx(spread, rel=0.01)  # from every other row
    few = row_statistics(EmbeddingRows.of(x[1:17]))
    exact = np.linalg.norm(x[1:17] - x[1:17].mean(0), axis=1).mean()
    assert few.spread == pytest.approx(exact, rel=1e-5)


def test_rows_without_a_finite_one_are_refused():
    with pytest.raises(UserInputError, match="none of the 4 rows is finite"):
        row_statistics(EmbeddingRows.of(np.full((4, 2), np.nan, np.float32)))
