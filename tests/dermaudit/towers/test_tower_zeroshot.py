"""The zero-shot classifier against numbers worked out by hand."""

from __future__ import annotations

import math
import string

import pytest
import torch

from dermaudit.errors import UserInputError
from dermaudit.towers import ZeroShot, prompt_scores
from dermaudit.towers.prompts import HAM_CLASSES, TEMPLATES, ham_classes, melanoma_or_rest


class Words:
    """A text tower of two dimensions: each prompt has the vector written here."""

    logit_scale = 10.0
    vectors = {
        "see a": (1.0, 0.0),
        "a!": (0.6, 0.8),
        "see b": (0.0, 1.0),
        "b!": (0.0, 1.0),
        "see c": (-1.0, 0.0),
        "c!": (-1.0, 0.0),
    }

    def encode_text(self, texts):
        return torch.tensor([self.vectors[t] for t in texts])


TWO = ["see {}", "{}!"]


def test_logits_and_probabilities_by_hand():
    zero = ZeroShot(Words(), {"A": ["a"], "B": ["b"]}, TWO)
    # The mean of (1, 0) and (.6, .8) is (.8, .4), of length sqrt(.8): unit (2, 1) / sqrt(5).
    a = torch.tensor([2.0, 1.0]) / math.sqrt(5)
    assert torch.allclose(zero.weight, torch.stack([a, torch.tensor([0.0, 1.0])]))
    x = torch.tensor([[0.6, 0.8]])
    logits = [10 * 2.0 / math.sqrt(5), 8.0]
    assert torch.allclose(zero.logits(x), torch.tensor([logits]), atol=1e-5)
    p_a = 1 / (1 + math.exp(logits[1] - logits[0]))
    assert torch.allclose(zero.probs(x), torch.tensor([[p_a, 1 - p_a]]), atol=1e-5)


def test_prompt_scores_by_hand():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = prompt_scores(Words(), ["see a"], ["see b", "b!"], x)
    high = 1 / (1 + math.exp(-10))
    assert torch.allclose(scores, torch.tensor([high, 1 - high]), atol=1e-6)


def test_a_class_vector_does_not_depend_on_the_other_classes(tower):
    """Prompts of several classes in one batch would move a vector in its last bits."""
    classes = ham_classes()
    alone = ZeroShot(tower, {"mel": classes["mel"]}).weight[0]
    together = ZeroShot(tower, classes)
    reversed_ = ZeroShot(tower, dict(reversed(classes.items())))
    assert torch.equal(together.weight[together.classes.index("mel")], alone)
    assert torch.equal(reversed_.weight[reversed_.classes.index("mel")], alone)
    assert torch.allclose(together.weight.norm(dim=1), torch.ones(7), atol=1e-6)


def test_with_a_real_tower_probabilities_are_ordered_by_cosine(tower, images):
    zero = ZeroShot(tower, melanoma_or_rest())
    x = tower.encode_image(images)
    probs = zero.probs(x)
    assert zero.classes == ["rest", "mel"]
    assert torch.allclose(probs.sum(1), torch.ones(3), atol=1e-6)
    margin = tower.logit_scale * (x @ (zero.weight[1] - zero.weight[0]))
    assert torch.allclose(probs[:, 1], margin.sigmoid(), atol=1e-5)


def test_every_class_has_distinct_names():
    assert [c.code for c in HAM_CLASSES] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    names = [name for c in HAM_CLASSES for name in c.names]
    assert len(names) == len(set(names))
    assert {c.code for c in HAM_CLASSES if c.malignant} == {"akiec", "bcc", "mel"}
    for template in TEMPLATES:
        assert [field for _, field, _, _ in string.Formatter().parse(template)].count("") == 1
    two = melanoma_or_rest()
    assert not set(two["mel"]) & set(two["rest"])
    assert set(two["mel"]) | set(two["rest"]) == set(names)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ({}, TWO, "at least one class"),
        ({"A": []}, TWO, "class 'A'"),
        ({"A": "a"}, TWO, "class 'A'"),
        ({"A": ["a"]}, [], "templates"),
        ({"A": ["a"]}, ["no place"], "exactly one"),
        ({"A": ["a"]}, ["{} and {}"], "exactly one"),
    ],
)
def test_bad_input_is_named(classes, templates, message):
    with pytest.raises(UserInputError, match=message):
        ZeroShot(Words(), classes, templates)
    with pytest.raises(UserInputError, match="positive and negative"):
        prompt_scores(Words(), ["see a"], [], torch.ones(1, 2))
