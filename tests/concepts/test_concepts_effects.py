"""The planted artifact is found and its removal measured; chosen elsewhere than it is scored."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from concept_world import DEAD, RULER, SIGNAL, H, basis_sae, world
from hypothesis import given, settings
from hypothesis import strategies as st

from dermaudit.concepts.suppression.editor import Editor
from dermaudit.concepts.suppression.effects import (
    evaluate,
    matched_random_sets,
    measure,
    operating_point,
    refit_worst,
    worst_without_trap,
)
from dermaudit.concepts.suppression.methods.effect import (
    MAX_LATENTS,
    choose_by_effect,
    rank_latents,
)
from dermaudit.concepts.suppression.trap import make_trap
from dermaudit.errors import EvidenceError
from dermaudit.heads import fit_probe, probe_score


def prepare(w):
    sae = basis_sae()
    trap = make_trap(w.y, w.a, w.splits, groups=w.groups)
    head = fit_probe(w.x[trap.fit], w.y[trap.fit], w.groups[trap.fit])
    return Editor(sae), trap, head, sae.encode(torch.from_numpy(w.x)).numpy()


@pytest.fixture(scope="module")
def case():
    w = world()
    return w, *prepare(w)


@pytest.fixture(scope="module")
def figures(case):
    w, editor, trap, head, codes = case
    chosen = choose_by_effect(editor, head, w.x, trap, codes)
    clean = np.flatnonzero((w.splits == "test") & (w.a == 0))
    active = (codes > 0).sum(0)
    found = evaluate(
        editor,
        head,
        w.x,
        trap,
        chosen.latents,
        active=active,
        clean=clean,
        groups=w.groups,
        seed=0,
        n_draws=200,
    )
    return chosen, found


def test_planted_artifact_chosen_and_removed(figures):
    chosen, found = figures
    assert chosen.latents[0] == RULER and SIGNAL not in chosen.latents
    assert chosen.evidence[0]["auprc"] > 0.95
    assert found["test_is"] == "swapped" and min(found["n"].values()) >= 30
    assert found["worst_group_lift"] >= 0.10
    assert found["worst_group_after"] - found["worst_group_before"] == pytest.approx(
        found["worst_group_lift"]
    )
    assert found["random_sets"] == found["random_sets_beaten"] == 20
    assert found["ci"][0] > 0
    assert abs(found["clean_auroc_delta"]) <= 0.01
    assert found["auroc_after"] > found["auroc_before"]


def test_groups_by_hand(case, figures):
    w, editor, trap, head, _ = case
    _, found = figures
    right = (probe_score(head, w.x) > found["threshold_before"]) == (w.y == 1)
    for i in (0, 1):
        for j in (0, 1):
            rows = trap.test[(w.y[trap.test] == i) & (w.a[trap.test] == j)]
            name = f"y={i} a={j}"
            assert found["groups_before"][name] == pytest.approx(right[rows].mean())
            assert found["n"][name] == len(rows)
    assert found["worst_group_before"] == min(found["groups_before"].values())


def test_choice_and_threshold_do_not_move_with_the_labels_of_test(case):
    w, editor, trap, head, codes = case
    y = w.y.copy()
    y[trap.test] = 1 - y[trap.test]
    a = w.a.copy()
    a[trap.test] = 1 - a[trap.test]
    other = dataclasses.replace(trap, y=y, a=a)
    one, same = (choose_by_effect(editor, head, w.x, t, codes) for t in (trap, other))
    assert one.latents == same.latents
    assert (
        measure(head, editor, one.latents, w.x, trap).threshold
        == measure(head, editor, one.latents, w.x, other).threshold
    )


def test_ranking_the_signal_of_the_label_is_no_candidate(case):
    w, editor, trap, head, codes = case
    balanced = np.flatnonzero(w.splits == "val")  # here ruler and label are independent
    ranked = rank_latents(codes[balanced], w.a[balanced], head.direction()[1] * 2, editor.sae)
    assert ranked[0][0] == RULER and SIGNAL not in [j for j, _ in ranked]
    effect = codes[balanced][w.a[balanced] == 1].mean(0) - codes[balanced][w.a[balanced] == 0].mean(
        0
    )
    by_hand = effect[RULER] * float(editor.sae.W_dec[RULER].numpy() @ (head.direction()[1] * 2))
    assert ranked[0][1]["effect"] == pytest.approx(by_hand, rel=1e-4)


def test_no_latent_sees_it_refused(case):
    w, editor, trap, head, codes = case
    blind = codes.copy()
    blind[:] = 0
    with pytest.raises(EvidenceError, match="no latent ranks the concept's images") as refused:
        choose_by_effect(editor, head, w.x, trap, blind)
    assert refused.value.numbers == {"candidates": 0}


def test_a_head_that_does_not_lean_on_it_refused(case):
    w, editor, trap, _, codes = case
    fair = np.flatnonzero(w.splits == "train")  # no correlation of ruler and label here
    head = fit_probe(w.x[fit := fair[w.a[fair] == 0]], w.y[fit], w.groups[fit])
    weight = head.weight.copy() / head.scale
    direction = editor.sae.W_dec[RULER].numpy()
    weight -= (weight @ direction)[:, None] * direction
    head = dataclasses.replace(head, weight=weight * head.scale)
    with pytest.raises(EvidenceError, match="does not lift the worst group|no latent ranks") as no:
        choose_by_effect(editor, head, w.x, trap, codes * (np.arange(H) == RULER))
    assert no.value.numbers["candidates"] >= 1


def test_refit_at_least_as_good_for_a_planted_direction(case, figures):
    w, editor, trap, _, _ = case
    chosen, found = figures
    assert refit_worst(editor, chosen.latents, w.x, trap, w.groups, 0) > found["worst_group_before"]


def test_without_trap_there_is_more_to_win(case, figures):
    w, _, trap, _, _ = case
    train = np.flatnonzero(w.splits == "train")
    ceiling = worst_without_trap(w.x, trap, train, w.groups, 0)
    assert ceiling > figures[1]["worst_group_before"] + 0.1
    assert ceiling == worst_without_trap(w.x, trap, train, w.groups, 0)


@pytest.mark.parametrize("pair", [("y=0 a=0", "y=0 a=1"), ("y=0 a=1", "y=1 a=1")])
def test_interval_a_draw_with_an_empty_cell_is_not_defined(case, figures, pair):
    # Two cells of one patient each: most draws lack one of them, in whichever order they stand.
    w, editor, trap, head, codes = case
    groups = w.groups.copy()
    for name in pair:
        groups[trap.cells(trap.test)[name]] = name
    clean = np.flatnonzero((w.splits == "test") & (w.a == 0))
    out = evaluate(
        editor,
        head,
        w.x,
        trap,
        figures[0].latents,
        active=(codes > 0).sum(0),
        clean=clean,
        groups=groups,
        seed=0,
        n_draws=200,
    )
    assert np.isnan(out["ci"]).all() and np.isnan(out["worst_group_before_ci"]).all()


def test_collateral_too_few_clean_images(case):
    w, editor, trap, head, codes = case
    chosen = choose_by_effect(editor, head, w.x, trap, codes)
    clean = np.flatnonzero((w.splits == "test") & (w.y == 1))[:12]
    out = evaluate(
        editor,
        head,
        w.x,
        trap,
        chosen.latents,
        active=(codes > 0).sum(0),
        clean=clean,
        groups=w.groups,
        seed=0,
        n_draws=20,
    )
    assert out["clean_auroc_delta"] is None
    assert out["clean_auroc_delta_reason"].startswith("n too small: 12 of 12")


# ---- pieces


def test_operating_point_by_hand():
    y = np.array([0, 0, 1, 0, 1, 1, 1])
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9])
    assert operating_point(y, score) == pytest.approx(0.5)  # 3/3 below, 3/4 above
    assert operating_point(np.array([0, 1]), np.array([0.0, 1.0])) == 0.5


@given(st.integers(0, 100_000), st.sampled_from([3, 1000]))
@settings(max_examples=80, deadline=None)
def test_operating_point_no_threshold_is_better(seed, levels):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 25))
    y, score = rng.integers(0, 2, n), rng.integers(0, levels, n) / levels  # with ties, and without
    y[:2] = [0, 1]

    def balanced(threshold):
        return ((score > threshold)[y == 1].mean() + (score <= threshold)[y == 0].mean()) / 2

    best = max(balanced(t) for t in [*(score - 1e-9), 2.0])
    assert balanced(operating_point(y, score)) == pytest.approx(best)


def test_operating_point_of_weighted_rows_by_hand():
    # Two of three negatives lie at .6, but the one at .2 weighs more than both.
    y, score = np.array([0, 0, 0, 1, 1]), np.array([0.2, 0.6, 0.6, 0.4, 0.9])
    assert operating_point(y, score) == pytest.approx(0.75)
    assert operating_point(y, score, np.array([5, 1, 1, 1, 1])) == pytest.approx(0.3)


def test_matched_random_sets_others_as_often():
    rng = np.random.default_rng(0)
    active = rng.integers(0, 1000, 200)
    active[:20] = 0
    latents = [50, 51, 52]
    sets = matched_random_sets(active, latents, seed=3)
    assert len(sets) == 20 and len({tuple(s) for s in sets}) > 10
    for picked in sets:
        assert len(picked) == len(set(picked)) == 3
        assert not set(picked) & set(latents) and (active[picked] > 0).all()
        for mine, other in zip(latents, picked, strict=True):
            gaps = np.sort(np.abs(np.delete(active, [*latents, *range(20)]) - active[mine]))
            assert abs(active[other] - active[mine]) <= gaps[12 + len(latents)]
    assert sets == matched_random_sets(active, latents, seed=3)


def test_editor_nothing_to_suppress():
    x = world(50).x
    assert Editor(basis_sae()).rows([], x) is x
    np.testing.assert_array_equal(Editor(basis_sae()).rows([DEAD], x), x)
    assert MAX_LATENTS <= H
