"""Codes on disk: CSR, CSC and the token of the maximum agree with the dense encode."""

from __future__ import annotations

import errno
import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_rows import random_sae
from scipy.sparse import csr_matrix

from dermaudit.errors import NoSpaceError, UserInputError
from dermaudit.sae import Codes
from dermaudit.sae.inference.codes import encode_images, write_codes


def make(folder, shape, seed=0, threshold=1.0):
    sae = random_sae(8, 12, seed=seed, threshold=threshold)
    acts = np.random.default_rng(seed).normal(size=shape).astype(np.float16).astype(np.float32)
    files = write_codes(folder, sae, acts, "visual.pooled")
    dense = sae.encode(torch.from_numpy(acts)).numpy()
    return Codes(folder), dense, files


@given(st.integers(0, 1000), st.integers(1, 600), st.sampled_from([0.0, 1.0, 50.0]))
@settings(max_examples=15, deadline=None)
def test_pooled_csr_and_csc_equal_dense(tmp_path_factory, seed, n, threshold):
    codes, dense, _ = make(tmp_path_factory.mktemp("codes"), (n, 8), seed, threshold)
    np.testing.assert_array_equal(codes.csr().toarray(), dense)
    for latent in range(12):
        np.testing.assert_array_equal(codes.column(latent), dense[:, latent])
    for image in (0, n - 1):
        latents, values = codes.row(image)
        np.testing.assert_array_equal(latents, np.flatnonzero(dense[image]))
        np.testing.assert_array_equal(values, dense[image][latents])
    np.testing.assert_array_equal(codes.n_active(), (dense > 0).sum(0))
    assert codes.argmax is None and codes.shape == (n, 12)


def test_patches_maximum_over_tokens_and_where_it_was(tmp_path):
    codes, dense, _ = make(tmp_path / "c", (300, 9, 8))  # more than one chunk
    np.testing.assert_array_equal(codes.csr().toarray(), dense.max(1))
    assert len(codes.argmax) == len(codes.values) and codes.argmax.dtype == np.uint16
    image = np.repeat(np.arange(300), np.diff(codes.indptr))
    np.testing.assert_array_equal(dense[image, codes.argmax, codes.indices], codes.values)


@pytest.mark.parametrize("shape", [(700, 8), (300, 3, 8)])
@pytest.mark.parametrize("cells", [40, 1 << 23])
def test_the_bytes_do_not_depend_on_the_size_of_the_bands(tmp_path, monkeypatch, shape, cells):
    monkeypatch.setattr("dermaudit.sae.inference.codes._CELLS", cells)
    codes, dense, _ = make(tmp_path / "c", shape)
    dense = dense if dense.ndim == 2 else dense.max(1)
    csr = csr_matrix(dense)
    csc = csr.tocsc()
    expected = {
        "indptr": csr.indptr.astype(np.int64),
        "indices": csr.indices,
        "values": csr.data,
        "csc_indptr": csc.indptr.astype(np.int64),
        "csc_indices": csc.indices,
        "csc_values": csc.data,
    }
    for name, array in expected.items():
        np.save(tmp_path / f"{name}.npy", array)
        assert (tmp_path / "c" / f"{name}.npy").read_bytes() == (
            tmp_path / f"{name}.npy"
        ).read_bytes(), name


@pytest.mark.slow
def test_memory_does_not_grow_with_the_codes(tmp_path, monkeypatch):
    monkeypatch.setattr("dermaudit.sae.inference.codes._CELLS", 1 << 13)
    sae = random_sae(8, 64, threshold=0.0)

    class Images:
        def __len__(self):
            return 20_000

        def __getitem__(self, part):
            n = min(part.stop, len(self)) - part.start
            return np.random.default_rng(part.start).normal(size=(n, 8)).astype(np.float32)

    tracemalloc.start()
    write_codes(tmp_path, sae, Images(), "visual.pooled")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    codes = Codes(tmp_path)
    assert len(codes.values) > 600_000  # 5 MB, and 5 again by latent
    assert peak < 3e6


def test_files_listed_and_the_same_bytes_again(tmp_path):
    _, _, files = make(tmp_path / "a", (40, 4, 8))
    _, _, again = make(tmp_path / "b", (40, 4, 8))
    assert sorted(f.name for f in files) == sorted(f.name for f in (tmp_path / "a").iterdir())
    for one, other in zip(files, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_a_full_disk_keeps_the_previous_files(tmp_path, monkeypatch):
    _, _, files = make(tmp_path, (300, 4, 8))
    before = {file.name: file.read_bytes() for file in files}

    def full(sae, acts):
        yield from itertools.islice(encode_images(sae, acts), 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dermaudit.sae.inference.codes.encode_images", full)
    with pytest.raises(NoSpaceError, match=r"no space left to write .*\.npy"):
        make(tmp_path, (300, 4, 8), seed=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_missing_codes_are_reported(tmp_path):
    with pytest.raises(UserInputError, match="there are no codes at"):
        Codes(tmp_path)
