"""`Suppressor`: a recipe in front of towers, open_clip models, estimators and functions; nothing is left behind."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

from dermaudit import Suppressor, load_model
from dermaudit.concepts.inference.reference import Reference
from dermaudit.concepts.recipes.distribution import Gaussian, distribution_of
from dermaudit.errors import (
    AlteredArtifactError,
    EvidenceError,
    ForeignArtifactError,
    UserInputError,
)


@pytest.fixture(scope="module")
def suppressor():
    return Suppressor.bundled("ruler")


@pytest.fixture(scope="module")
def rows(suppressor):
    """Unit embeddings (64, d) around the mean of the recipe; the latent fires in some of them."""
    generator = np.random.default_rng(0)
    mean = Gaussian(suppressor.recipes[0].body["distribution"]).mean
    x = mean + 1.1 * generator.normal(size=(64, len(mean))) / len(mean) ** 0.5
    x += np.linspace(-1, 1, 64)[:, None] * suppressor.module.W_dec[0].numpy()
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    fired = suppressor.module.apply_to(torch.from_numpy(x)).fired.numpy()
    assert 5 < fired.sum() < 60
    return x


def test_the_edit_is_that_of_the_formula(suppressor, rows):
    """x' = x − z d, with z = x·e + b where that is over the threshold, rescaled to the former length."""
    module = suppressor.module
    e, d = module.W_enc[:, 0].double().numpy(), module.W_dec[0].double().numpy()
    pre = (rows - module.b_dec.numpy()) @ e + float(module.b_enc[0])
    z = np.where(pre > float(module.threshold[0]), np.maximum(pre, 0), 0)
    plain = rows - z[:, None] * d
    plain *= np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(
        plain, axis=1, keepdims=True
    )
    edited = suppressor(rows)
    np.testing.assert_allclose(edited, plain, atol=2e-6)
    np.testing.assert_array_equal(edited[z == 0], rows[z == 0])
    np.testing.assert_array_equal(suppressor(torch.from_numpy(rows)).numpy(), edited)


@pytest.mark.parametrize("kind", [LogisticRegression, SVC])
def test_an_estimator_predicts_of_edited_rows_and_is_then_as_it_was(suppressor, rows, kind):
    y = np.arange(len(rows)) // 32
    estimator = kind().fit(rows, y)
    state, edited = dict(vars(estimator)), suppressor(rows)
    wanted, decided = estimator.predict(edited), estimator.decision_function(edited)
    before = estimator.decision_function(rows)
    with suppressor.attach(estimator) as attached:
        assert attached is estimator
        np.testing.assert_array_equal(estimator.decision_function(rows), decided)
        np.testing.assert_array_equal(estimator.predict(rows), wanted)
    assert vars(estimator) == state and not np.array_equal(before, decided)
    np.testing.assert_array_equal(estimator.decision_function(rows), before)
    with pytest.raises(ZeroDivisionError), suppressor.attach(estimator):
        raise ZeroDivisionError
    assert vars(estimator) == state


def test_a_function_is_wrapped(suppressor, rows):
    with suppressor.attach(lambda x, scale: x.sum(1) * scale) as function:
        np.testing.assert_array_equal(function(rows, scale=2), suppressor(rows).sum(1) * 2)
    with pytest.raises(UserInputError, match="a int neither predicts"), suppressor.attach(3):
        pass


def test_another_width_is_refused(suppressor):
    with pytest.raises(ForeignArtifactError, match=f"of width {suppressor.module.d_in}, not 100"):
        suppressor(np.zeros((2, 100), np.float32))


