"""The same tap table on the other kinds of towers: LND layout, timm, BEiT, HF text, PanDerm."""

from __future__ import annotations

import os
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import Transformer

from dermaudit.towers import HookedTower, load_model
from dermaudit.towers.loading.panderm import PanDermVisual, is_panderm, panderm_from_state

TEXT = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 1, "layers": 1}


@pytest.fixture
def wrap(preprocess_cfg):
    def wrapped(model, size=64):
        cfg = {**preprocess_cfg, "size": size}
        tower = HookedTower(model, tokenizer=None, preprocess_cfg=cfg)
        tower.assert_taps_fire()
        return tower

    return wrapped


def residuals_add_up(cache, n_blocks):
    for i in range(n_blocks):
        block = f"visual.blocks.{i}."
        parts = cache[block + "hook_resid_pre"] + cache[block + "hook_attn_out"]
        whole = parts + cache[block + "hook_mlp_out"]
        assert torch.equal(whole, cache[block + "hook_resid_post"])


def test_token_first_layout_is_shown_item_first(tiny_model, tower, images, tiny_cfg, wrap):
    """A transformer that runs (token, item, d) inside shows and takes (item, token, d)."""
    other = open_clip.CLIP(**tiny_cfg)
    other.load_state_dict(tiny_model.state_dict())
    vision = tiny_cfg["vision_cfg"]
    swapped = Transformer(
        vision["width"], vision["layers"], 3, ls_init_value=0.5, batch_first=False
    )
    swapped.load_state_dict(other.visual.transformer.state_dict())
    other.visual.transformer = swapped.eval()
    lnd = wrap(other)
    bare = other.encode_image(images, normalize=True)
    out, cache = lnd.run_with_cache(images)
    assert torch.equal(out, bare)
    _, expected = tower.run_with_cache(images)
    for site, value in expected.items():
        if site.startswith("visual."):
            assert torch.allclose(cache[site], value, atol=1e-5), site
    residuals_add_up(cache, 3)

    def no_class_token(value, hook):
        return torch.cat([torch.zeros_like(value[:, :1]), value[:, 1:]], dim=1)

    hooks = [("visual.blocks.1.hook_resid_post", no_class_token)]
    ours = lnd.run_with_hooks(images, fwd_hooks=hooks)
    assert torch.allclose(ours, tower.run_with_hooks(images, fwd_hooks=hooks), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_tiny_patch16_224", 224),
        ("beit_base_patch16_224", 224),
        ("eva02_tiny_patch14_224", 224),
    ],
)
def test_timm_trunks(name, size, monkeypatch, wrap):
    """timm's own forward_intermediates is the independent witness. Depth cut to two blocks."""
    import timm

    stock = timm.create_model

    def shallow(model_name, **options):
        return stock(model_name, depth=2, **options)

    monkeypatch.setattr("open_clip.timm_model.timm.create_model", shallow)
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        embed_dim=16,
        vision_cfg={"timm_model_name": name, "timm_proj": "linear", "image_size": size},
        text_cfg=TEXT,
    ).eval()
    # BEiT starts its branches at 1e-5 or less: at that scale a wrong tap would go unnoticed.
    for key, value in model.named_parameters():
        if "gamma_" in key:
            value.data.fill_(0.7)
    x = torch.randn(2, 3, size, size)
    tower = wrap(model, size)
    assert tower.family == "timm"
    with torch.no_grad():
        bare = model.encode_image(x, normalize=True)
        out, cache = tower.run_with_cache(x)
        _, intermediates = model.visual.trunk.forward_intermediates(
            x, output_fmt="NLC", return_prefix_tokens=True
        )
    assert torch.equal(out, bare)
    for i, (patches, prefix) in enumerate(intermediates):
        theirs = torch.cat([prefix, patches], dim=1)
        assert torch.equal(cache[f"visual.blocks.{i}.hook_resid_post"], theirs)
    residuals_add_up(cache, 2)
    assert torch.equal(cache["visual.embed"], cache["visual.blocks.0.hook_resid_pre"])
    assert tower.n_prefix_tokens + tower.patch_grid[0] * tower.patch_grid[1] == theirs.shape[1]
    assert tower.d_block == theirs.shape[2]


