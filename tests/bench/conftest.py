"""Two tiny towers of random weights, and phantoms enough to score them."""

from __future__ import annotations

import pytest

CFG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"width": 16, "heads": 2, "layers": 1},
}
PREPROCESS = {"size": 32, "mean": [0.7, 0.55, 0.5], "std": [0.2, 0.2, 0.2], "resize_mode": "squash"}


@pytest.fixture(scope="session")
def scored(tmp_path_factory):
    """A data set of 260 phantoms at 32 px; one of its test images is broken."""
    import pyarrow.parquet as pq

    from dermaudit.phantom import load_bias_table
    from dermaudit.phantom.make import make_data_set

    root = tmp_path_factory.mktemp("bench") / "toy"
    make_data_set(root, 260, seed=4, size=32, table=load_bias_table())
    table = pq.read_table(root / "manifest.parquet")
    broken = root / table["image"][table["split"].to_pylist().index("test")].as_py()
    broken.write_bytes(broken.read_bytes()[:100])
    return root


@pytest.fixture(scope="session")
def two_models(tmp_path_factory, scored):
    """Folders "plain" and "other"; a third, "seen", lists a test image as a training image."""
    import open_clip
    import torch

    from dermaudit.data import Manifest
    from dermaudit.files import sha256_file
    from dermaudit.towers import build_word_tokenizer, save_local_dir

    root = tmp_path_factory.mktemp("models")
    tokens = build_word_tokenizer(
        ["skin"], ["dermoscopy of melanoma with a ruler", "a nevus and hair"], context_length=24
    )
    cfg = {**CFG, "text_cfg": {**CFG["text_cfg"], **tokens.text_cfg()}}
    manifest = Manifest.load(scored)
    last = manifest.paths()[len(manifest.splits) - 1 - manifest.splits[::-1].index("test")]
    for seed, name in enumerate(("plain", "other", "seen")):
        torch.manual_seed(seed)
        save_local_dir(
            root / name,
            open_clip.CLIP(**cfg).eval(),
            model_cfg=cfg,
            preprocess_cfg=PREPROCESS,
            tokenizer=tokens,
            card="---\nlicense: cc0-1.0\n---\n",
            training_hashes=[sha256_file(last)] if name == "seen" else [],
        )
    return root
