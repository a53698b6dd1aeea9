"""Hugging Face text towers built without the repository they once came from.

A checkpoint with `hf_model_name` holds all of the text tower's weights but not its configuration;
stock open_clip fetches that from the hub. A `config.json` next to the checkpoint has it; without
one, a BERT of 64 channels a head (PubMedBERT, as in all published dermatology models) is read off
the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from .hub import require_text_config
from .names import CONFIG_FILE, HF_CONFIG

if TYPE_CHECKING:
    from open_clip.hf_model import HFTextEncoder

_MARK = "transformer.embeddings.token_type_embeddings.weight"
_HEAD_WIDTH = 64


def is_bert(state: dict[str, Tensor], prefix: str = "text.") -> bool:
    """Whether the text tower below `prefix` is a BERT (RoBERTa has one token type, BERT two)."""
    mark = state.get(prefix + _MARK)
    return mark is not None and mark.shape[0] == 2


def hf_text_from_state(
    state: dict[str, Tensor], cfg: dict[str, Any], folder: Path
) -> HFTextEncoder | None:
    """open_clip's `HFTextEncoder` of the sizes of `state` (keys without `text.`), weights not loaded.

    A `config.json` next to the checkpoint has priority over the shapes. None when neither it nor
    the weights describe the tower, and open_clip has to ask the repository of `hf_model_name`:
    then that is cached or in reach. Errors: ForeignArtifactError for a `text_cfg` that is not
    open_clip's; UserInputError when the configuration has to be fetched and cannot be.
    """
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIPTextCfg

    try:
        # open_clip's class, for its defaults: the published configurations rely on them.
        text_cfg = CLIPTextCfg(**cfg["text_cfg"])
    except TypeError as error:
        raise ForeignArtifactError(f"{folder / CONFIG_FILE}: text_cfg: {error}") from error
    name = text_cfg.hf_model_name
    assert name is not None, "the caller checks hf_model_name"
    config = _config_beside(folder)
    if config is None and is_bert(state, ""):
        config = _bert_config(state)
    if config is None:
        require_text_config(name, folder)
        return None
    encoder = HFTextEncoder(
        name,
        output_dim=cfg["embed_dim"],
        config=config,
        pooler_type=text_cfg.hf_pooler_type,
        proj_type=text_cfg.hf_proj_type,
        pretrained=False,
    )
    if not any(key.startswith("transformer.pooler.") for key in state):
        # open_clip builds BERT without its pooling layer unless the pooler needs it.
        encoder.transformer.pooler = None
    return encoder


def _config_beside(folder: Path) -> Any:
    """Return the configuration of a text encoder in `folder`, or None."""
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig

    path = folder / HF_CONFIG
    given = read_json(path, "text configuration") if path.is_file() else None
    if not isinstance(given, dict) or given.get("model_type") not in arch_dict:
        return None
    # Of an encoder with a decoder open_clip takes one half; that is left to it.
    if given.get("is_encoder_decoder") or given["model_type"] in ("t5", "mt5"):
        return None
    return AutoConfig.for_model(**given)


def _bert_config(state: dict[str, Tensor]) -> Any:
    from transformers import BertConfig

    words = state["transformer.embeddings.word_embeddings.weight"]
    layer = "transformer.encoder.layer."
    numbers = {int(key.split(".")[3]) for key in state if key.startswith(layer)}
    return BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=max(numbers) + 1,
        num_attention_heads=max(1, words.shape[1] // _HEAD_WIDTH),
        intermediate_size=state[f"{layer}0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["transformer.embeddings.position_embeddings.weight"].shape[0],
    )
