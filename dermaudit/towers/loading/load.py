"""`load_model`: from a name to a HookedTower.

Whatever the source, a model is a folder with `open_clip_config.json` and weights, and is opened by
one path; only `<architecture>/<tag>` goes through open_clip's own registry. Foreign weights that
are not safetensors are read with `weights_only=True` and in no other way.
"""

from __future__ import annotations

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import read_json

from ..hooked import HookedTower
from ..open_clip_model import OpenClipModel, as_open_clip
from .hf_clip import convert_hf_clip, is_hf_clip, read_hf_config
from .hf_text import hf_text_from_state
from .hub import fetch_repo, require_weights, tokenizer_source
from .names import CONFIG_FILE, ModelSource, check_tag, hf_clip_config, resolve
from .panderm import is_panderm, panderm_from_state
from .weights import below, few, read_state, weights_file

#: built only to be replaced by a tower that is read from the weights.
_SMALLEST_VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
_SMALLEST_TEXT = {"context_length": 4, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}


def load_model(name: str | Path, device: str = "cpu") -> HookedTower:
    """Open a model by name (names.py) and check that each of its taps fires once.

    Errors: UserInputError (unknown name, missing or broken file, hub out of reach) and
    ForeignArtifactError (weights of another architecture), each naming the file and the fix.
    """
    source = resolve(str(name))
    tower = _open_tag(source) if source.kind == "open_clip" else _open_folder(source)
    try:
        tower = tower.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserInputError(
            f"device '{device}' cannot be used: {error}", "try --device cpu"
        ) from error
    tower.assert_taps_fire()
    return tower


def _open_folder(source: ModelSource) -> HookedTower:
    folder = fetch_repo(source.repo) if source.kind == "hub" else source.folder
    assert folder is not None
    config = read_config(folder)
    path = weights_file(folder)
    state = read_state(path)
    model = build_model(config["model_cfg"], state, folder, path)
    return HookedTower(
        model,
        tokenizer=_tokenizer(folder, config["model_cfg"]),
        preprocess_cfg=_preprocess_cfg(config, model),
        name=source.name,
        folder=folder,
    )


def _open_tag(source: ModelSource) -> HookedTower:
    import open_clip

    check_tag(source)
    require_weights(source.arch, source.tag)
    model, _, _ = open_clip.create_model_and_transforms(
        source.arch, source.tag, weights_only=True, force_quick_gelu=tag_quick_gelu(source)
    )
    return HookedTower(
        model,
        tokenizer=open_clip.get_tokenizer(source.arch),
        preprocess_cfg=dict(as_open_clip(model).visual.preprocess_cfg),
        name=source.name,
    )


def tag_quick_gelu(source: ModelSource) -> bool:
    """Whether the weights of a tag were trained with QuickGELU: open_clip only warns when the
    architecture's name suggests otherwise (as of `ViT-B-16/openai`) and computes something else.
    """
    from open_clip.pretrained import get_pretrained_cfg

    return bool(get_pretrained_cfg(source.arch, source.tag).get("quick_gelu", False))


