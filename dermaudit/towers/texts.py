"""BERT text towers built from their weights alone, without the repository they once came from.

A checkpoint with `hf_model_name` holds all of the text tower's weights but not its configuration;
stock open_clip fetches that from the hub. The published dermatology models all use BERT of 64
channels a head (PubMedBERT), whose sizes can be read from the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dermaudit.errors import ForeignArtifactError
from dermaudit.files import read_json

from .names import CONFIG_FILE

_MARK = "transformer.embeddings.token_type_embeddings.weight"
_HEAD_WIDTH = 64


def is_bert(state: dict[str, Tensor], prefix: str = "text.") -> bool:
    """Whether the text tower below `prefix` is a BERT (RoBERTa has one token type, BERT two)."""
    mark = state.get(prefix + _MARK)
    return mark is not None and mark.shape[0] == 2


def bert_from_state(state: dict[str, Tensor], cfg: dict[str, Any], folder: Path) -> nn.Module:
    """open_clip's `HFTextEncoder` around a BERT of the sizes of `state` (keys without `text.`).

    A `config.json` of a BERT beside the checkpoint is believed before the shapes. The weights are
    not loaded here. Errors: ForeignArtifactError for a `text_cfg` that is not open_clip's.
    """
    from open_clip.hf_model import HFTextEncoder
    from open_clip.model import CLIPTextCfg
    from transformers import BertConfig

    try:
        # open_clip's class, for its defaults: the published configurations rely on them.
        text_cfg = CLIPTextCfg(**cfg["text_cfg"])
    except TypeError as error:
        raise ForeignArtifactError(f"{folder / CONFIG_FILE}: text_cfg: {error}") from error
    beside = folder / "config.json"
    given = read_json(beside, "text configuration") if beside.is_file() else {}
    if given.get("model_type") == "bert":
        config = BertConfig(**given)
    else:
        words = state["transformer.embeddings.word_embeddings.weight"]
        layer = "transformer.encoder.layer."
        numbers = {int(key.split(".")[3]) for key in state if key.startswith(layer)}
        hidden = state[f"{layer}0.intermediate.dense.weight"].shape[0]
        positions = state["transformer.embeddings.position_embeddings.weight"].shape[0]
        config = BertConfig(
            vocab_size=words.shape[0],
            hidden_size=words.shape[1],
            num_hidden_layers=max(numbers) + 1,
            num_attention_heads=max(1, words.shape[1] // _HEAD_WIDTH),
            intermediate_size=hidden,
            max_position_embeddings=positions,
        )
    encoder = HFTextEncoder(
        text_cfg.hf_model_name,
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
