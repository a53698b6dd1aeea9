"""Activation stores: resumed shard by shard; a shard cut off, altered or lost is refused and made again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, write_json
from dermaudit.sae import ActivationStore
from dermaudit.sae.store.activation_store import (
    Identity,
    group_number,
    map_tensor,
    read_shard_header,
    shard_name,
)

META = {"site": "visual.pooled", "d": 4, "tokens": 1, "dtype": "float32", "model_fingerprint": "f"}


def has(store: ActivationStore, index: int) -> bool:
    return shard_name(index) in store.meta["shards"]


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
    assert has(store, 0) and has(store, 1) and not has(store, 2)
    assert store.meta["n"] == 8


def test_create__other_inputs_start_anew(folder):
    store = ActivationStore.create(folder, {**META, "dtype": "float16"})
    assert not has(store, 0) and store.meta["n"] == 0
    assert not list(folder.glob("shard-*"))


def test_another_models_store_is_refused_and_left_alone(folder):
    before = (folder / "store.json").read_bytes()
    for use in (
        lambda: ActivationStore.create(folder, {**META, "model_fingerprint": "g" * 64}),
        lambda: ActivationStore.open(folder, model_fingerprint="g" * 64),
    ):
        with pytest.raises(
            ForeignArtifactError, match="holds activations of another model"
        ) as error:
            use()
        assert "--force" in error.value.hint
    assert (folder / "store.json").read_bytes() == before
    assert ActivationStore.open(folder, model_fingerprint="f").meta["n"] == 8


def test_create__a_shard_that_was_never_listed_is_not_finished(folder):
    # Killed after the file was written, before store.json was.
    meta = read_json(folder / "store.json")
    del meta["shards"]["shard-000001.safetensors"]
    write_json(folder / "store.json", {**meta, "n": 5})
    assert not has(ActivationStore.create(folder, META), 1)


@pytest.mark.parametrize("harm", ["cut", "altered", "lost"])
def test_damaged_shard__refused_then_made_again(folder, harm):
    path = folder / "shard-000001.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "lost":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    with pytest.raises(
        StaleArtifactError, match=r"shard-000001\.safetensors is missing or altered"
    ):
        ActivationStore.open(folder, check=True)
    if harm != "altered":  # seen from the header alone, without reading the shard
        with pytest.raises(StaleArtifactError, match=r"shard-000001\.safetensors is missing"):
            ActivationStore.open(folder)
    store = ActivationStore.create(folder, META)  # what `dermaudit embed` does
    assert has(store, 0) and not has(store, 1)
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


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", b"\xff" * 64, b"\x10" + b"\0" * 7 + b"{}" * 8, b"\2" + b"\0" * 7 + b"[]"],
)
def test_what_is_no_shard_is_refused_by_name(folder, content):
    (folder / "shard-000000.safetensors").write_bytes(content)
    with pytest.raises(
        StaleArtifactError, match=r"shard-000000\.safetensors is missing or altered \("
    ):
        ActivationStore.open(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_dtypes__read_as_safetensors_reads_them(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    meta = {**META, "tokens": 3, "dtype": dtype}
    given = values if dtype == "bfloat16" else values.astype(dtype)
    store = ActivationStore.create(tmp_path / "s", meta)
    store.write_shard(0, given, np.arange(5), np.zeros(5))
    theirs = load_file(store.shard_paths()[0])["acts"]
    assert str(theirs.dtype) == f"torch.{dtype}"
    read = ActivationStore.open(store.folder).read()[0]
    np.testing.assert_array_equal(read, theirs.float().numpy())
    assert read.dtype == (np.float32 if dtype == "bfloat16" else np.dtype(dtype))


def test_shard_header__agrees_with_safetensors(folder):
    path = folder / "shard-000001.safetensors"
    header = read_shard_header(path)
    with safe_open(path, framework="np") as handle:
        assert set(handle.keys()) == set(header.tensors)
        for name in handle.keys():  # noqa: SIM118
            np.testing.assert_array_equal(
                map_tensor(path, header.tensors[name]), handle.get_tensor(name)
            )


def test_format_1__is_read_but_has_no_image_ids(folder):
    # What an older dermaudit wrote: no identity, no metadata in the shards' headers.
    meta = read_json(folder / "store.json")
    for path in sorted(folder.glob("shard-*")):
        save_file(load_file(path), path)
        meta["shards"][path.name] = sha256_file(path)
    write_json(folder / "store.json", {**meta, "format_version": 1})
    store = ActivationStore.open(folder, check=True)
    np.testing.assert_array_equal(store.read()[0], acts(0, 8))
    np.testing.assert_array_equal(store.rows().take(np.array([7, 0])), acts(0, 8)[[7, 0]])
    with pytest.raises(StaleArtifactError, match="has no image ids") as error:
        store.image_ids()
    assert error.value.hint == "make it again: dermaudit embed --force"


def test_identity__every_field_is_part_of_the_key():
    identity = Identity("f" * 64, "p" * 64, "visual.pooled", "pooled", "float32")
    changes = {
        "model_fingerprint": "g",
        "preprocess_sha256": "q",
        "site": "s",
        "token_kind": "cls",
        "dtype": "float16",
    }
    keys = {replace(identity, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {identity.key}) == 6
    assert identity.folder(Path("a")).name == f"visual.pooled-{identity.key[:12]}"


def test_disk_full__nothing_half_written_and_the_rest_stays(run_python, tmp_path):
    code = """
import sys, numpy as np
from dermaudit.sae import ActivationStore
from dermaudit.errors import NoSpaceError
store = ActivationStore.create(__import__("pathlib").Path(sys.argv[1]), {"d": 256, "tokens": 1, "dtype": "float32"})
store.write_shard(0, np.ones((8, 256), np.float32), np.arange(8), np.zeros(8))
try:
    store.write_shard(1, np.ones((200, 256), np.float32), np.arange(200), np.zeros(200))
except NoSpaceError as error:
    print(error.message)
"""
    done = run_python("-c", code, tmp_path / "s", file_limit_kb=64)
    path = tmp_path / "s" / "shard-000001.safetensors"
    assert done.stdout == f"no space left to write {path}\n", done.stderr
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        "shard-000000.safetensors",
        "store.json",
    ]
    assert ActivationStore.open(tmp_path / "s", check=True).meta["n"] == 8


def test_group_number__stable_and_fits_int64():
    assert group_number("lesion 1") == group_number("lesion 1") != group_number("lesion 2")
    assert 0 <= group_number("é") < 2**63
