"""Recipes: what cannot be is refused in a sentence that names it; settings and grids from text."""

from __future__ import annotations

import pytest

from dermaudit.errors import UserInputError
from dermaudit.sae.training.architectures.matryoshka import default_widths
from dermaudit.sae.training.recipe import SAERecipe, dermfm_zero, settings_from
from dermaudit.sae.training.sweep import MOST, name_of, parse_grid, parse_seeds


def test_defaults_are_unchanged():
    recipe = SAERecipe()
    assert (recipe.architecture, recipe.d_sae, recipe.k, recipe.samples) == (
        "batchtopk",
        512,
        8.0,
        400_000,
    )
    assert (recipe.batch, recipe.lr, recipe.warmup, recipe.dead_window) == (512, 1e-3, 0.05, 20_000)
    assert (recipe.aux_coefficient, recipe.checks, recipe.patience) == (0.03125, 8, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 600}, "k = 600 is larger than d_sae = 512"),
        ({"architecture": "jumprelu", "k": 600}, "k = 600 is larger than d_sae = 512"),
        ({"architecture": "topk", "k": 2.5}, "k = 2.5: topk keeps a whole number"),
        ({"k": 0.001}, "keeps nothing of a batch of 512"),
        ({"k": float("nan")}, "k = nan is not finite"),
        ({"k": -1}, "k = -1 must be above 0"),
        ({"lr": 0}, "lr = 0 must be above 0"),
        ({"epochs": 0.0}, "epochs = 0 must be above 0"),
        ({"clip": -1.0}, "clip = -1 must not be below 0"),
        ({"warmup": 1.5}, "warmup = 1.5 must be a fraction"),
        ({"d_sae": 12.5}, "d_sae = 12.5 is not a whole number"),
        ({"batch": True}, "batch = True is not a whole number"),
        ({"architecture": 3}, "architecture = 3 is not a text"),
        ({"architecture": "batchtok"}, "unknown architecture 'batchtok': did you mean 'batchtopk'"),
        ({"decay": "cosin"}, "did you mean 'cosine'"),
        (
            {"widths": (8, 512)},
            "widths is a setting of the architecture matryoshka, not of batchtopk",
        ),
        (
            {"architecture": "matryoshka", "widths": (64, 32)},
            "widths = 64-32 do not rise up to d_sae = 512",
        ),
        ({"architecture": "matryoshka", "widths": (64, 600)}, "do not rise"),
        ({"export": "topk"}, "export is a setting of the architecture topk, not of batchtopk"),
    ],
)
def test_impossible_recipe_is_refused(settings, said):
    with pytest.raises(UserInputError, match=said):
        SAERecipe(**settings)


def test_k_may_be_d_sae_and_is_ignored_without_a_target():
    assert SAERecipe(d_sae=8, k=8).k == 8
    assert SAERecipe(architecture="relu_l1", d_sae=4, k=8).d_sae == 4
    assert SAERecipe(architecture="jumprelu", l0_penalty="step", d_sae=4, k=8).d_sae == 4


def test_widths_end_at_d_sae_and_follow_it():
    assert default_widths(512) == (32, 64, 128, 256, 512) and default_widths(3) == (1, 3)
    assert SAERecipe(architecture="matryoshka", widths=(16, 64)).widths == (16, 64, 512)
    wider = SAERecipe(architecture="matryoshka").replaced({"d_sae": 1024})
    assert wider.widths == default_widths(1024)


def test_steps_follow_from_samples_or_epochs():
    assert SAERecipe(samples=10_000, batch=100).steps(5000) == 100
    assert SAERecipe(samples=10_000, batch=100, epochs=3.0).steps(1099) == 30
    assert SAERecipe(samples=10_000, batch=100).steps(40) == 250  # batches of 40
    assert SAERecipe(samples=1, batch=100).steps(5000) == 1


def test_settings_are_read_by_type():
    found = settings_from(
        [
            "d_sae=1e3",
            "lr=3e-4",
            "epochs=none",
            "widths=8-16",
            "centre=false",
            "scale=none",
            "samples=1_000_000",
        ]
    )
    assert found == {
        "d_sae": 1000,
        "lr": 3e-4,
        "epochs": None,
        "widths": (8, 16),
        "centre": False,
        "scale": "none",
        "samples": 1_000_000,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "--set lr: expected key=value"),
        ("learning=1", "unknown setting 'learning'"),
        ("bach=1", "did you mean 'batch'"),
        ("lr=fast", "lr=fast: expected a number"),
        ("d_sae=1.5", "d_sae=1.5: expected a whole number"),
        ("d_sae=inf", "d_sae=inf: expected a whole number"),
        ("widths=8-x", "widths=8-x: expected whole numbers"),
        ("centre=2", "centre=2: expected true or false"),
    ],
)
def test_invalid_settings_are_refused(text, said):
    with pytest.raises(UserInputError, match=said):
        settings_from([text])


def test_dermfm_zero_has_the_published_loss():
    """(1/d)‖x − x̂‖² + 3e-5 Σz is ours divided by d."""
    recipe = SAERecipe(**dermfm_zero(768))
    assert recipe.d_sae == 6144 and recipe.scale == "none" and not recipe.centre
    assert recipe.l1_coefficient / 768 == pytest.approx(3e-5)


def test_grid_has_every_combination():
    assert parse_grid("d_sae=256, 512; k=8,16") == [
        {"d_sae": 256, "k": 8.0},
        {"d_sae": 256, "k": 16.0},
        {"d_sae": 512, "k": 8.0},
        {"d_sae": 512, "k": 16.0},
    ]
    assert name_of({"d_sae": 256, "k": 8.0, "widths": (8, 256)}) == "d_sae=256,k=8,widths=8-256"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--sweep is empty"),
        ("d_sae", "--sweep d_sae: expected field=value,value"),
        ("d_sae=", "expected field=value,value"),
        ("dsae=2", "did you mean 'd_sae'"),
        ("k=8,8", "names k or one of its values twice"),
        ("k=8;k=9", "names k or one of its values twice"),
        ("k=" + ",".join(map(str, range(1, MOST + 2))), f"at most {MOST} are fitted together"),
    ],
)
def test_invalid_grid_is_refused(text, said):
    with pytest.raises(UserInputError, match=said):
        parse_grid(text)


def test_seeds_are_read_and_repeated_ones_refused():
    assert parse_seeds("0,1, 2") == [0, 1, 2]
    for text in ("", "a", "1,-2", "1.5"):
        with pytest.raises(UserInputError, match="expected whole numbers"):
            parse_seeds(text)
    with pytest.raises(UserInputError, match="one seed twice"):
        parse_seeds("1,1")
