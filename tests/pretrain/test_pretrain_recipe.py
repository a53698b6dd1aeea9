"""Recipes: what is wrong is named with its mend; --set keeps TOML's types."""

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


@pytest.mark.parametrize("name", ["phantom-vit", "dermoscopy-small"])
def test_bundled(name):
    recipe = load_recipe(name)
    assert recipe.name == name and recipe.image_size >= 96
    assert recipe.contrastive.epochs > 0


def test_unknown_recipe__the_nearest_is_offered():
    with pytest.raises(UserInputError, match="unknown recipe 'phantom-vitt': did you mean 'phantom-vit'?"):
        load_recipe("phantom-vitt")


def test_overrides__keep_their_types(path):
    recipe = load_recipe(
        path,
        ["batch=8", "masked.epochs=1.5", "masked.teacher=phantom-vit", "augment.flip=false",
         'contrastive.columns=["localization"]', "augment.scale=[0.5, 1.0]",
         "model.vision_cfg.layers=3", "name='x y'"],
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
        ("batch=many", "batch: .* (got 'many')"),
        ("masked.mask=1.0", "masked.mask: .*less than 1"),
        ("contrastive.loss=cosine", "contrastive.loss: .*'clip' or 'siglip'"),
        ("batch", "--set batch: expected key=value"),
        ("name.first=3", "'name' is a value, it has no fields"),
        ("batch.x.y=3", "batch"),
        ("model.vision_cfg.image_size=wide", "image_size must be a whole number"),
        ("model.text_cfg={}", "context_length must be a whole number"),
        ("format_version=2", "format_version"),
    ],
)
def test_bad_override__one_sentence(path, override, sentence):
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
