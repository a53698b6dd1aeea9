"""Files are whole or absent, and a full disk is one sentence with exit code 2."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from dermaudit import files
from dermaudit.errors import NoSpaceError, UserInputError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), files.whole_file(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_makes_the_folder_and_replaces(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    files.write_text(path, "one")
    files.write_text(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_one_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(UserInputError, match="cannot write .*a.txt"):
            files.write_text(path, "x")


@given(JSON)
def test_canonical_json_is_one_byte_string_per_value(value):
    first = files.canonical_json(value)
    assert files.canonical_json(json.loads(first)) == first
    if isinstance(value, dict):
        backwards = dict(reversed(value.items()))
        assert files.canonical_json(backwards) == first


def test_canonical_json_refuses_what_is_not_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"auroc": math.nan})


def test_the_same_value_gives_the_same_bytes(tmp_path):
    table = pa.table({"a": [1, 2, None], "b": ["x", None, "z"]})
    for name in ("one", "two"):
        files.write_parquet(tmp_path / f"{name}.parquet", table)
        files.write_json(tmp_path / f"{name}.json", {"b": 1, "a": [1.5, "ä"]})
        files.write_npy(tmp_path / f"{name}.npy", np.arange(5))
    for suffix in ("parquet", "json", "npy"):
        digests = {files.sha256_file(tmp_path / f"{n}.{suffix}") for n in ("one", "two")}
        assert len(digests) == 1
    assert pq.ParquetFile(tmp_path / "one.parquet").read().equals(table)
    assert files.read_json(tmp_path / "one.json") == {"b": 1, "a": [1.5, "ä"]}


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256_file(tmp_path / "abc") == known


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "does not exist"), (b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON")],
)
def test_unreadable_json_is_named(tmp_path, content, said):
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserInputError, match=said) as caught:
        files.read_json(path, "run")
    assert str(path) in caught.value.message


def test_no_array_of_objects_is_pickled(tmp_path):
    with pytest.raises(ValueError, match="[Oo]bject arrays"):
        files.write_npy(tmp_path / "a.npy", np.array([{}], dtype=object))
    assert list(tmp_path.iterdir()) == []


WRITERS = {
    "bytes": "files.write_bytes(path, b'x' * 400_000)",
    "npy": "import numpy; files.write_npy(path, numpy.random.default_rng(0).random(50_000))",
    "parquet": "import numpy, pyarrow; files.write_parquet(path, pyarrow.table({'a': "
    "numpy.random.default_rng(0).random(50_000)}))",
    "safetensors": "import torch; files.write_safetensors(path, {'a': torch.rand(100_000)})",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_one_sentence(kind, tmp_path, run_python):
    """The real `main` runs a command that writes 400 kB where 100 kB are allowed."""
    script = tmp_path / "full.py"
    script.write_text(
        "import sys\nfrom dermaudit import files\nfrom dermaudit.cli import main\n"
        "from dermaudit.cli.commands import FUNCTIONS\n"
        f"def write(path: str) -> dict:\n    {WRITERS[kind]}\n    return {{}}\n"
        "sys.modules['full'] = sys.modules['__main__']\n"
        "FUNCTIONS['Results']['write'] = ('full:write', '')\n"
        "sys.exit(main(['write', sys.argv[1], '--json']))\n"
    )
    path = tmp_path / "out" / "file.bin"
    done = run_python(script, path, file_limit_kb=100)
    assert done.rc == 2, done.stderr
    error = done.json()["error"]
    assert error["code"] == "no_space"
    assert error["message"] == f"no space left to write {path}"
    assert "run the same command again" in error["hint"]
    assert "Traceback" not in done.stderr
    assert list(path.parent.iterdir()) == [], "half a file was left behind"
    if kind == "bytes":
        assert run_python(script, path).rc == 0, "with space the same write must succeed"


def test_no_space_is_bad_input():
    assert NoSpaceError("x").exit_code == 2


def test_safetensors_files_are_byte_reproducible_in_every_process(tmp_path, run_python):
    """Several metadata keys and tensors, written by processes with different hash seeds."""
    script = tmp_path / "write.py"
    script.write_text(
        "import sys, torch\nfrom dermaudit import files\n"
        "tensors = {'b': torch.arange(6.0).reshape(2, 3), 'a': torch.ones(3, dtype=torch.bfloat16),\n"
        "           'flag': torch.tensor([True])}\n"
        "metadata = {f'key {i}': 'value \\n\\u00e9\\x7f\\x01\"' * i for i in range(9)}\n"
        "for name in sys.argv[2:]:\n    files.write_safetensors(f'{sys.argv[1]}/{name}', tensors, metadata)\n"
    )
    assert run_python(script, tmp_path, "1", "2").rc == 0
    assert run_python(script, tmp_path, "3", "4").rc == 0
    written = {(tmp_path / name).read_bytes() for name in "1234"}
    assert len(written) == 1
    with safe_open(tmp_path / "1", "pt") as handle:
        assert handle.metadata() == {f"key {i}": 'value \né\x7f\x01"' * i for i in range(9)}
        assert handle.get_tensor("b").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert handle.get_tensor("a").dtype == torch.bfloat16
        assert handle.get_tensor("flag").tolist() == [True]
    size = int.from_bytes(written.pop()[:8], "little")
    assert size % 8 == 0, "tensors must start at a multiple of 8 bytes"
