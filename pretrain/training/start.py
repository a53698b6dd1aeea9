"""The model that a recipe starts from, with what is needed to save it again.

Fresh towers with a tokenizer made from the captions; fresh or PanDerm image towers with a Hugging Face
text tower; or a complete model by name. Only what the recipe names is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dermaudit.console import say
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.files import write_text
from dermaudit.towers import build_word_tokenizer, load_model
from dermaudit.towers.open_clip_model import OpenClipModel, as_open_clip

from ..recipe import TrainingRecipe
from ..starts import split_start
from .finetune import trunk_of
from .trunk import timm_trunk

# These words occur in no caption but in prompts of users: they must be one token each.
_KEPT_WORDS = ("skin", "lesion", "dermoscopic", "image", "no")


@dataclass(frozen=True)
class InitialModel:
    """An open_clip `model`, `tokenize` (list of str -> ids), and how it is written down: open_clip's
    `model_cfg` and `preprocess_cfg`, and the tokenizer's files (None: open_clip's own BPE). `licence` is that of
    the weights that it starts from, "" if not known, None if there are none.
    """

    model: OpenClipModel
    tokenize: Callable[[list[str]], Tensor]
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Any
    licence: str | None = None


def make_initial_model(recipe: TrainingRecipe, corpus: Sequence[str], work: Path) -> InitialModel:
    """Build the model from the recipe's seed. `corpus`: texts for a tokenizer of our own; `work` takes
    its files.

    Errors: UserInputError and ForeignArtifactError that name the model, file or key.
    """
    torch.manual_seed(recipe.seed)
    if recipe.model.init:
        start = _from_model(recipe)
    elif recipe.model.start:
        start = _with_trunk(recipe, corpus, work)
    elif "hf_model_name" in recipe.model.text_cfg:
        start = _with_hf_text(recipe)
    else:
        start = _fresh(recipe, corpus, work)
    if recipe.contrastive.loss == "siglip" and getattr(start.model, "logit_bias", None) is None:
        start.model.logit_bias = nn.Parameter(torch.tensor(-10.0))
        start.model_cfg["init_logit_bias"] = -10.0
    if recipe.grad_checkpointing:
        start.model.set_grad_checkpointing(True)
    return start


def preprocess_of(recipe: TrainingRecipe) -> dict[str, Any]:
    """Return open_clip's preprocessing configuration of a recipe."""
    return {
        "size": recipe.image_size,
        "mean": list(recipe.model.mean),
        "std": list(recipe.model.std),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }


def _fresh(recipe: TrainingRecipe, corpus: Sequence[str], work: Path) -> InitialModel:
    import open_clip

    part = recipe.model
    tokens = build_word_tokenizer(
        _KEPT_WORDS,
        corpus,
        context_length=part.text_cfg["context_length"],
        vocab_size=part.vocab_size,
    )
    for name, text in tokens.files.items():
        write_text(work / "tokenizer" / name, text)
    tokenize = open_clip.tokenizer.HFTokenizer(
        str(work / "tokenizer"), context_length=tokens.context_length
    )
    model_cfg = {
        "embed_dim": part.embed_dim,
        "vision_cfg": _stock(part.vision_cfg),
        "text_cfg": {**part.text_cfg, **tokens.text_cfg()},
    }
    model = _build(open_clip.model.CLIP, model_cfg)
    _put_visual(model, recipe)
    return InitialModel(model, tokenize, model_cfg, preprocess_of(recipe), tokens)


