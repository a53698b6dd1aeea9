"""A small set of rendered phantoms, and a recipe that trains on it in seconds."""

from __future__ import annotations

import pytest

RECIPE = """
name = "tiny"
seed = 5
batch = 16
warmup = 2
weight_ema = 0.9
optimizer = "muon"

[model]
embed_dim = 16
vocab_size = 300
vision_cfg = { image_size = 32, patch_size = 8, width = 32, layers = 2, head_width = 16, pool_type = "avg" }
text_cfg = { context_length = 24, width = 16, heads = 2, layers = 1 }

[masked]
epochs = 2

[contrastive]
epochs = 2
local_weight = 0.5
"""


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """A data set of 100 phantoms at 32 px."""
    from dermaudit.phantom import load_bias_table
    from dermaudit.phantom.make import make_data_set

    root = tmp_path_factory.mktemp("sound") / "phantoms"
    make_data_set(root, 100, seed=3, size=32, table=load_bias_table())
    return root


@pytest.fixture(scope="session")
def phantoms(sound, tmp_path_factory):
    """The same; one train and one test image are broken."""
    import shutil

    import pyarrow.parquet as pq

    root = tmp_path_factory.mktemp("data") / "phantoms"
    shutil.copytree(sound, root)
    table = pq.read_table(root / "manifest.parquet")
    for split in ("train", "test"):
        row = table["split"].to_pylist().index(split)
        path = root / table["image"][row].as_py()
        path.write_bytes(path.read_bytes()[:100])
    return root


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path