def read_config(folder: Path) -> dict[str, Any]:
    """`open_clip_config.json`, with `model_cfg` in it, or what `config.json` of a CLIPModel means.

    Errors: UserInputError naming the file.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() and hf_clip_config(folder):
        return read_hf_config(folder)
    config = read_json(path, "model configuration")
    model = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model, dict):
        raise UserInputError(f"{path} has no 'model_cfg'", "restore the file of the release")
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    missing = [key for key, kind in kinds.items() if not isinstance(model.get(key), kind)]
    if missing:
        raise UserInputError(f"{path}: model_cfg lacks {', '.join(missing)}", "restore the file")
    return config


def build_model(
    model_cfg: dict[str, Any], state: dict[str, Tensor], folder: Path, path: Path
) -> OpenClipModel:
    """Build the open_clip model of `model_cfg` with `state` in it.

    A PanDerm image tower and a BERT text tower are recognised by their keys and built from their
    shapes: their configurations name sizes that are not theirs, or files of another repository.
    The keys of Hugging Face's CLIPModel are turned into open_clip's.
    """
    if is_hf_clip(state):
        state = convert_hf_clip(state, path)
    cfg = copy.deepcopy(model_cfg)
    # Keys of the published forks that concern training only; stock open_clip refuses them.
    for key in ("pretrain_path", "patch_embeddings", "sigma"):
        cfg["vision_cfg"].pop(key, None)
    visual = text = None
    if is_panderm(state):
        head_width = cfg["vision_cfg"].get("head_width", 64)
        visual = panderm_from_state(below(state, "visual."), head_width)
        cfg["vision_cfg"] = _SMALLEST_VISION
    if "hf_model_name" in cfg["text_cfg"]:
        text = hf_text_from_state(below(state, "text."), cfg, folder)
    if text is not None:
        cfg["text_cfg"] = _SMALLEST_TEXT
        cfg["custom_text"] = True
    model = _construct(cfg, folder)
    if visual is not None:
        model.visual = visual
    if text is not None:
        model.text = text
        model.context_length = model_cfg["text_cfg"].get("context_length", text.context_length)
        model.vocab_size = text.vocab_size
    _fill(model, state, path)
    return model


def _construct(cfg: dict[str, Any], folder: Path) -> OpenClipModel:
    import open_clip
    from open_clip.coca_model import CoCa

    custom_text = cfg.pop("custom_text", False) or "hf_model_name" in cfg["text_cfg"]
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    if "multimodal_cfg" in cfg:
        kind = CoCa
    # No tower may fetch weights of its own: the checkpoint has them all.
    if "timm_model_name" in cfg["vision_cfg"]:
        cfg["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in cfg["text_cfg"]:
        cfg["text_cfg"]["hf_model_pretrained"] = False
    try:
        return as_open_clip(kind(**cfg))
    except Exception as error:  # any class: the configuration is foreign input
        raise ForeignArtifactError(
            f"{folder / CONFIG_FILE}: open_clip cannot build this model "
            f"({type(error).__name__}: {error})",
            "check model_cfg against open_clip's own configurations",
        ) from error


def _fill(model: OpenClipModel, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` strictly, after the conversions that open_clip's own loader makes.

    Errors: ForeignArtifactError that names the file and the keys that do not fit.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import (
        convert_to_custom_text_state_dict,
        resize_pos_embed,
        resize_text_pos_embed,
    )

    try:
        state = convert_state_dict(model, dict(state))  # pyright: ignore[reportArgumentType]  # CoCa too
        if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
            state = convert_to_custom_text_state_dict(state)
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    except (RuntimeError, AttributeError, IndexError) as error:
        raise ForeignArtifactError(f"{path} cannot be adapted to the model: {error}") from error
    target = model.state_dict()
    # A number in some releases, a list of one in others.
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in state and scalar in target and state[scalar].numel() == 1:
            state[scalar] = state[scalar].reshape(target[scalar].shape)
    # A buffer that transformers stopped writing in 4.31.
    state.pop("text.transformer.embeddings.position_ids", None)
    faults = {
        "missing": [key for key in target if key not in state],
        "unexpected": [key for key in state if key not in target],
        "wrong shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(target[key].shape)}"
            for key in target
            if key in state and state[key].shape != target[key].shape
        ],
    }
    if any(faults.values()):
        listed = "; ".join(f"{what} {few(sorted(keys))}" for what, keys in faults.items() if keys)
        raise ForeignArtifactError(
            f"{path} does not fit the {CONFIG_FILE} next to it: {listed}",
            "the weights and the configuration belong to different models",
        )
    model.load_state_dict(state, strict=True)


def _preprocess_cfg(config: dict[str, Any], model: OpenClipModel) -> dict[str, Any]:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(asdict(PreprocessCfg()), config.get("preprocess_cfg") or {})
    if hasattr(model.visual, "image_size"):
        merged["size"] = model.visual.image_size
    return merged


def _tokenizer(folder: Path, model_cfg: dict[str, Any]) -> Any:
    import open_clip

    name = model_cfg["text_cfg"].get("hf_tokenizer_name")
    if not name and not (folder / CONFIG_FILE).is_file():
        # A CLIPModel whose folder has no words: by its vocabulary it is the first CLIP's.
        return open_clip.SimpleTokenizer(context_length=model_cfg["text_cfg"]["context_length"])
    if not name:
        return open_clip.get_tokenizer(f"local-dir:{folder}")
    cfg = model_cfg["text_cfg"]
    source = tokenizer_source(folder, name)
    try:
        return open_clip.tokenizer.HFTokenizer(
            source,
            context_length=cfg.get("context_length", 77),
            tokenizer_mode=cfg.get("tokenizer_mode"),
            **(cfg.get("tokenizer_kwargs") or {}),
        )
    except Exception as error:  # transformers raises many classes for a broken tokenizer folder
        raise UserInputError(
            f"the tokeniser in {folder} cannot be opened ({error})",
            "it needs tokenizer.json and tokenizer_config.json next to the weights",
        ) from error
