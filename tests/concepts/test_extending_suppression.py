"""The suppression method of docs/snippets/extending_suppression.md works as the page describes."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from concept_world import RULER, world, write_run

from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.concepts.suppression import methods
from dermaudit.concepts.suppression.methods.registry import suppression_methods
from dermaudit.concepts.suppression.options import RecipeOptions
from dermaudit.concepts.suppression.stage import recipe_run
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import EvidenceError, UserInputError

PAGE = Path(__file__).parents[2] / "docs" / "snippets" / "extending_suppression.md"
WORDS = Vocabulary.load()


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "r", world(1500))


def test_new_file_adds_a_suppression_method(run, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "best_by_label_example.py").write_text(code.group(1))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    suppression_methods.cache_clear()
    recipe_run(run, "ruler", None, WORDS, RecipeOptions(method="best_by_label"))
    recipe = load_recipe(run, "ruler")
    assert recipe.latents == [RULER] and set(recipe.body["latents"][0]["why"]) == {"auprc"}
    assert recipe.body["protocol"]["method"] == "best_by_label"
    assert recipe.body["effects"]["random_beaten"] >= 95
    suppression_methods.cache_clear()


def test_latents_are_chosen_by_name_also_where_labels_would_allow_more(run):
    with pytest.raises(EvidenceError, match="no latent is named after the concept|is not above 0"):
        recipe_run(run, "ruler", None, WORDS, RecipeOptions(method="name"))


def test_unknown_method_offers_the_nearest(run):
    with pytest.raises(UserInputError, match="unknown suppression method 'sea'.*'sae'"):
        recipe_run(run, "ruler", None, WORDS, RecipeOptions(method="sea"))