def _with_hf_text(recipe: TrainingRecipe) -> InitialModel:
    """Build a model around a Hugging Face text tower with its own weights and tokenizer, from a folder or the hub."""
    import open_clip

    from dermaudit.towers.loading.hub import fetch_text
    from dermaudit.towers.loading.tokenizer import TokenizerFiles

    part = recipe.model
    named = part.text_cfg["hf_model_name"]
    folder = fetch_text(named)
    text_cfg = {**part.text_cfg, "hf_model_name": str(folder), "hf_tokenizer_name": str(folder)}
    model_cfg = {
        "embed_dim": part.embed_dim,
        "vision_cfg": _stock(part.vision_cfg),
        "text_cfg": text_cfg,
    }
    model = _build(open_clip.model.CustomTextCLIP, model_cfg)
    _put_visual(model, recipe)
    tokens = TokenizerFiles.from_folder(
        folder,
        text_cfg["context_length"],
        hf_model_name=_bare(named),
        pooler=text_cfg.get("hf_pooler_type", "mean_pooler"),
    )
    # Written down without a path of this machine: the tokeniser's files go along with the model.
    saved = {**model_cfg, "text_cfg": {**text_cfg, **tokens.text_cfg()}}
    return InitialModel(model, tokens, saved, preprocess_of(recipe), tokens)


def _bare(name: str) -> str:
    """Return a hub id as it is, and the last name of a folder."""
    return Path(name).name if Path(name).is_dir() else name


def _from_model(recipe: TrainingRecipe) -> InitialModel:
    import open_clip

    from dermaudit.towers import resolve
    from dermaudit.towers.loading.load import read_config, tag_quick_gelu
    from dermaudit.towers.loading.tokenizer import TokenizerFiles

    tower = load_model(recipe.model.init)
    # The taps stay behind: what is trained is the model alone.
    model = tower.release()
    model.requires_grad_(True)
    if tower.folder is not None:
        model_cfg = read_config(tower.folder)["model_cfg"]
        context = model_cfg["text_cfg"].get("context_length", 77)
        text_cfg = model_cfg["text_cfg"]
        tokens = (
            TokenizerFiles.from_folder(
                tower.folder,
                context,
                hf_model_name=text_cfg.get("hf_model_name", "local"),
                pooler=text_cfg.get("hf_pooler_type", "mean_pooler"),
            )
            if (tower.folder / "tokenizer.json").is_file()
            else None
        )
    else:
        arch = recipe.model.init.rpartition("/")[0].replace("/", "-")
        stock_cfg = open_clip.get_model_config(arch)
        assert stock_cfg is not None, "load_model has opened this architecture"
        model_cfg, tokens = stock_cfg, None
        if tag_quick_gelu(resolve(recipe.model.init)):
            model_cfg["quick_gelu"] = True
    # Training squashes, whatever the start did: rulers and ink at the border stay in the picture.
    preprocess = {**tower.preprocess_config, "resize_mode": "squash", "interpolation": "bicubic"}
    assert tower.tokenizer is not None, "a tower that is opened by name has a tokenizer"
    return InitialModel(model, tower.tokenizer, model_cfg, preprocess, tokens, "")


def _with_trunk(recipe: TrainingRecipe, corpus: Sequence[str], work: Path) -> InitialModel:
    """Put a pretrained image trunk into the place of a fresh one; text tower and projection are fresh."""
    part = recipe.model
    kind, name = split_start(part.start)
    if kind == "open_clip":
        return _with_tower(recipe, name, corpus, work)
    trunk = timm_trunk(part.start, Path(part.vision_init) if part.vision_init else None)
    vision_cfg = {
        "timm_pool": "avg",
        "timm_proj": "linear",
        **part.vision_cfg,
        "timm_model_name": trunk.timm_name,
        "timm_model_pretrained": False,
    }
    fresh = _fresh(_with_vision(recipe, vision_cfg), corpus, work)
    own = trunk_of(fresh.model).state_dict()
    # With a pooling of open_clip timm's own last layers are not built.
    used = {key: value for key, value in trunk.weights.items() if key in own}
    trunk_of(fresh.model).load_state_dict(used)
    preprocess = {**fresh.preprocess_cfg, "mean": list(trunk.mean), "std": list(trunk.std)}
    say(f"  the image trunk is {part.start} ({trunk.licence or 'licence not known'})")
    return replace(fresh, preprocess_cfg=preprocess, licence=trunk.licence)


