"""How much the direction of a recipe depends on the images: by hand, and in a recipe."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from concept_world import RULER, basis, world, write_run

from dermaudit.concepts.evidence.cross_fit import TrainingRows
from dermaudit.concepts.suppression.editor import Edit
from dermaudit.concepts.suppression.make_recipe import RecipeRequest, make_recipe
from dermaudit.concepts.suppression.stability import HALVINGS, stability_of
from dermaudit.concepts.vocabulary.vocabulary import Vocabulary
from dermaudit.errors import EvidenceError

GROUPS = np.array([f"g{i // 3}" for i in range(60)])
ROWS = TrainingRows(SimpleNamespace(groups=GROUPS, seed=0), 5, np.arange(60))


class Chosen:
    """A method that notes its rows and returns given directions in turn."""

    def __init__(self, *directions):
        self.directions, self.seen = directions, []

    def choose(self, rows, edit):
        self.seen.append(rows.train)
        rows = self.directions[(len(self.seen) - 1) % len(self.directions)]
        decoder = torch.tensor(rows, dtype=torch.float32)
        return SimpleNamespace(
            sae=SimpleNamespace(W_dec=decoder), latents=list(range(len(decoder)))
        )


def test_halves_share_no_group_and_the_cosine_is_that_of_matched_directions():
    method = Chosen([[3, 0, 0], [0, 1, 0]], [[0, 2, 0], [3, 4, 0]])
    found = stability_of(method, ROWS, Edit())
    # The first is matched with the second of the other half: cosines .6 and 1.
    assert found["cosine"] == pytest.approx(0.8) and found["low"] == found["high"]
    assert found["halvings"] == HALVINGS and len(method.seen) == 2 * HALVINGS
    for one, other in zip(method.seen[::2], method.seen[1::2], strict=True):
        assert not set(GROUPS[one]) & set(GROUPS[other])
        assert sorted([*one, *other]) == list(range(60))


def test_too_few_images_in_a_half():
    class Fails(Chosen):
        def choose(self, rows, edit):
            raise EvidenceError("too few")

    assert stability_of(Fails(), ROWS, Edit()) is None


def test_a_recipe_says_how_stable_its_direction_is(tmp_path, capsys):
    run = write_run(tmp_path / "r", world(1500, seed=4))
    from dermaudit.sae.run_data import RunData

    made = make_recipe(RecipeRequest(RunData(run), "ruler", Vocabulary.load()))
    stability = made.figures["stability"]
    assert 0.8 < stability["low"] <= stability["cosine"] <= stability["high"] <= 1
    assert made.recipe is not None and made.recipe.body["effects"]["stability"] == stability
    direction = made.recipe.sae().W_dec[0].numpy()
    assert abs(direction @ basis()[RULER]) / np.linalg.norm(direction) > 0.8
    made.recipe.show()
    assert "stability: made from two halves of the groups" in capsys.readouterr().err
