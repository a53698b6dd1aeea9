"""Recipes: each fault is named with its fix; --set keeps TOML's types."""

from __future__ import annotations

import pytest

from dermaudit.errors import UserInputError
from dermaudit.pretrain.recipe import load_recipe

TOML = """
name = "t"
[model]
embed_dim = 16
vision_cfg = { image_size = 32, patch_size = 8, width = 32, layers = 1, head_width = 16 }
text_cfg = { context_length = 16, width = 16, heads = 2, layers = 1 }
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "t.toml").write_text(TOML)
    return tmp_path / "t.toml"


BUNDLED = (
    "dermfm-zero",
    "dermlip-panderm",
    "dermlip-vit-b-16",
    "dermoscopy-from-scratch",
    "dermoscopy-small",
    "make",
    "phantom",
)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.contrastive.epochs > 0 and recipe.batch % recipe.accumulate == 0
    assert recipe.model.init or recipe.image_size >= 96


def test_published_recipes_have_the_values_of_their_papers():
    make, dermfm = load_recipe("make"), load_recipe("dermfm-zero")
    assert (make.batch, make.contrastive.epochs, make.warmup) == (2048, 15, 1500)
    assert (make.contrastive.make.lambda_m, make.contrastive.make.lambda_s) == (1.0, 0.7)
    assert make.contrastive.make.subcaptions == 8 and make.model.init == "ViT-B-16/openai"
    assert (dermfm.batch, dermfm.contrastive.lr, dermfm.clip_norm) == (2048, 1e-4, 5.0)
    assert dermfm.contrastive.make.subcaptions == 2 and dermfm.contrastive.make.weights == "none"
    assert dermfm.contrastive.knowledge.weight == 0.4 and dermfm.masked.teacher == "ViT-L-14/openai"
    assert dermfm.augment.crop == (0.4, 1.0) and dermfm.precision == "bf16"
    for name in ("dermlip-vit-b-16", "dermlip-panderm"):
        lip = load_recipe(name)
        assert (lip.contrastive.epochs, lip.contrastive.loss, lip.warmup) == (30, "clip", 1000)
    assert load_recipe("dermlip-vit-b-16").batch == 4096


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(UserInputError, match="unknown recipe 'phantomm': did you mean 'phantom'?"):
        load_recipe("phantomm")


def test_overrides_keep_their_types(path):
    recipe = load_recipe(
        path,
        [
            "batch=8",
            "masked.epochs=1.5",
            "masked.teacher=phantom-vit",
            "augment.flip=false",
            'contrastive.columns=["localization"]',
            "augment.scale=[0.5, 1.0]",
            "model.vision_cfg.layers=3",
            "name='x y'",
        ],
    )
    assert recipe.batch == 8 and recipe.masked.epochs == 1.5
    assert recipe.masked.teacher == "phantom-vit" and recipe.augment.flip is False
    assert recipe.contrastive.columns == ("localization",)
    assert recipe.augment.scale == (0.5, 1.0)
    assert recipe.model.vision_cfg["layers"] == 3 and recipe.name == "x y"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("contrastive.epoch=3", "unknown key 'contrastive.epoch': did you mean 'epochs'?"),
        ("bach=3", "unknown key 'bach': did you mean 'batch'?"),
        ("lr=0.1", "unknown key 'lr': did you mean masked.lr or contrastive.lr?"),
        ("batch=many", "batch: .* (got 'many')"),
        ("masked.mask=1.0", "masked.mask: .*less than 1"),
        ("contrastive.loss=cosine", "contrastive.loss: .*'clip', 'siglip' or 'make'"),
        ("batch", "--set batch: expected key=value"),
        ("name.first=3", "'name' is a value, it has no fields"),
        ("batch.x.y=3", "batch"),
        ("model.vision_cfg.image_size=wide", "image_size must be a whole number"),
        ("model.text_cfg={}", "context_length must be a whole number"),
        ("format_version=2", "format_version"),
        ("accumulate=3", "batch 64 cannot be cut into 3 equal parts"),
        ("contrastive.knowledge.soft=0.5", "contrastive: knowledge.soft needs loss = .make."),
        (
            "contrastive.make.lambda=1",
            "unknown key 'contrastive.make.lambda': did you mean 'lambda_s'?",
        ),
        ("contrastive.epochs=0", "recipe: masked.epochs and contrastive.epochs are both 0"),
        ("model.init=phantom-vit", "model: init names a whole model"),
    ],
)
def test_a_bad_override_is_reported_in_one_sentence(path, override, sentence):
    with pytest.raises(UserInputError, match=sentence.replace("(", r"\(").replace(")", r"\)")):
        load_recipe(path, [override])


def test_bad_files(tmp_path):
    with pytest.raises(UserInputError, match=r"none\.toml does not exist"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(UserInputError, match=r"bad\.toml is not valid TOML"):
        load_recipe(tmp_path / "bad.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(UserInputError, match="name: Field required.*model: Field required"):
        load_recipe(tmp_path / "empty.toml")
    (tmp_path / "dir.toml").mkdir()
    with pytest.raises(UserInputError, match="cannot be read"):
        load_recipe(tmp_path / "dir.toml")
