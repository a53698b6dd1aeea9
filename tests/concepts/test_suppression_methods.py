"""Methods that choose the latents of a recipe: the planted artifact is found, and nothing else is suppressed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from concept_world import DEAD, RULER, SIGNAL, H, basis_sae, world
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.concepts.evidence.cross_fit import TrainingRows, TrapData, folds
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.editor import Edit, Editor, editor_of
from dermaudit.concepts.suppression.intercept import intercept_correction
from dermaudit.concepts.suppression.methods.by_name import NameMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.concepts.suppression.methods.insertion import InsertionMethod, rising
from dermaudit.concepts.suppression.methods.registry import NoLatent
from dermaudit.concepts.suppression.methods.sae import (
    MAX_LATENTS,
    ChoiceRows,
    SaeLatents,
    best_threshold,
    choose_by_effect,
    rank_latents,
)
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score


@pytest.fixture(scope="module")
def data() -> TrapData:
    w = world(3000)
    groups = w.groups.astype(str)
    return TrapData(w.x, w.y, w.a, groups, w.splits != "train", sae=basis_sae())


@pytest.fixture(scope="module")
def rows(data) -> TrainingRows:
    return TrainingRows(data, 5, np.flatnonzero(~data.scored))


def choice(data, head, editor=None) -> ChoiceRows:
    rows = np.flatnonzero(data.scored)
    return ChoiceRows(data.x[rows], data.y[rows], data.a[rows], head, editor or Editor(basis_sae()))


# ---- latents of the SAE


def test_the_planted_artifact_is_chosen_and_the_sign_of_the_label_is_not(rows):
    chosen = SaeLatents().choose(rows, Edit())
    assert chosen.latents[0] == RULER and SIGNAL not in chosen.latents
    assert chosen.evidence[0]["auprc"] > 0.95 and chosen.source == "sae"


def test_the_choice_does_not_move_with_rows_that_it_may_not_use(data, rows):
    y, a = data.y.copy(), data.a.copy()
    y[data.scored], a[data.scored] = 1 - y[data.scored], 1 - a[data.scored]
    other = dataclasses.replace(rows, data=dataclasses.replace(data, y=y, a=a))
    one, same = (SaeLatents().choose(r, Edit()) for r in (rows, other))
    assert one.latents == same.latents and one.evidence == same.evidence


def test_ranking_is_the_attribution_by_hand(data, rows):
    fit = rows.train
    head = fit_probe(data.x[fit], data.y[fit], data.groups[fit])
    direction = head.direction()[1] * 2
    codes, a = Editor(basis_sae()).codes(data.x[data.scored]).toarray(), data.a[data.scored]
    ranked = rank_latents(codes, a, direction, basis_sae())
    assert ranked[0][0] == RULER and SIGNAL not in [j for j, _ in ranked]
    gap = codes[a == 1].mean(0) - codes[a == 0].mean(0)
    by_hand = gap[RULER] * float(basis_sae().W_dec[RULER].numpy() @ direction)
    assert ranked[0][1]["effect"] == pytest.approx(by_hand, rel=1e-4)


def test_the_latent_that_rises_when_the_artifact_is_drawn_is_chosen_without_labels(data, rows):
    drawn = np.full_like(data.x, np.nan)
    onto = rows.train[data.y[rows.train] == 0]
    drawn[onto] = data.x[onto] + 0.5 * basis_sae().W_dec[RULER].numpy()
    unlabelled = dataclasses.replace(data, a=np.full_like(data.a, np.nan), drawn=drawn)
    chosen = InsertionMethod().choose(dataclasses.replace(rows, data=unlabelled), Edit())
    assert chosen.latents == [RULER] and chosen.source == "sae"
    assert chosen.evidence[0]["rise"] == pytest.approx(0.5, rel=0.05)


def test_no_latent_rises_where_drawing_takes_something_away(data, rows):
    less = data.x - 0.2 * basis_sae().W_dec.sum(0).numpy()
    moved = dataclasses.replace(rows, data=dataclasses.replace(data, drawn=less))
    with pytest.raises(NoLatent, match="no latent rises") as refused:
        InsertionMethod().choose(moved, Edit())
    assert refused.value.numbers["largest_z"] < 3


def test_the_rises_are_chosen_by_their_length_as_by_hand():
    noise = np.random.default_rng(1).normal(scale=0.01, size=(100, 4))
    pairs = noise + np.array([0.2, 0.3, -0.5, 0.001])
    latents, evidence = rising(pairs, np.array([3.0, 1.0, 1.0, 1.0]))
    assert latents == [0, 1]  # .6 and .3 of the embedding; the third falls
    assert evidence[0]["rise"] == pytest.approx(3 * pairs[:, 0].mean())
    z = pairs[:, 0].mean() / (pairs[:, 0].std(ddof=1) / 10)
    assert evidence[0]["z"] == pytest.approx(z, rel=1e-6)


def test_an_sae_that_does_not_see_the_artifact_has_no_latent_for_it(data, rows):
    blind = dataclasses.replace(basis_sae(), b_enc=torch.full((H,), -10.0))
    trap = dataclasses.replace(rows, data=dataclasses.replace(data, sae=blind))
    with pytest.raises(NoLatent, match="no latent ranks the concept's images") as refused:
        SaeLatents().choose(trap, Edit())
    assert refused.value.numbers == {"candidates": 0} and refused.value.exit_code == 3


def test_a_head_that_does_not_lean_on_the_artifact_has_no_latent_for_it(data, rows):
    fit = rows.train[data.a[rows.train] == 0]
    head = fit_probe(data.x[fit], data.y[fit], data.groups[fit])
    weight = head.weight / head.scale
    direction = basis_sae().W_dec[RULER].numpy()
    weight = weight - (weight @ direction)[:, None] * direction
    head = dataclasses.replace(head, weight=weight * head.scale)
    only = dataclasses.replace(basis_sae(), b_enc=torch.where(torch.arange(H) == RULER, 0.0, -10.0))
    with pytest.raises(NoLatent, match="does not lift the worst group") as refused:
        choose_by_effect(choice(data, head, Editor(only)))
    assert refused.value.numbers["candidates"] >= 1


def test_in_a_fold_without_a_latent_nothing_is_suppressed(data):
    blind = dataclasses.replace(basis_sae(), b_enc=torch.full((H,), -10.0))
    fold = folds(dataclasses.replace(data, sae=blind))[0]
    fitted = CrossFittedMethod(SaeLatents()).fit(fold)
    x = data.x[fold.held]
    np.testing.assert_array_equal(fitted.score(x), probe_score(fold.head, x))
    assert fitted.suppressor is None and fitted.unchanged(x).all()


def test_a_run_without_an_sae_is_refused(data, rows):
    without = dataclasses.replace(rows, data=dataclasses.replace(data, sae=None))
    with pytest.raises(EvidenceError, match="the run has no SAE at its pooled site"):
        SaeLatents().choose(without, Edit())


def test_best_threshold_by_hand():
    y, one = np.array([0, 0, 1, 0, 1, 1, 1]), np.ones(7)
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])
    assert best_threshold(y, score, one) == pytest.approx(0.5)  # 3/3 below, 3/4 above
    assert best_threshold(np.array([0, 1]), np.array([0.0, 1.0]), np.ones(2)) == 0.5
    # Two of three negatives lie at .6, but the one at .2 weighs more than both.
    y, score = np.array([0, 0, 0, 1, 1]), np.array([0.2, 0.6, 0.6, 0.4, 0.9])
    assert best_threshold(y, score, np.ones(5)) == pytest.approx(0.75)
    assert best_threshold(y, score, np.array([5, 1, 1, 1, 1])) == pytest.approx(0.3)


@given(st.integers(0, 100_000), st.sampled_from([3, 1000]))
@settings(max_examples=80, deadline=None)
def test_no_threshold_is_better_than_the_best(seed, levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 25))
    y, score = rng.integers(0, 2, n), rng.integers(0, levels, n) / levels  # with ties, and without
    y[:2] = [0, 1]

    def balanced(threshold):
        return ((score > threshold)[y == 1].mean() + (score <= threshold)[y == 0].mean()) / 2

    best = max(balanced(t) for t in [*(score - 1e-9), 2.0])
    assert balanced(best_threshold(y, score, np.ones(n))) == pytest.approx(best)


def test_the_four_groups_weigh_the_same(data, rows):
    fit = rows.train
    head = fit_probe(data.x[fit], data.y[fit], data.groups[fit])
    here = choice(data, head)
    weight = here.weights()
    cells = [weight[(here.y == i) & (here.a == j)].sum() for i in (0, 1) for j in (0, 1)]
    assert cells == pytest.approx([1, 1, 1, 1])


def test_editor_with_nothing_to_suppress_returns_the_rows():
    x = world(50).x
    assert Editor(basis_sae()).rows([], x) is x
    np.testing.assert_array_equal(Editor(basis_sae()).rows([DEAD], x), x)
    assert MAX_LATENTS <= H


def test_levels_come_from_training_rows_without_the_artifact(data, rows):
    editor, description = editor_of(basis_sae(), Edit("mean"), rows)
    absent = rows.train[data.a[rows.train] == 0]
    z = basis_sae().encode(torch.from_numpy(data.x[absent]))[:, [RULER, 5]]
    np.testing.assert_allclose(editor.levels([RULER, 5])["level"], z.mean(0), rtol=1e-5)
    assert description == f"{len(absent)} train and val images without the concept"
    unknown = dataclasses.replace(rows, data=dataclasses.replace(data, a=data.a * np.nan))
    _, description = editor_of(basis_sae(), Edit("mean"), unknown)
    assert description == f"all {len(rows.train)} train and val images: none is labelled"


# ---- a concept latent, and latents by name


def test_a_concept_latent_is_fitted_on_rows_without_the_target(data, rows):
    method = ConceptLatentMethod()
    chosen = method.choose(rows, Edit())
    assert chosen.latents == [0] and chosen.source == "concept_latent" and chosen.sae.d_sae == 1
    y = np.where(data.y == 1, 1.0, np.nan)  # what is not labelled is no target either
    unlabelled = dataclasses.replace(rows, data=dataclasses.replace(data, y=y))
    assert torch.equal(method.choose(unlabelled, Edit()).sae.W_enc, chosen.sae.W_enc)
    a = np.where(data.y == 1, 1 - data.a, data.a)  # labels of the target rows are not read
    flipped = dataclasses.replace(rows, data=dataclasses.replace(data, a=a))
    assert torch.equal(method.choose(flipped, Edit()).sae.W_enc, chosen.sae.W_enc)


def test_few_labels_are_drawn_from_both_kinds(rows):
    chosen = ConceptLatentMethod(n_labels=25).choose(rows, Edit())
    assert (chosen.evidence[0]["n_with"], chosen.evidence[0]["n_without"]) == (25, 25)


def test_latents_by_name_are_those_that_were_named(data, rows):
    with pytest.raises(NoLatent, match="no latent is named after the concept"):
        NameMethod().choose(rows, Edit())
    named = ((7, {"z": 4.0, "q": 0.01}), (3, {"z": 2.5, "q": 0.04}))
    given_names = dataclasses.replace(rows, data=dataclasses.replace(data, named=named))
    chosen = NameMethod().choose(given_names, Edit())
    assert chosen.latents == [7, 3] and chosen.evidence[0] == {"z": 4.0, "q": 0.01}


# ---- the intercept


def test_intercept_correction_by_hand():
    """Of three classes; the second is predicted for two images before, for none after."""
    before = np.array([[0, 2, 0], [0, 1, 0], [3, 1, 0], [0, 0, 5.0]])
    after = np.array([[0, -1, 0], [0, -2, 0], [3, 0, 0], [0, 0, 5.0]])
    c = intercept_correction(before, after, 1)
    assert c == pytest.approx(2.5)  # margins -1, -2, -3, -5: between the second and the third
    assert ((after + np.array([0, c, 0])).argmax(1) == 1).tolist() == [True, True, False, False]
    assert intercept_correction(before, before, 1) == 0


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_as_many_images_are_predicted_as_before(seed):
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(40, 3))
    after = before - np.array([0, 1.5, 0]) * (rng.random((40, 1)) < 0.5)
    c = intercept_correction(before, after, 1)
    assert ((after + np.array([0, c, 0])).argmax(1) == 1).sum() == (before.argmax(1) == 1).sum()
