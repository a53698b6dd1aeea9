"""Cross-fitted evidence: operating points by hand, folds without leaks, refusal, random controls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from dermaudit.concepts.evidence.cross_fit import (
    TrapData,
    biased_rows,
    cross_fit,
    folds,
    oracle_scores,
)
from dermaudit.concepts.evidence.edited_head import EditedHead, random_suppressor
from dermaudit.concepts.evidence.figures import (
    random_control,
    reasons_to_refuse,
    suppression_effect,
)
from dermaudit.concepts.evidence.operating_points import (
    count_flips,
    flip_cause,
    fold_auroc,
    group_rates,
    prevalence_matched_threshold,
)
from dermaudit.concepts.suppression.cross_fitted import CrossFittedMethod
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.errors import EvidenceError

CONCEPT_LATENT = CrossFittedMethod(ConceptLatentMethod())


def planted(n=900, d=10, seed=0, artifact=2.0, target=1.0, strength=0.9) -> TrapData:
    """Unit rows in which the first dimension carries the artifact and the second the target."""
    g = np.random.default_rng(seed)
    y, a = g.integers(0, 2, n).astype(float), g.integers(0, 2, n).astype(float)
    x = g.standard_normal((n, d))
    x[:, 0] += artifact * a
    x[:, 1] += target * y
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    groups = np.array([f"g{i // 2}" for i in range(n)])
    return TrapData(x.astype(np.float32), y, a, groups, np.arange(n) % 3 > 0, strength, seed)


@pytest.fixture(scope="module")
def data() -> TrapData:
    return planted()


@pytest.fixture(scope="module")
def found(data):
    return folds(data)


# ---- operating points


def test_prevalence_matched_threshold_by_hand():
    before, after = np.array([3.0, 1, -1, -2]), np.array([-4.0, -1, -2, -8])
    threshold = prevalence_matched_threshold(before, 0.0, after)
    assert threshold == -3.0 and (after > threshold).sum() == 2  # of -1 and -2, the two highest
    assert (after > prevalence_matched_threshold(before, 9.0, after)).sum() == 0
    assert (after > prevalence_matched_threshold(before, -9.0, after)).sum() == 4


def test_fold_auroc_takes_pairs_within_a_fold_only():
    """Two folds whose heads have other scales: in each the order is perfect, across them it is not."""
    score = np.array([1.0, 2, 101, 102])
    positive = np.array([False, True, False, True])
    fold = np.array([0, 0, 1, 1])
    assert fold_auroc(score, positive, ~positive, fold)[0] == 1.0
    assert roc_auc_score(positive, score) == 0.75


def test_fold_auroc_of_one_fold_equals_scikit_learn_with_weights():
    g = np.random.default_rng(0)
    score, positive = g.standard_normal(200), g.integers(0, 2, 200).astype(bool)
    weights = g.integers(0, 4, (5, 200)).astype(float)
    got = fold_auroc(score, positive, ~positive, np.zeros(200, int), weights)
    want = [roc_auc_score(positive, score, sample_weight=w) for w in weights]
    np.testing.assert_allclose(got, want, atol=1e-12)


def test_group_rates_by_hand():
    y, a = np.repeat([1.0, 1, 0, 0], 40), np.repeat([0.0, 1, 0, 1], 40)
    decision = np.concatenate([np.arange(40) < n for n in (30, 10, 4, 20)])
    rates = group_rates(decision, y, a)
    assert rates.sensitivity == (0.75, 0.25)
    assert rates.specificity == (0.9, 0.5)
    assert rates.worst == 0.25
    small = group_rates(decision[:-15], y[:-15], a[:-15])
    assert np.isnan(small.specificity[1]) and np.isnan(small.worst)


def test_flips_by_cause():
    before = np.array([True, True, True, False, False])
    fixed = np.array([True, False, True, False, False])
    matched = np.array([True, False, False, True, True])
    changed = np.array([True, True, False, True, False])
    cause = flip_cause(before, fixed, matched, changed)
    assert cause.tolist() == ["", "edit", "threshold", "both", "threshold"]
    flips = count_flips(cause)
    assert (flips.edit, flips.threshold, flips.both) == (1, 2, 1)


# ---- folds


def test_folds_share_no_group_and_cover_all_rows(data, found):
    held = np.concatenate([fold.held for fold in found])
    assert sorted(held) == list(range(len(data.x)))
    for fold in found:
        assert not set(data.groups[fold.train]) & set(data.groups[fold.held])
        assert set(fold.trap_rows) <= set(fold.train)


def test_biased_rows_have_the_strength_of_the_trap(data):
    rows = biased_rows(data, np.arange(len(data.x)), np.random.default_rng(0))
    y, a = data.y[rows], data.a[rows]
    assert a[y == 1].mean() == pytest.approx(0.9, abs=0.01)
    assert a[y == 0].mean() == pytest.approx(0.1, abs=0.01)
    assert len(set(rows)) == len(rows)


def test_small_groups_are_refused_with_the_counts(data):
    keep = ~data.cell(1, 1)
    keep[np.flatnonzero(data.cell(1, 1))[:12]] = True
    small = dataclasses.replace(
        data, **{k: getattr(data, k)[keep] for k in ("x", "y", "a", "groups", "scored")}
    )
    with pytest.raises(EvidenceError, match="12 images with y=1 a=1"):
        folds(small)


def test_a_method_never_sees_rows_that_are_held_out(data, found):
    seen: list[set[str]] = []

    class Watching:
        name = "watching"

        def fit(self, fold):
            latent = CONCEPT_LATENT.fit(fold)
            seen.append(set(data.groups[fold.train]))
            return latent

    result = cross_fit(Watching(), found)
    for fold, groups in zip(found, seen, strict=True):
        assert not groups & set(data.groups[result.fold == fold.number])


# ---- effect and refusal


def effect_of(data, found, method):
    result = cross_fit(method, found)
    random = random_control(found, result)
    return result, suppression_effect(data, result, oracle_scores(found), random, draws=200)


@pytest.fixture(scope="module")
def concept_latent(data, found):
    return effect_of(data, found, CONCEPT_LATENT)


def test_a_concept_latent_closes_the_gap_and_is_not_refused(concept_latent):
    result, effect = concept_latent
    assert effect.cross_group_auroc_before < 0.4 < effect.cross_group_auroc_after
    assert effect.gap_closed > 0.7
    assert effect.random_beaten == 100
    assert not reasons_to_refuse(effect)
    assert 0.3 < effect.identity_share < 0.8
    np.testing.assert_array_equal(
        result.score[result.unchanged], result.score_before[result.unchanged]
    )


def test_the_share_of_positives_stays_at_the_matched_threshold(concept_latent):
    result, _ = concept_latent
    assert result.after_matched.mean() == pytest.approx(result.before.mean(), abs=0.04)


def test_doing_nothing_is_refused(data, found):
    class Nothing:
        name = "nothing"

        def fit(self, fold):
            return EditedHead(fold.head, lambda x: x)

    _, effect = effect_of(data, found, Nothing())
    assert effect.gap_closed == 0 and effect.ci == (0, 0) and effect.identity_share == 1
    reasons = reasons_to_refuse(effect)
    assert len(reasons) == 2 and "is not above 0" in reasons[0] and "0 of 100" in reasons[1]


def test_an_edit_that_removes_the_target_is_refused(data, found):
    class RemovesTarget:
        name = "removes_target"

        def fit(self, fold):
            keep = np.ones(data.x.shape[1], dtype=np.float32)
            keep[:2] = 0
            return EditedHead(fold.head, lambda x: x * keep)

    _, effect = effect_of(data, found, RemovesTarget())
    assert any(
        "images without the artifact may lose" in reason for reason in reasons_to_refuse(effect)
    )


def test_a_random_latent_changes_as_many_rows_by_as_much(data, found):
    fold = found[0]
    suppressor = CONCEPT_LATENT.fit(fold).suppressor
    assert suppressor is not None
    control = random_suppressor(fold, suppressor, np.random.default_rng(0))
    x = torch.from_numpy(data.x[fold.train])
    lengths = []
    for module in (suppressor, control):
        z = module.apply_to(x).z
        lengths.append((z[:, 0] * module.W_dec.norm(dim=1)).numpy())
    real, random = lengths
    assert (random > 0).mean() == pytest.approx((real > 0).mean(), abs=0.01)
    assert random[random > 0].mean() == pytest.approx(real[real > 0].mean(), rel=0.02)
