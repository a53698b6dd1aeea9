"""Activation stores: resumed shard by shard; a shard cut off, altered or lost is refused and made again."""

from __future__ import annotations

import numpy as np
import pytest

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, write_json
from dermaudit.sae import ActivationStore
from dermaudit.sae.store import group_number

META = {"site": "visual.pooled", "d": 4, "tokens": 1, "dtype": "float32", "model_fingerprint": "f"}


def acts(start: int, n: int) -> np.ndarray:
    return np.arange(start * 4, (start + n) * 4, dtype=np.float32).reshape(n, 4)


@pytest.fixture
def folder(tmp_path):
    """A store of two shards with 5 + 3 rows."""
    store = ActivationStore.create(tmp_path / "s", META)
    for i, (start, n) in enumerate([(0, 5), (5, 3)]):
        store.write_shard(i, acts(start, n), np.arange(start, start + n), np.zeros(n))
    return store.folder


def test_store__write_read_equal(folder):
    read, rows = ActivationStore.open(folder, check=True).read()
    np.testing.assert_array_equal(read, acts(0, 8))
    np.testing.assert_array_equal(rows, np.arange(8))


def test_store__rows_come_in_order_whatever_the_order_of_shards(tmp_path):
    store = ActivationStore.create(tmp_path / "s", META)
    store.write_shard(1, acts(5, 3), np.arange(5, 8), np.zeros(3))
    store.write_shard(0, acts(0, 5), np.array([4, 3, 2, 1, 0]), np.zeros(5))
    read, rows = ActivationStore.open(tmp_path / "s").read()
    np.testing.assert_array_equal(rows, np.arange(8))
    np.testing.assert_array_equal(read[:5], acts(0, 5)[::-1])


def test_create__goes_on_with_the_next_shard(folder):
    store = ActivationStore.create(folder, META)
    assert store.has_shard(0) and store.has_shard(1) and not store.has_shard(2)
    assert store.meta["n"] == 8


def test_create__other_inputs_start_anew(folder):
    store = ActivationStore.create(folder, {**META, "model_fingerprint": "g"})
    assert not store.has_shard(0) and store.meta["n"] == 0
    assert not list(folder.glob("shard-*"))


def test_create__a_shard_that_was_never_listed_is_not_finished(folder):
    # Killed after the file was written, before store.json was.
    meta = read_json(folder / "store.json")
    del meta["shards"]["shard-000001.safetensors"]
    write_json(folder / "store.json", {**meta, "n": 5})
    assert not ActivationStore.create(folder, META).has_shard(1)


@pytest.mark.parametrize("harm", ["cut", "altered", "lost"])
def test_damaged_shard__refused_then_made_again(folder, harm):
    path = folder / "shard-000001.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "lost":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with pytest.raises(StaleArtifactError, match=r"shard-000001\.safetensors is missing or altered"):
        ActivationStore.open(folder, check=True)
    store = ActivationStore.create(folder, META)  # what `dermaudit embed` does
    assert store.has_shard(0) and not store.has_shard(1)
    assert store.meta["n"] == 5
    store.write_shard(1, acts(5, 3), np.arange(5, 8), np.zeros(3))
    again = ActivationStore.open(folder, check=True)
    np.testing.assert_array_equal(again.read()[0], acts(0, 8))
    assert again.meta["n"] == 8


def test_open__absent_and_foreign(tmp_path, folder):
    with pytest.raises(UserInputError, match="there are no activations at") as absent:
        ActivationStore.open(tmp_path / "nowhere")
    assert "dermaudit embed" in absent.value.hint
    write_json(folder / "store.json", {"format_version": 99, "shards": {}})
    with pytest.raises(ForeignArtifactError, match="not a store of this version"):
        ActivationStore.open(folder)


def test_group_number__stable_and_fits_int64():
    assert group_number("lesion 1") == group_number("lesion 1") != group_number("lesion 2")
    assert 0 <= group_number("é") < 2**63
