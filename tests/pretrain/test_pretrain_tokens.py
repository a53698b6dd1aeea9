"""Texts without their padding give what the tower gives with it, whatever the kind of text tower."""

from __future__ import annotations

import open_clip
import pytest
import torch
from torch import nn

from dermaudit.errors import ForeignArtifactError
from dermaudit.pretrain.tokens import TokenReader, encode_texts, statistics_kept

VISION = {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}


def native(pool: str) -> nn.Module:
    torch.manual_seed(0)
    text = {
        "context_length": 12,
        "vocab_size": 50,
        "width": 16,
        "heads": 2,
        "layers": 2,
        "pool_type": pool,
    }
    if pool == "eos":
        text |= {"eos_id": 49, "pad_id": 0}
    return open_clip.model.CLIP(16, VISION, text).eval()


def hugging_face() -> nn.Module:
    from transformers import BertConfig

    torch.manual_seed(0)
    model = native("eos")
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        pad_token_id=0,
    )
    text = open_clip.hf_model.HFTextEncoder(
        "bert", 16, config=config, pooler_type="mean_pooler", proj_type="linear", pretrained=False
    )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual, self.text, self.logit_scale = model.visual, text, model.logit_scale

        def encode_text(self, ids, normalize=False):
            x = self.text(ids)
            return nn.functional.normalize(x, dim=-1) if normalize else x

    return Model().eval()


def ids(n: int = 70) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    rows = torch.zeros(n, 12, dtype=torch.int64)
    for row in rows:
        length = int(torch.randint(2, 13, (1,), generator=g))
        row[:length] = torch.randint(2, 40, (length,), generator=g)
        row[length - 1] = 49  # the end token, the highest id
    return rows


TOWERS = {"eos": lambda: native("eos"), "argmax": lambda: native("argmax"), "hf": hugging_face}


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("buckets", [1, 4])
def test_encode_texts_is_encode_text(name, buckets):
    model, rows = TOWERS[name](), ids()
    with torch.no_grad():
        expected = model.encode_text(rows, normalize=True)
        found = encode_texts(model, rows, buckets=buckets)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(encode_texts(model, rows[:1]), expected[:1], atol=1e-5, rtol=0)


def test_encode_texts_computes_fewer_tokens():
    model, rows = native("eos"), ids()
    seen = []
    model.ln_final.register_forward_hook(lambda m, a, out: seen.append(out.shape[0] * out.shape[1]))
    encode_texts(model, rows)
    assert len(seen) == 4 and sum(seen) < 0.75 * rows.numel()
    # The gradient reaches the rows in their own order.
    found = encode_texts(model, rows)
    found[3].sum().backward()
    used = model.token_embedding.weight.grad.abs().sum(1) > 0
    assert set(used.nonzero().flatten().tolist()) == set(rows[3].tolist()) - {0}


def test_statistics_kept():
    norm = nn.BatchNorm1d(3).train()
    with statistics_kept(nn.Sequential(norm)):
        norm(torch.randn(8, 3) + 5)
        assert not norm.running_mean.any()
    assert int(norm.num_batches_tracked) == 0
    norm(torch.randn(8, 3) + 5)
    assert (norm.running_mean > 0.3).all() and norm.momentum == 0.1


def test_reader_a_tower_without_a_grid_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(ForeignArtifactError, match="Odd has no grid of tokens"):
        TokenReader(Odd(), 32)
