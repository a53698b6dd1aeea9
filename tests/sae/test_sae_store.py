"""Activation stores: written and read; a shard that is cut off, altered or lost is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from activation_stores import write_store
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
)

META = {"site": "visual.pooled", "dtype": "float32", "model_fingerprint": "f"}


def acts(start: int, n: int) -> np.ndarray:
    return np.arange(start * 4, (start + n) * 4, dtype=np.float32).reshape(n, 4)


@pytest.fixture
def folder(tmp_path):
    """A store of two shards with 5 + 3 rows."""
    shards = [(acts(i, n), np.arange(i, i + n), np.zeros(n)) for i, n in ((0, 5), (5, 3))]
    return write_store(tmp_path / "s", shards, **META).folder


def test_store_reads_what_was_written(folder):
    read, rows = ActivationStore.open(folder, check=True).read()
    np.testing.assert_array_equal(read, acts(0, 8))
    np.testing.assert_array_equal(rows, np.arange(8))


def test_read_orders_rows_whatever_the_order_of_storage(tmp_path):
    shards = [
        (acts(5, 3), np.arange(5, 8), np.zeros(3)),
        (acts(0, 5), np.array([4, 3, 2, 1, 0]), np.zeros(5)),
    ]
    read, rows = write_store(tmp_path / "s", shards, **META).read()
    np.testing.assert_array_equal(rows, np.arange(8))
    np.testing.assert_array_equal(read[:5], acts(0, 5)[::-1])


def test_store_of_another_model_is_refused(folder):
    with pytest.raises(ForeignArtifactError, match="holds activations of another model") as error:
        ActivationStore.open(folder, model_fingerprint="g" * 64)
    assert "--force" in error.value.hint
    assert ActivationStore.open(folder, model_fingerprint="f").meta["n"] == 8


@pytest.mark.parametrize("harm", ["cut", "altered", "lost"])
def test_damaged_shard_is_refused_by_name(folder, harm):
    path = folder / "shard-000001.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "lost":
        path.unlink()
    else:
        data[-1] ^= 1
        path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    refusal = r"shard-000001\.safetensors is missing or altered"
    with pytest.raises(StaleArtifactError, match=refusal):
        ActivationStore.open(folder, check=True)
    if harm == "altered":  # the header alone does not show it
        assert list(ActivationStore.open(folder).intact_shards()) == ["shard-000000.safetensors"]
        return
    with pytest.raises(StaleArtifactError, match=refusal):
        ActivationStore.open(folder)


def test_open_refuses_a_missing_store_and_another_format(tmp_path, folder):
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
def test_file_that_is_not_a_shard_is_refused_by_name(folder, content):
    (folder / "shard-000000.safetensors").write_bytes(content)
    with pytest.raises(
        StaleArtifactError, match=r"shard-000000\.safetensors is missing or altered \("
    ):
        ActivationStore.open(folder)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_dtype_is_read_as_safetensors_reads_it(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(5, 3, 4)).astype(np.float32)
    stored = values if dtype == "bfloat16" else values.astype(dtype)
    store = write_store(
        tmp_path / "s", [(stored, np.arange(5), np.zeros(5))], **META | {"dtype": dtype}
    )
    theirs = load_file(store.shard_paths()[0])["acts"]
    assert str(theirs.dtype) == f"torch.{dtype}"
    read = ActivationStore.open(store.folder).read()[0]
    np.testing.assert_array_equal(read, theirs.float().numpy())
    assert read.dtype == (np.float32 if dtype == "bfloat16" else np.dtype(dtype))


def test_shard_header_agrees_with_safetensors(folder):
    path = folder / "shard-000001.safetensors"
    header = read_shard_header(path)
    with safe_open(path, framework="np") as handle:
        assert set(handle.keys()) == set(header.tensors)
        for name in handle.keys():  # noqa: SIM118
            np.testing.assert_array_equal(
                map_tensor(path, header.tensors[name]), handle.get_tensor(name)
            )


def test_format_1_is_read_but_has_no_image_ids(folder):
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
    assert error.value.hint == "make it again: dermaudit embed DATA --model MODEL --run RUN --force"


def test_every_field_of_the_identity_changes_the_key():
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


def test_full_disk_leaves_no_partial_shard(run_python, tmp_path):
    code = """
import sys, numpy as np, torch
from pathlib import Path
from dermaudit.sae.store.activation_store import write_shard_file
from dermaudit.errors import NoSpaceError
for n, name in ((8, "small"), (200, "large")):
    try:
        write_shard_file(Path(sys.argv[1]) / name, torch.ones(n, 256), np.arange(n), np.zeros(n))
    except NoSpaceError as error:
        print(error.message)
"""
    done = run_python("-c", code, tmp_path, file_limit_kb=64)
    assert done.stdout == f"no space left to write {tmp_path / 'large'}\n", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_group_number_is_stable_and_fits_int64():
    assert group_number("lesion 1") == group_number("lesion 1") != group_number("lesion 2")
    assert 0 <= group_number("é") < 2**63
