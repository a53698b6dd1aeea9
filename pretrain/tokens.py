"""Patch tokens of an open_clip image tower, alone or with the embedding that is made of them."""

from __future__ import annotations

import torch
from open_clip.transformer import text_global_pool
from torch import nn


def patch_tokens(visual: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Tokens (n, cells, d) of the last block of an open_clip image tower, row-major, no CLS."""
    if hasattr(visual, "trunk"):
        return _cells(visual.trunk, visual.trunk.forward_features(x))
    out = visual.forward_intermediates(
        x,
        indices=1,
        stop_early=False,
        intermediates_only=True,
        output_fmt="NLC",
        normalize_intermediates=True,
    )
    return out["image_intermediates"][-1]


def embed_with_tokens(visual: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(embedding (n, e), tokens (n, cells, e)) in one pass, neither of unit length. A token goes
    through the projection that makes the embedding: where tokens are averaged and the projection is
    linear, the embedding is the mean of these."""
    if hasattr(visual, "trunk"):
        features = visual.trunk.forward_features(x)
        tokens = _cells(visual.trunk, features)
        return visual.head(visual.trunk.forward_head(features)), visual.head(tokens)
    out = visual.forward_intermediates(
        x, indices=1, output_fmt="NLC", normalize_intermediates=True
    )
    tokens = out["image_intermediates"][-1]
    projection = getattr(visual, "proj", None)
    return out["image_features"], tokens if projection is None else tokens @ projection


def _cells(trunk: nn.Module, features: torch.Tensor) -> torch.Tensor:
    if features.ndim == 4:
        return features.flatten(2).transpose(1, 2)
    # XCiT puts its class token in front after its blocks, without counting it as a prefix.
    late = int(hasattr(trunk, "cls_attn_blocks"))
    return features[:, late or getattr(trunk, "num_prefix_tokens", 0) :]


def encode_short(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """`model.encode_text(ids, normalize=True)` without computing the padding behind the longest text:
    in a causal text tower pooled at its end token, nothing before it depends on what stands behind.
    Other text towers get the ids whole. ids (n, context) with padding last; returns (n, e)."""
    causal = getattr(model, "attn_mask", None) is not None
    if not causal or getattr(model, "text_pool_type", "") != "eos":
        return model.encode_text(ids, normalize=True)
    end = int((ids == model.text_eos_id).int().argmax(1).max()) + 1
    ids = ids[:, :end]
    x = model.token_embedding(ids) + model.positional_embedding[:end]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:end, :end]))
    x = text_global_pool(x, ids, "eos", eos_token_id=model.text_eos_id)
    projection = model.text_projection
    x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
    return nn.functional.normalize(x, dim=-1)
