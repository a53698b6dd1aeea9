"""The suppressor as an ONNX file, run by onnxruntime."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sae_rows import random_sae, random_topk

from dermaudit.errors import UserInputError
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.inference.suppressor import MODES

SAES = {
    "threshold": lambda: random_sae(8, 12, threshold=0.5),
    "topk": lambda: random_topk(8, 12, 4),
}


@pytest.fixture(autouse=True)
def _single_thread():
    torch.set_num_threads(1)


def run(path, x: torch.Tensor):
    """[x_out, z, fired] of the file for x."""
    ort = pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_outputs()] == ["x_out", "z", "fired"]
    return session.run(None, {"x": x.numpy()})


def exported(module, path, **options):
    pytest.importorskip("onnx", reason="the extra 'onnx' is not installed")
    pytest.importorskip("onnxscript", reason="the extra 'onnx' is not installed")
    return module.export_onnx(path, **options)


@pytest.mark.parametrize("kind", SAES)
@pytest.mark.parametrize("mode", MODES)
def test_onnx_agrees_with_torch_for_any_number_of_rows(tmp_path, mode, kind):
    module = LatentSuppressor(
        SAES[kind](), [2, 7, 11], mode=mode, level=0.4, gate_level=1.0, renormalise=mode != "mean"
    )
    path = exported(module, tmp_path / "deep" / "suppress.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["suppress.onnx"]  # one file, whole
    for n in (1, 2, 37):
        x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n))
        x[0] = torch.tensor([-0.0, 0, -0.0, 0, 0, -0.0, 0, 1e-3])
        x_out, z, fired = run(path, x)
        ours = module.apply_to(x)
        np.testing.assert_allclose(x_out, ours.x.numpy(), atol=1e-5)
        np.testing.assert_allclose(z, ours.z.numpy(), atol=1e-5)
        np.testing.assert_array_equal(fired, ours.fired.numpy())
        # Where nothing fires: bit for bit, −0.0 too.
        np.testing.assert_array_equal(
            x_out[~fired].view(np.uint32), x.numpy()[~fired].view(np.uint32)
        )
    assert 0 < fired.sum() < 37


def test_onnx_tokens_and_their_positions(tmp_path):
    module = LatentSuppressor(
        random_sae(8, 12, threshold=0.3), [2, 7], positions="patch", renormalise=False
    )
    path = exported(module, tmp_path / "s.onnx", tokens=5)
    x = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    x_out, _, fired = run(path, x)
    np.testing.assert_allclose(x_out, module(x).numpy(), atol=1e-5)
    assert not fired[:, 0].any() and fired[:, 1:].any()


def test_onnx_positions_without_tokens_are_refused_and_nothing_is_written(tmp_path):
    module = LatentSuppressor(random_sae(8, 12), [2], positions="patch")
    with pytest.raises(UserInputError, match="needs tokens"):
        exported(module, tmp_path / "s.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_export_without_the_extra_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserInputError, match="ONNX export needs the package 'onnx'") as refused:
        LatentSuppressor(random_sae(8, 12), [2]).export_onnx(tmp_path / "s.onnx")
    assert "dermaudit[onnx]" in refused.value.hint
    assert not list(tmp_path.iterdir())
