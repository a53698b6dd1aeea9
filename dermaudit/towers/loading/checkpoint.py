"""Writing a model as a folder that `load_model` and stock open_clip (`local-dir:`) open.

`open_clip_config.json`, `open_clip_model.safetensors`, the tokeniser's files, the model card
(`README.md`) and `training_images.json`. The folder is written atomically.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dermaudit.errors import UserInputError
from dermaudit.files import write_json, write_safetensors, write_text

from .cards import CARD_FILE, HASH_DIGITS, TRAINING_FILE
from .names import CONFIG_FILE
from .tokenizer import TokenizerFiles

WEIGHTS_FILE = "open_clip_model.safetensors"


def save_local_dir(
    folder: Path | str,
    model: nn.Module,
    *,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    tokenizer: TokenizerFiles | None,
    card: str,
    training_hashes: Iterable[str] = (),
    half: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write `model` (an open_clip model) to `folder`; returns the folder.

    `model_cfg`: open_clip's (`embed_dim`, `vision_cfg`, `text_cfg`); the tokeniser's fields of
    `text_cfg` are filled in and must not contradict it (None: open_clip's own BPE, which has no
    files). `preprocess_cfg`: `size`, `mean`, `std`,
    `interpolation`, `resize_mode` ("squash" keeps rulers and ink at the border in the picture).
    `training_hashes`: sha256 of the training image files; 16 digits of each are written. `half`:
    weights in float16 (they load as float32: measure the reloaded file).
    Errors: UserInputError when the folder is not empty and `overwrite` is not set, when the
    configuration contradicts the tokeniser, or when a weight is not finite in the file's precision.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise UserInputError(f"{folder} is not empty", "choose another folder, or use --force")
    config = {
        "model_cfg": model_cfg if tokenizer is None else _with_tokenizer(model_cfg, tokenizer),
        "preprocess_cfg": preprocess_cfg,
    }
    tensors = _state(model, half)
    new = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        write_json(new / CONFIG_FILE, config)
        write_safetensors(new / WEIGHTS_FILE, tensors, metadata={"format": "pt"})
        for name, text in (tokenizer.files if tokenizer else {}).items():
            write_text(new / name, text)
        write_text(new / CARD_FILE, card)
        short = sorted({h[:HASH_DIGITS].lower() for h in training_hashes})
        write_json(new / TRAINING_FILE, {"sha256": short})
        _swap(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def _with_tokenizer(model_cfg: dict[str, Any], tokenizer: TokenizerFiles) -> dict[str, Any]:
    text_cfg = dict(model_cfg["text_cfg"])
    for key, value in tokenizer.text_cfg().items():
        given = text_cfg.get(key, value)
        # Any non-empty names will do: a folder reads its own files.
        if given != value and not (key in ("hf_tokenizer_name", "hf_model_name") and given):
            raise UserInputError(
                f"text_cfg has {key} = {given!r}, the tokeniser {value!r}",
                "build the model with **tokenizer.text_cfg() in its text_cfg",
            )
        text_cfg[key] = given
    return {**model_cfg, "text_cfg": text_cfg}


def _state(model: nn.Module, half: bool) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        # The temperature is one number and scales every logit: it stays in float32.
        if half and tensor.is_floating_point() and name not in ("logit_scale", "logit_bias"):
            tensor = tensor.to(torch.float16)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserInputError(f"the weight '{name}' is not finite as {tensor.dtype}")
        # Tied weights share memory, which safetensors refuses to write.
        tensors[name] = tensor.clone()
    return tensors


def _swap(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
