"""Hugging Face's `CLIPModel` folders (MONET is published as one) as open_clip models.

The same network under other names: q, k and v in three matrices instead of one, projections
transposed. `config.json` gives the sizes, `preprocessor_config.json` how images are prepared.
MONET: Kim et al., Nat Med 2024 (ViT-L/14, 77 tokens, 768 channels).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from .hub import has_tokenizer
from .names import HF_CONFIG
from .weights import few

_MARKS = ("vision_model.embeddings.class_embedding", "text_model.embeddings.token_embedding.weight")
#: OpenAI's, for a folder without its own (arXiv 2103.00020).
_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_CLIP_VOCABULARY = 49408
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_TOWERS = {"vision_model": "visual.", "text_model": ""}
_PLAIN = {
    "logit_scale": "logit_scale",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    **{
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in (
            ("vision_model.pre_layrnorm", "visual.ln_pre"),  # spelt so in the published files
            ("vision_model.post_layernorm", "visual.ln_post"),
            ("text_model.final_layer_norm", "ln_final"),
        )
        for part in ("weight", "bias")
    },
}
_TRANSPOSED = {
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
}
_IN_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_BLOCK = re.compile(r"(vision_model|text_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


def is_hf_clip(state: Mapping[str, object]) -> bool:
    """Whether a state dict has the keys of Hugging Face's CLIPModel."""
    return all(mark in state for mark in _MARKS)


def read_hf_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a CLIPModel as open_clip's `{model_cfg, preprocess_cfg}`.

    Errors: ForeignArtifactError for a configuration that open_clip's CLIP cannot compute.
    """
    from transformers import CLIPConfig

    path = folder / HF_CONFIG
    given = read_json(path, "model configuration")
    try:
        # Their class, for its defaults: published files leave out what is usual.
        config = CLIPConfig(**given)
        vision: Any = config.vision_config  # declared as a config or a dict; it is a config here
        text: Any = config.text_config
        acts = {vision.hidden_act, text.hidden_act}
    except Exception as error:  # any class: the configuration is foreign input
        raise ForeignArtifactError(
            f"{path}: not a CLIP configuration ({type(error).__name__}: {error})",
            "restore the file of the release",
        ) from error
    if len(acts) > 1 or not acts <= {"quick_gelu", "gelu"}:
        raise ForeignArtifactError(f"{path}: hidden_act {', '.join(sorted(acts))} is not CLIP's")
    eps = {vision.layer_norm_eps, text.layer_norm_eps}
    model_cfg = {
        "embed_dim": config.projection_dim,
        "quick_gelu": acts == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            "norm_kwargs": {"eps": vision.layer_norm_eps},
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "norm_kwargs": {"eps": text.layer_norm_eps},
            **_pooling(text),
            **_words(folder, text.vocab_size),
        },
    }
    if eps == {1e-5}:  # torch's own; stock open_clip knows no norm_kwargs in older releases
        del model_cfg["vision_cfg"]["norm_kwargs"], model_cfg["text_cfg"]["norm_kwargs"]
    return {"model_cfg": model_cfg, "preprocess_cfg": _preprocess(folder, vision.image_size)}


def _pooling(text: Any) -> dict[str, Any]:
    # Files from before eos_token_id was set have 2 there and pool the largest id, as the first CLIP.
    if text.eos_token_id == 2:
        return {"pool_type": "argmax"}
    return {"pool_type": "eos", "eos_id": text.eos_token_id}


def _words(folder: Path, vocab_size: int) -> dict[str, Any]:
    # Without a tokeniser of its own a model of this vocabulary uses the first CLIP's.
    if vocab_size == _CLIP_VOCABULARY and not has_tokenizer(folder):
        return {}
    return {"hf_tokenizer_name": "local"}


def _preprocess(folder: Path, image_size: int) -> dict[str, Any]:
    path = folder / "preprocessor_config.json"
    config = read_json(path, "image preparation") if path.is_file() else {}
    return {
        "size": image_size,
        "mean": config.get("image_mean", _MEAN),
        "std": config.get("image_std", _STD),
        "interpolation": _INTERPOLATION.get(config.get("resample", 3), "bicubic"),
        # The shorter side to the size, then the middle: what their image processor does.
        "resize_mode": "shortest",
    }


def convert_hf_clip(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the state dict of open_clip's CLIP. Errors: ForeignArtifactError naming `path` and the keys
    that are not CLIP's, or the blocks that lack a part of their attention.
    """
    converted: dict[str, Tensor] = {}
    attention: dict[tuple[str, str], dict[str, Tensor]] = {}
    foreign = []
    for key, value in state.items():
        if key.endswith("embeddings.position_ids"):
            continue  # a counter that older releases of transformers wrote
        found = _BLOCK.fullmatch(key)
        if key in _PLAIN:
            converted[_PLAIN[key]] = value
        elif key in _TRANSPOSED:
            converted[_TRANSPOSED[key]] = value.T.contiguous()
        elif found is None:
            foreign.append(key)
        else:
            tower, number, name, part = found.groups()
            block = f"{_TOWERS[tower]}transformer.resblocks.{number}."
            letter = re.fullmatch(r"self_attn\.([qkv])_proj", name)
            if letter:
                attention.setdefault((block, part), {})[letter.group(1)] = value
            elif name in _IN_BLOCK:
                converted[f"{block}{_IN_BLOCK[name]}.{part}"] = value
            else:
                foreign.append(key)
    for (block, part), parts in attention.items():
        if set(parts) != set("qkv"):
            foreign.append(f"{block} without {', '.join(sorted(set('qkv') - set(parts)))} ({part})")
            continue
        converted[f"{block}attn.in_proj_{part}"] = torch.cat([parts[name] for name in "qkv"])
    if foreign:
        raise ForeignArtifactError(
            f"{path} is not a CLIPModel: unexpected {few(sorted(foreign))}",
            "the weights and config.json belong to different models",
        )
    return converted