def _with_tower(
    recipe: TrainingRecipe, name: str, corpus: Sequence[str], work: Path
) -> InitialModel:
    """Put the image tower of a model of open_clip into the place of a fresh one; its width is that of the space."""
    import open_clip

    tower = load_model(name)
    stock_cfg = open_clip.get_model_config(name.rpartition("/")[0].replace("/", "-"))
    assert stock_cfg is not None, "load_model has opened this architecture"
    if recipe.model.embed_dim != stock_cfg["embed_dim"]:
        raise UserInputError(
            f"model.embed_dim is {recipe.model.embed_dim}, the image tower of {name} has "
            f"{stock_cfg['embed_dim']}",
            f"--set model.embed_dim={stock_cfg['embed_dim']}",
        )
    side = recipe.image_size
    if side != stock_cfg["vision_cfg"]["image_size"]:
        raise UserInputError(
            f"vision_cfg.image_size is {side}, the image tower of {name} takes "
            f"{stock_cfg['vision_cfg']['image_size']}",
            f"--set model.vision_cfg.image_size={stock_cfg['vision_cfg']['image_size']}",
        )
    model = tower.release()
    fresh = _fresh(_with_vision(recipe, stock_cfg["vision_cfg"]), corpus, work)
    fresh.model.visual.load_state_dict(model.visual.state_dict())
    known = tower.preprocess_config
    preprocess = {**fresh.preprocess_cfg, "mean": list(known["mean"]), "std": list(known["std"])}
    say(f"  the image tower is that of {name}")
    return replace(fresh, preprocess_cfg=preprocess, licence="")


def _with_vision(recipe: TrainingRecipe, vision_cfg: dict[str, Any]) -> TrainingRecipe:
    """Return the recipe with another image tower, and fresh weights."""
    part = recipe.model.model_copy(
        update={"vision_cfg": vision_cfg, "vision_init": "", "start": ""}
    )
    return recipe.model_copy(update={"model": part})


def _stock(vision_cfg: dict[str, Any]) -> dict[str, Any]:
    """open_clip's part of `vision_cfg`."""
    return {key: value for key, value in vision_cfg.items() if key != "panderm"}


def _build(kind: type[nn.Module], model_cfg: dict[str, Any]) -> OpenClipModel:
    try:
        return as_open_clip(kind(**copy.deepcopy(model_cfg)))  # open_clip empties what it is given
    except Exception as error:  # open_clip raises any class for a configuration it cannot build
        raise UserInputError(
            f"open_clip cannot build the recipe's model ({type(error).__name__}: {error})",
            "check model.vision_cfg and model.text_cfg against open_clip's own configurations",
        ) from error


def _put_visual(model: OpenClipModel, recipe: TrainingRecipe) -> None:
    """PanDerm's tower in the place of the stock one, and weights for the image tower alone."""
    part = recipe.model
    path = Path(part.vision_init) if part.vision_init else None
    if path is not None and not path.is_file():
        raise UserInputError(
            f"model.vision_init: {path} does not exist",
            "give the file of the image tower's weights",
        )
    if "panderm" in part.vision_cfg:
        from dermaudit.towers.loading.panderm import panderm_visual

        size = part.vision_cfg["panderm"]
        model.visual = panderm_visual(size, part.embed_dim, path, recipe.image_size)
        return
    if path is None:
        return
    from dermaudit.towers.loading.weights import few, read_state

    state = read_state(path)
    if any(key.startswith("visual.") for key in state):  # a complete model: its image tower is used
        state = {k.removeprefix("visual."): v for k, v in state.items() if k.startswith("visual.")}
    mine = model.visual.state_dict()
    fits = {k: v for k, v in state.items() if k in mine and mine[k].shape == v.shape}
    fresh = [k for k in mine if k not in fits]
    # The projection into the joint space belongs to the model it was trained in.
    if set(fresh) - {"proj", "head.proj.weight", "head.mlp.fc1.weight", "head.mlp.fc2.weight"}:
        raise ForeignArtifactError(
            f"{path} does not fit the recipe's image tower: missing or of another shape {few(fresh)}",
            "give the weights of this architecture",
        )
    model.visual.load_state_dict(fits, strict=False)
    for what, keys in (
        ("keeps its first values for", fresh),
        ("leaves out", set(state) - set(fits)),
    ):
        if keys:
            say(f"  {path.name}: the start {what} {few(sorted(keys))}")