def test_a_convolutional_tower_still_opens_without_block_sites(wrap):
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"layers": [1, 1, 1, 1], "width": 8, "image_size": 64},
        text_cfg=TEXT,
    )
    tower = wrap(model)
    assert tower.n_blocks == 0
    assert [s for s in tower.sites if s.startswith("visual.")] == [
        "visual.embedding",
        "visual.pooled",
    ]
    with pytest.raises(Exception, match="has no patches"):
        _ = tower.patch_grid


def test_a_convolution_behind_the_stages_has_a_site_of_its_own(wrap):
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={
            "timm_model_name": "test_efficientnet",
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 96,
        },
        text_cfg=TEXT,
    )
    tower = wrap(model, 96)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding, cache = tower.run_with_cache(x)
        stages = model.visual.trunk.forward_intermediates(x, intermediates_only=True)
        cells = cache["visual.ln_final"]
        again = torch.nn.functional.normalize(model.visual.head(cells.mean(1)), dim=1)
    assert tower.family == "timm convolutional" and tower.n_blocks == len(stages) == 5
    kernel = model.visual.trunk.conv_stem.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    for i, stage in enumerate(stages):
        site = f"visual.blocks.{i}.hook_resid_post"
        assert torch.equal(cache[site], stage.flatten(2).transpose(1, 2))
        assert cache[site].shape[2] == tower.site_width(site)
    assert cells.shape == (2, 9, tower.site_width("visual.ln_final"))
    assert tower.site_grid("visual.ln_final") == (3, 3)
    torch.testing.assert_close(again, embedding)


def bert_clip(width=64):
    """CLIP with PanDerm's image tower and a BERT text tower, as the published ones are built."""
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=96,
        max_position_embeddings=40,
    )
    model = open_clip.CustomTextCLIP(
        embed_dim=32,
        vision_cfg={"layers": 1, "width": 64, "patch_size": 16, "image_size": 16},
        text_cfg=TEXT,
    )
    model.visual = PanDermVisual(64, 16, 64, 2, 1, 128, 32)
    model.text = HFTextEncoder(
        "none", output_dim=32, config=config, pooler_type="mean_pooler", proj_type="mlp"
    )
    model.text.transformer.pooler = None
    model.context_length = 8
    return model.eval().requires_grad_(False)


def test_bert_text_tower_taps(wrap):
    tower = wrap(bert_clip())
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0, 0, 0], [2, 7, 3, 0, 0, 0, 0, 0]])
    bare = tower.model.encode_text(tokens, normalize=True)
    out, cache = tower.run_with_cache(None, tokens)
    assert torch.equal(out, bare)
    hidden = tower.model.text.transformer(
        input_ids=tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True
    ).hidden_states
    assert torch.equal(cache["text.embed"], hidden[0])
    for i in range(2):
        assert torch.equal(cache[f"text.blocks.{i}.hook_resid_pre"], hidden[i])
        assert torch.equal(cache[f"text.blocks.{i}.hook_resid_post"], hidden[i + 1])


