"""The published dermatology models, as tiny folders of the same format and full size without memory."""

from __future__ import annotations

import argparse
import copy
import json
import re

import open_clip
import pytest
import torch
from open_clip.hf_model import HFTextEncoder
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPModel

from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.towers import TokenizerFiles, load_model, save_local_dir
from dermaudit.towers.loading.load import build_model
from dermaudit.towers.loading.panderm import (
    SIZES,
    KeyDifferences,
    PanDermVisual,
    panderm_visual,
    start_from,
)

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "a", "ruler", "##s", "melanoma", "2", ",", "."]
PUBMED = "neuml/pubmedbert-base-embeddings"


# ---- MONET: Hugging Face's CLIPModel -------------------------------------------------------------


def clip_config(eos=9, act="quick_gelu", eps=1e-5):
    text = {
        "hidden_size": 32,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "hidden_act": act,
        "num_attention_heads": 2,
        "vocab_size": 12,
        "max_position_embeddings": 8,
        "eos_token_id": eos,
        "bos_token_id": 1,
        "pad_token_id": 0,
        "layer_norm_eps": eps,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "hidden_act": act,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
        "layer_norm_eps": eps,
    }
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)


def words_in(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "pad_token": "[PAD]"}
        )
    )
    return folder


def clip_folder(folder, **options):
    torch.manual_seed(0)
    theirs = CLIPModel(clip_config(**options)).eval()
    with torch.no_grad():
        for value in theirs.parameters():  # biases and norms that are 0 and 1 would hide a mix-up
            value.add_(0.1 * torch.randn_like(value))
    theirs.save_pretrained(folder)
    words_in(folder)
    return theirs


@pytest.mark.parametrize(
    "options", [{}, {"eos": 2}, {"act": "gelu", "eps": 1e-3}], ids=["eos", "old", "gelu"]
)
def test_monet_agrees_with_transformers(tmp_path, options):
    theirs = clip_folder(tmp_path / "monet", **options)
    tower = load_model(tmp_path / "monet")
    images = torch.randn(3, 3, 32, 32)
    tokens = torch.tensor([[1, 5, 6, 9, 9, 2, 0, 0], [1, 9, 11, 2, 0, 0, 0, 0]])
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=images)
    assert (tower.encode_image(images) - out.image_embeds).abs().max() < 1e-5
    assert (tower.encode_text(tokens) - out.text_embeds).abs().max() < 1e-5
    assert tower.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()), rel=1e-6)
    assert (tower.n_blocks, tower.patch_grid, tower.image_size) == (3, (4, 4), 32)
    assert tower.tokenize(["melanoma a"]).tolist() == [[2, 8, 5, 3, 0, 0, 0, 0]]


def test_monet_images_are_prepared_by_the_configuration_of_the_folder(tmp_path):
    clip_folder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_mean": IMAGENET["mean"],
                "image_std": IMAGENET["std"],
                "resample": 2,
                "size": {"shortest_edge": 32},
            }
        )
    )
    config = load_model(tmp_path).preprocess_config
    assert (config["mean"], config["std"]) == (IMAGENET["mean"], IMAGENET["std"])
    assert (config["size"], config["interpolation"]) == ([32, 32], "bilinear")
    assert config["resize_mode"] == "shortest"


def test_monet_opens_from_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserInputError, match="suinleelab/monet.*not in the local cache") as caught:
        load_model("hf-hub:suinleelab/monet")
    assert "hf download suinleelab/monet --local-dir monet" in caught.value.hint
    repo = tmp_path / "models--suinleelab--monet"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    clip_folder(repo / "snapshots" / ("0" * 40))
    assert load_model("hf-hub:suinleelab/monet").n_blocks == 3


def test_monet_another_architecture_is_named_with_its_keys(tmp_path):
    clip_folder(tmp_path)
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    save_file({**state, "vision_model.head.probe": torch.zeros(1)}, weights)
    with pytest.raises(ForeignArtifactError, match=r"unexpected vision_model\.head\.probe"):
        load_model(tmp_path)
    lost = "text_model.encoder.layers.1.self_attn.k_proj.bias"
    save_file({k: v for k, v in state.items() if k != lost}, weights)
    with pytest.raises(
        ForeignArtifactError, match=r"transformer\.resblocks\.1\. without k \(bias\)"
    ):
        load_model(tmp_path)
    lost = "vision_model.post_layernorm.weight"
    save_file({k: v for k, v in state.items() if k != lost}, weights)
    with pytest.raises(ForeignArtifactError, match=r"missing visual\.ln_post\.weight"):
        load_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "siglip"}))
    with pytest.raises(UserInputError, match=r"config\.json is of a siglip"):
        load_model(tmp_path)


# ---- full size, without memory -------------------------------------------------------------------


