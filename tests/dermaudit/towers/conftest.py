"""Tiny random towers, made here: no test of this folder needs a network or a trained model."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from dermaudit.towers import build_word_tokenizer, load_model, save_local_dir

CORPUS = ["a dermoscopic image of a nevus with hair", "dermoscopy of melanoma and a ruler"]
PREPROCESS = {
    "size": 64,
    "mode": "RGB",
    "mean": [0.7, 0.55, 0.5],
    "std": [0.2, 0.21, 0.22],
    "interpolation": "bicubic",
    "resize_mode": "squash",
    "fill_color": 0,
}
CARD = "---\nlicense: cc0-1.0\ntags:\n- dermoscopy\n---\n# tiny\n"


@pytest.fixture(scope="session")
def preprocess_cfg():
    return dict(PREPROCESS)


@pytest.fixture(scope="session")
def tokenizer():
    return build_word_tokenizer(["ruler", "gel bubble", "melanoma"], CORPUS, context_length=16)


@pytest.fixture(scope="session")
def tiny_cfg(tokenizer):
    return {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 48,
            "layers": 3,
            "head_width": 16,
            "ls_init_value": 0.5,
        },
        "text_cfg": {"width": 32, "heads": 2, "layers": 2, **tokenizer.text_cfg()},
    }


@pytest.fixture(scope="session")
def tiny_model(tiny_cfg):
    torch.manual_seed(0)
    return open_clip.CLIP(**tiny_cfg).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_model, tiny_cfg, tokenizer):
    """A checkpoint in float32, so that the model in memory is the one on disk."""
    return save_local_dir(
        tmp_path_factory.mktemp("checkpoints") / "tiny",
        tiny_model,
        model_cfg=tiny_cfg,
        preprocess_cfg=PREPROCESS,
        tokenizer=tokenizer,
        card=CARD,
        training_hashes=["AB" * 32, "cd" * 32],
        half=False,
    )


@pytest.fixture(scope="session")
def tower(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def photos():
    """Three uint8 pictures, wider than high."""
    return np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def images(tower, photos):
    return tower.preprocess(photos)