@pytest.mark.slow
def test_towers_and_plain_open_clip_models_of_these_weights_only(suppressor):
    tower, stranger = load_model("dermoscopy-small"), load_model("phantom-vit")
    images = np.random.default_rng(1).integers(0, 256, (6, 96, 96, 3), dtype=np.uint8)
    x = tower.preprocess(list(images))
    with torch.no_grad():
        before = tower.encode_image(x, normalize=True)
        always = Suppressor.bundled("ruler")
        always.module.threshold.fill_(-10.0)  # fires in every row with a positive code
        wanted = always(before)
        with always.attach(tower):
            np.testing.assert_allclose(tower.encode_image(x, normalize=True), wanted, atol=1e-6)
        assert torch.equal(tower.encode_image(x, normalize=True), before)
        with suppressor.attach(tower.model) as plain:
            edited = plain.encode_image(x, normalize=True)
        np.testing.assert_allclose(edited, suppressor(before), atol=1e-6)
    for other in (stranger, stranger.model):
        refused = pytest.raises(ForeignArtifactError, match="made for the model dermoscopy-small")
        with refused, suppressor.attach(other):
            pass


def test_recipe_files_are_the_same_suppressor(suppressor, rows, tmp_path):
    path = tmp_path / "mine.recipe.json"
    suppressor.recipes[0].save(path)
    np.testing.assert_array_equal(Suppressor.load(path)(rows), suppressor(rows))
    with pytest.raises(UserInputError, match="no recipe is given"):
        Suppressor.load()


# ---- images that are unlike those of the recipe


def test_rows_like_those_of_the_fit_are_not_flagged_and_others_are():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(20, 20)) * np.linspace(2, 0.1, 20)
    x = generator.normal(size=(2000, 20)) @ mixing.T
    ordinary = Gaussian(distribution_of(x[:1000], np.arange(1000)))
    assert (ordinary.distance(x[1000:]) > ordinary.limit).mean() == pytest.approx(0.01, abs=0.012)
    assert ordinary.distance(x[:1000]).mean() == pytest.approx(1, rel=0.05)
    assert (ordinary.distance(x[1000:] + 20) > ordinary.limit).all()


def test_where_the_other_dimensions_are_alike_it_is_the_mahalanobis_distance():
    from scipy.spatial.distance import mahalanobis

    x = np.random.default_rng(1).normal(size=(400, 3)) * [3.0, 1.0, 1.0]
    ordinary = Gaussian(distribution_of(x, np.arange(400)))  # one direction: the others are equal
    covariance = np.cov(x, rowvar=False, bias=True)
    plain = [mahalanobis(row, x.mean(0), np.linalg.inv(covariance)) ** 2 / 3 for row in x[:50]]
    np.testing.assert_allclose(ordinary.distance(x[:50]), plain, rtol=0.15)


# ---- the reference of a bundled model


def test_the_reference_says_why_there_is_no_recipe():
    reference = Reference.load("dermoscopy-small")
    assert {"ruler", "ink", "hair"} <= set(reference.with_recipe) < set(reference.concepts)
    missing = sorted(set(reference.concepts) - set(reference.with_recipe))[0]
    with pytest.raises(EvidenceError, match=missing) as refused:
        reference.recipe(missing)
    assert refused.value.exit_code == 3 and refused.value.numbers
    with pytest.raises(UserInputError, match="did you mean 'ruler'"):
        reference.recipe("rular")
    with pytest.raises(UserInputError, match="unknown model with a reference 'ViT-B-16'"):
        Reference.load("ViT-B-16")


@pytest.mark.parametrize(
    "name", ["reference.json", "recipes/ruler.recipe.json", "heads/label.safetensors"]
)
def test_an_altered_reference_is_refused(name, tmp_path, monkeypatch):
    from dermaudit.towers.loading import reference as module

    source = Reference.load("dermoscopy-small").folder
    shutil.copytree(source, tmp_path / "dermoscopy-small" / "reference")
    monkeypatch.setattr(module, "bundled_folder", lambda: tmp_path)
    path = tmp_path / "dermoscopy-small" / "reference" / name
    if name == "reference.json":
        raw = json.loads(path.read_text())
        raw["body"]["made_from"]["images"] = 1
        path.write_text(json.dumps(raw))
    else:
        path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    with pytest.raises(AlteredArtifactError, match="was altered"):
        reference = Reference.load("dermoscopy-small")
        reference.recipe("ruler")
        reference.head_file("label")