def panderm_keys(width, layers, hidden, output_dim):
    """The keys and shapes of the published tower, written down from facts, not from our class."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (output_dim, width),
        "head.bias": (output_dim,),
    }
    block = {
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
    }
    vectors = (
        "norm1.weight norm1.bias norm2.weight norm2.bias gamma_1 gamma_2 attn.q_bias attn.v_bias"
    )
    for name in (*vectors.split(), "attn.proj.bias", "mlp.fc2.bias"):
        block[name] = (width,)
    return shapes | {f"blocks.{i}.{n}": s for i in range(layers) for n, s in block.items()}


@pytest.mark.parametrize(
    ("size", "embed_dim", "vision", "total"),
    [("large", 768, 304.1e6, 414.2e6), ("base", 512, 86.2e6, 195.9e6)],
)
def test_full_size_panderm_and_pubmedbert(size, embed_dim, vision, total, tmp_path):
    """DermFM-Zero and DermLIP-PanDerm from the published JSON, whose sizes are a placeholder."""
    sizes = SIZES[size]
    cfg = {
        "embed_dim": embed_dim,
        "vision_cfg": {
            "image_size": 224,
            "layers": 12,
            "width": 768,
            "patch_size": 16,
            "pretrain_path": None,
        },
        "text_cfg": {
            "context_length": 256,
            "hf_model_name": PUBMED,
            "hf_tokenizer_name": PUBMED,
            "hf_pooler_type": "mean_pooler",  # and open_clip's default, a projection of two layers
        },
    }
    bert = BertConfig(vocab_size=30522)
    with torch.device("meta"):
        state = {
            f"visual.{key}": torch.empty(shape)
            for key, shape in panderm_keys(
                sizes["width"], sizes["layers"], sizes["hidden"], embed_dim
            ).items()
        }
        text = BertModel(bert, add_pooling_layer=False).state_dict()
        state |= {f"text.transformer.{key}": value for key, value in text.items()}
        state["logit_scale"] = torch.empty(())
        between = (768 + embed_dim) // 2
        state["text.proj.0.weight"] = torch.empty(between, 768)
        state["text.proj.2.weight"] = torch.empty(embed_dim, between)
        model = build_model(cfg, state, tmp_path, tmp_path / "weights")
        image = model.encode_image(torch.empty(2, 3, 224, 224))
    assert sum(p.numel() for p in model.visual.parameters()) == pytest.approx(vision, rel=0.002)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(total, rel=0.002)
    assert image.shape == (2, embed_dim)
    read = model.text.config  # BERT's forward asks for values, which meta tensors do not have
    assert (read.num_attention_heads, read.num_hidden_layers, read.hidden_size) == (12, 12, 768)
    assert model.context_length == 256 and model.visual.grid_size == (14, 14)
    assert model.visual.blocks[0].attn.heads == sizes["heads"]


@pytest.mark.parametrize(
    ("layers", "width", "patch", "dim", "text", "millions"),
    [(24, 1024, 14, 768, (768, 12, 12), 427.6), (12, 768, 16, 512, (512, 8, 12), 149.6)],
    ids=["MONET", "MAKE and DermLIP"],
)
def test_full_size_native_towers(layers, width, patch, dim, text, millions, tmp_path):
    """The MAKE configuration carries keys of its fork; stock open_clip would refuse them."""
    vision = {"layers": layers, "width": width, "patch_size": patch, "image_size": 224}
    text_width, heads, depth = text
    words = {
        "context_length": 77,
        "vocab_size": 49408,
        "width": text_width,
        "heads": heads,
        "layers": depth,
    }
    with torch.device("meta"):
        stock = open_clip.CLIP(embed_dim=dim, vision_cfg=vision, text_cfg=words)
        cfg = {
            "embed_dim": dim,
            "text_cfg": words,
            "vision_cfg": {**vision, "patch_embeddings": True, "sigma": 0.3},
        }
        model = build_model(cfg, stock.state_dict(), tmp_path, tmp_path / "weights")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.001)


# ---- a Hugging Face text tower, saved and opened again -------------------------------------------


def small_bert(folder):
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=16,
    )
    config.save_pretrained(words_in(folder))
    return config


def panderm_bert(config, embed_dim=32):
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(
        embed_dim=embed_dim,
        vision_cfg={"layers": 1, "width": 64, "patch_size": 16, "image_size": 16},
        text_cfg={"context_length": 8, "vocab_size": 12, "width": 16, "heads": 1, "layers": 1},
    )
    model.visual = PanDermVisual(64, 16, 64, 2, 1, 128, embed_dim)
    model.text = HFTextEncoder(
        "none", output_dim=embed_dim, config=config, pooler_type="mean_pooler", proj_type="mlp"
    )
    model.text.transformer.pooler = None
    model.context_length = 8
    return model


@pytest.fixture
def saved(tmp_path, preprocess_cfg):
    """(folder, model, tokenizer) of a PanDerm + BERT model that was being trained."""
    config = small_bert(tmp_path / "bert")
    tokens = TokenizerFiles.from_folder(tmp_path / "bert", 8, hf_model_name="some/bert")
    model = panderm_bert(config).train()
    folder = save_local_dir(
        tmp_path / "model",
        model,
        card="# tiny\n",
        half=False,
        tokenizer=tokens,
        model_cfg={
            "embed_dim": 32,
            "vision_cfg": {"image_size": 64},
            "text_cfg": {**tokens.text_cfg(), "hf_proj_type": "mlp"},
        },
        preprocess_cfg=preprocess_cfg,
    )
    return folder, model, tokens


def test_bert_model_saved_and_opened_again_is_the_same(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, model, tokens = saved
    tower = load_model(folder)
    model.eval()
    texts = ["A  rulers, melanoma 2", "", "melanoma &amp; ruler " * 9, "[SEP] a"]
    with torch.no_grad():
        assert torch.equal(tower.tokenize(texts), tokens(texts))
        assert torch.equal(
            tower.encode_text(texts), model.encode_text(tokens(texts), normalize=True)
        )
        x = torch.randn(2, 3, 64, 64)
        assert torch.equal(tower.encode_image(x), model.encode_image(x, normalize=True))
    # Heads of 16 channels cannot be read off the weights: config.json went along.
    assert model.text.config.num_attention_heads == 3
    assert json.loads((folder / "config.json").read_text())["num_attention_heads"] == 3
    ids = tokens(["A rulers, melanoma"])[0].tolist()
    assert ids == [2, 5, 6, 7, 10, 8, 3, 0]


def test_text_tower_gives_the_same_embedding_each_time(saved):
    """BERT has dropout of .1: a tower left in training mode gives another vector at every call."""
    folder, model, tokens = saved
    ids = tokens(["a ruler"])
    with torch.no_grad():
        assert not torch.equal(model.encode_text(ids), model.encode_text(ids)), (
            "else nothing is shown"
        )
    tower = load_model(folder)
    tower.train()
    assert not any(module.training for module in tower.model.modules())
    assert torch.equal(tower.encode_text(ids), tower.encode_text(ids))


def test_tokenizer_files_of_a_folder_agree_with_transformers(tmp_path):
    small_bert(tmp_path / "bert")
    tokens = TokenizerFiles.from_folder(tmp_path / "bert", 6)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "bert"))
    texts = ["melanoma", "a ruler a ruler a ruler", "quokka"]
    expected = theirs(texts, padding="max_length", max_length=6, truncation=True).input_ids
    assert tokens(texts).tolist() == expected
    assert tokens.files == TokenizerFiles.from_folder(tmp_path / "bert", 6).files
    assert str(tmp_path) not in "".join(tokens.files.values()), "no path of this machine"
    assert set(tokens.files) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert tokens.vocab_size == len(WORDS)
    (tmp_path / "bert" / "config.json").unlink()
    native = TokenizerFiles.from_folder(tmp_path / "bert", 6).text_cfg()
    assert (native["eos_id"], native["pad_id"], native["pool_type"]) == (3, 0, "eos")
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(UserInputError, match=re.escape(str(wrong))):
            TokenizerFiles.from_folder(wrong, 6)


def test_files_missing_offline_are_reported_with_their_location(saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder, _, _ = saved
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = PUBMED
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    words = {
        name: (folder / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")
    }
    for name in words:
        (folder / name).unlink()
    with pytest.raises(UserInputError, match=f"tokeniser '{PUBMED}' is neither in") as caught:
        load_model(folder)
    assert f"hf download {PUBMED} tokenizer.json" in caught.value.hint
    assert str(folder) in caught.value.hint
    # A text tower that is no BERT and says nothing of itself.
    for name, text in words.items():
        (folder / name).write_text(text)
    (folder / "config.json").unlink()
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    mark = "text.transformer.embeddings.token_type_embeddings.weight"
    state[mark] = state[mark][:1].clone()
    save_file(state, path)
    with pytest.raises(UserInputError, match="text tower 'some/bert'") as caught:
        load_model(folder)
    assert "hf download some/bert config.json" in caught.value.hint


# ---- PanDerm: the start of a training ------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """The two sizes, small: what is tested is the reading, not the arithmetic."""
    monkeypatch.setitem(SIZES, "base", {"width": 64, "layers": 2, "heads": 1, "hidden": 128})
    monkeypatch.setitem(SIZES, "large", {"width": 128, "layers": 3, "heads": 2, "hidden": 256})
    torch.manual_seed(1)
    return PanDermVisual(64, 16, 64, 2, 1, 128, 32)


@pytest.mark.parametrize("prefix", ["", "visual.", "module.encoder."])
def test_start_finds_the_tower_under_any_prefix(small, prefix, tmp_path, capsys):
    state = {
        f"{prefix}{key}": value for key, value in small.state_dict().items() if "head" not in key
    }
    rest = {"module.teacher." + key: value + 1 for key, value in small.state_dict().items()}
    foreign = {"regressor.mask_token": torch.zeros(1)}
    torch.save(
        {
            "model": {**(rest if "encoder" in prefix else {}), **state, **foreign},
            "args": argparse.Namespace(lr=1e-3),
            "epoch": 499,
        },
        tmp_path / "panderm-base-vit.pth",
    )
    visual = panderm_visual("base", 24, tmp_path / "panderm-base-vit.pth", image_size=64)
    for key, value in small.state_dict().items():
        if not key.startswith("head."):
            assert torch.equal(visual.state_dict()[key], value), key
    assert visual.head.weight.shape == (24, 64)
    stderr = capsys.readouterr().err
    assert (
        "head.* (2)" in stderr
        and "regressor" in stderr
        and ("teacher.* (38)" in stderr) == ("enc" in prefix)
    )
    assert visual(torch.randn(2, 3, 64, 64)).shape == (2, 24)


def test_start_initialises_a_head_and_grid_of_another_size(small, tmp_path):
    save_file(small.state_dict(), tmp_path / "w.safetensors")
    visual = PanDermVisual(96, 16, 64, 2, 1, 128, 24)
    positions = visual.pos_embed.clone()
    left = start_from(visual, tmp_path / "w.safetensors")
    names = ["head.bias", "head.weight", "pos_embed"]
    assert isinstance(left, KeyDifferences) and sorted(left.missing) == names == sorted(left.unused)
    assert torch.equal(visual.pos_embed, positions)
    same = PanDermVisual(64, 16, 64, 2, 1, 128, 32)
    assert start_from(same, tmp_path / "w.safetensors") == ([], [])


def test_start_a_file_of_another_tower_is_refused(small, tmp_path):
    path = tmp_path / "w.safetensors"
    state = small.state_dict()
    save_file(state, path)
    with pytest.raises(ForeignArtifactError, match=r"wrong shape.*\(64, 3, 16, 16\) instead of"):
        panderm_visual("large", 24, path)
    save_file({k: v for k, v in state.items() if "blocks.1" not in k}, path)
    with pytest.raises(ForeignArtifactError, match=r"missing blocks\.1\."):
        panderm_visual("base", 24, path, image_size=64)
    more = {
        k.replace("blocks.1", "blocks.2"): v.clone() for k, v in state.items() if "blocks.1" in k
    }
    save_file({**state, **more}, path)
    with pytest.raises(ForeignArtifactError, match=r"unexpected blocks\.2"):
        panderm_visual("base", 24, path, image_size=64)
    save_file({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(ForeignArtifactError, match=r"no PanDerm tower.*conv1\.weight"):
        panderm_visual("base", 24, path)
    with pytest.raises(UserInputError, match="unknown size of PanDerm 'larg'"):
        panderm_visual("larg", 24)


def test_initial_values_are_those_of_the_paper(small):
    torch.manual_seed(0)
    visual = panderm_visual("large", 24, image_size=64)
    assert float(visual.blocks[1].mlp.fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(visual.head.weight.detach().std()) == pytest.approx(0.02 * 0.001, rel=0.1)
    assert visual.head.bias.abs().max() == 0 and visual.blocks[0].gamma_1.eq(0.1).all()
    torch.manual_seed(0)
    assert torch.equal(visual.head.weight, panderm_visual("large", 24, image_size=64).head.weight)


def test_gradient_checkpointing_gives_the_same_gradients(small, monkeypatch):
    other = copy.deepcopy(small)
    model = nn.Module()
    model.visual = other
    other.set_grad_checkpointing(True)
    calls = []
    inner = type(other.blocks[0]).forward
    monkeypatch.setattr(
        type(other.blocks[0]), "forward", lambda self, x: (calls.append(1), inner(self, x))[1]
    )
    x = torch.randn(3, 3, 64, 64)
    for visual in (small, other):
        calls.clear()
        visual(x).square().sum().backward()
        assert len(calls) == (4 if visual is other else 2), "the blocks run again backward"
    for (name, mine), theirs in zip(small.named_parameters(), other.parameters(), strict=True):
        if mine.grad is not None:
            assert torch.equal(mine.grad, theirs.grad), name
    other.set_grad_checkpointing(False)
    calls.clear()
    other(x).sum().backward()
    assert len(calls) == 2
