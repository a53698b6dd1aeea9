"""The SAE architecture of docs/snippets/extending_architecture.md works as the page describes."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sae_rows import held_out

from dermaudit.sae.inference.model import ReLUSAE, load_sae
from dermaudit.sae.training import architectures as package
from dermaudit.sae.training.architectures.registry import architectures
from dermaudit.sae.training.loop import fit_sae
from dermaudit.sae.training.recipe import SAERecipe

PAGE = Path(__file__).parents[2] / "docs" / "snippets" / "extending_architecture.md"


@pytest.fixture
def example(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "relu_decoder_norm_example.py").write_text(code.group(1))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    architectures.cache_clear()
    yield "relu_decoder_norm"
    architectures.cache_clear()


def test_new_file_adds_an_architecture(example, rows, tmp_path):
    settings = {"d_sae": 48, "samples": 40_000, "batch": 200, "lr": 5e-3, "l1_coefficient": 0.5}
    recipe = SAERecipe(architecture=example, **settings)
    sae, _ = fit_sae(rows["train"], rows["val"], recipe, site="visual.pooled", model_name="toy")
    sae.save(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    assert isinstance(loaded, ReLUSAE)
    assert loaded.metadata["training_architecture"] == example
    assert loaded.metadata["l1_coefficient"] == 0.5
    torch.testing.assert_close(loaded.W_dec.norm(dim=1), torch.ones(48))
    assert held_out(loaded, torch.from_numpy(rows["test"]))["fvu"] < 0.5


def test_architectures_are_listed_without_torch():
    code = (
        "import sys; from dermaudit.sae.training.recipe import ARCHITECTURES; "
        "assert len(ARCHITECTURES) == 7; assert not {'torch', 'sae_lens'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