def test_published_panderm_checkpoints_open_from_their_own_files(tmp_path, monkeypatch, tokenizer):
    """The released JSON names a 12-layer tower and a text model of another repository.

    Neither is true of the weights or may be fetched: both towers are read off the state dict.
    """
    import json

    from safetensors.torch import save_file

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = bert_clip()
    config = {
        "model_cfg": {
            "embed_dim": 32,
            "vision_cfg": {
                "image_size": 224,
                "layers": 12,
                "width": 768,
                "patch_size": 16,
                "pretrain_path": None,
            },
            "text_cfg": {
                "context_length": 8,
                "hf_model_name": "neuml/pubmedbert-base-embeddings",
                "hf_tokenizer_name": "neuml/pubmedbert-base-embeddings",
                "hf_pooler_type": "mean_pooler",
            },
        },
        "preprocess_cfg": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    for name, text in tokenizer.files.items():
        (tmp_path / name).write_text(text)
    tower = load_model(str(tmp_path))
    assert tower.family == "PanDerm"
    assert (tower.image_size, tower.patch_grid, tower.n_blocks) == (64, (4, 4), 2)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(tower.encode_image(x), model.encode_image(x, normalize=True))
    tokens = torch.tensor([[2, 5, 6, 3, 0, 0, 0, 0]])
    assert torch.equal(tower.encode_text(tokens), model.encode_text(tokens, normalize=True))
    _, cache = tower.run_with_cache(x)
    residuals_add_up(cache, 2)


def test_panderm_agrees_with_the_published_class():
    """Golden input and output of the published class at a tiny size ($DERMAUDIT_DATA/peer-data)."""
    import json

    from safetensors.torch import load_file

    root = os.environ.get("DERMAUDIT_DATA")
    folder = Path(root or "") / "peer-data" / "panderm-tower"
    if not root or not folder.is_dir():
        pytest.skip("peer-data/panderm-tower is not below $DERMAUDIT_DATA")
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "visual.safetensors")
    assert is_panderm(state, prefix="")
    tower = panderm_from_state(state, config["width"] // config["heads"]).eval()
    assert list(tower.state_dict()) and set(tower.state_dict()) == set(state)
    io = load_file(folder / "io.safetensors")
    with torch.no_grad():
        assert (tower(io["input"]) - io["output_0"]).abs().max() < 1e-5


def test_panderm_by_hand():
    """With branches and positions at zero only patches, LayerNorms and head are left."""
    visual = PanDermVisual(32, 16, 64, 1, 1, 128, 8).eval()
    with torch.no_grad():
        visual.pos_embed.zero_()
        visual.blocks[0].gamma_1.zero_()
        visual.blocks[0].gamma_2.zero_()
        x = torch.randn(2, 3, 32, 32)
        patches = visual.patch_embed.proj(x).flatten(2).transpose(1, 2)
        norm = torch.nn.functional.layer_norm
        mean = norm(patches, (64,), eps=1e-6).mean(1)
        expected = visual.head(norm(mean, (64,), eps=1e-6))
        assert torch.allclose(visual(x), expected, atol=1e-5)


def test_fixed_positions_are_those_of_open_clip():
    from open_clip.pos_embed import get_2d_sincos_pos_embed

    from dermaudit.towers.loading.panderm import sin_cos_positions

    theirs = torch.from_numpy(get_2d_sincos_pos_embed(64, 4, cls_token=True)).float()
    assert torch.allclose(sin_cos_positions(4, 64)[0], theirs, atol=1e-6)


def test_a_foreign_visual_state_dict_is_named():
    from dermaudit.errors import ForeignArtifactError

    state = PanDermVisual(32, 16, 64, 1, 1, 128, 8).state_dict()
    with pytest.raises(ForeignArtifactError, match="pos_embed"):
        panderm_from_state({k: v for k, v in state.items() if k != "pos_embed"})
    with pytest.raises(ForeignArtifactError, match="cls_token"):
        panderm_from_state({k: v for k, v in state.items() if k != "cls_token"})


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "regnetx_002"])
def test_batch_norms_are_folded_and_come_back(wrap, name):
    import copy

    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"timm_model_name": name, "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
        text_cfg=TEXT,
    ).eval()  # fmt: skip
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    bare = copy.deepcopy(model)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tower = wrap(model, 64)
    norms = [m for m in tower.model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and all("forward" in vars(m) for m in norms)  # none is left out
    with torch.no_grad():
        expected = bare.encode_image(x)
        found = tower.model.encode_image(x)
        assert not torch.equal(found, expected)  # it does compute otherwise
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        state = tower.model.state_dict()
        assert state.keys() == bare.state_dict().keys()
        assert all(torch.equal(value, bare.state_dict()[key]) for key, value in state.items())
        released = tower.release()
        assert not any("folded" in key for m in released.modules() for key in m._buffers)
        released.visual.to(memory_format=torch.contiguous_format)
        assert torch.equal(released.encode_image(x), expected)


def test_a_norm_that_is_used_twice_is_not_folded():
    from dermaudit.towers.folded_norms import fold_norms

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)
            self.other = torch.nn.Conv2d(3, 4, 3)
            self.norm = torch.nn.BatchNorm2d(4)
            self.alone = torch.nn.BatchNorm2d(4)

        def forward(self, x):
            return self.alone(self.norm(self.conv(x)) + self.norm(self.other(x)))

    assert fold_norms(Twice().eval(), torch.zeros(1, 3, 8, 8)) == []
