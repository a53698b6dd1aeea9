"""Heads against scikit-learn, the grouped choice of C, files, and too little evidence."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression

from dermaudit import heads
from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.heads import LinearHead, choose_c, fit_head, fit_probe, probe_score


def blobs(n: int, classes: int, seed: int = 0):
    """x (n, 6) around `classes` centres, labels, two rows a group; the scales differ by feature."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(classes, 6))[y] + rng.normal(size=(n, 6))
    return (
        (x * [1, 5, 0.1, 1, 1, 20] + 3).astype(np.float32),
        np.array(["a", "b", "c"])[y],
        rng.permutation(n) // 2,
    )


@pytest.mark.parametrize("classes", [2, 3])
def test_fit_head_probabilities_of_scikit_learn(classes):
    x, labels, groups = blobs(150, classes)
    head = fit_head(x, labels, groups)
    mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    stock = LogisticRegression(C=head.C, max_iter=2000).fit((x - mean) / scale, labels)
    new = blobs(40, classes, seed=1)[0]
    np.testing.assert_allclose(
        head.probs(new), stock.predict_proba((new - mean) / scale), atol=1e-4
    )
    assert head.classes == list(stock.classes_) and head.n_train == 150
    np.testing.assert_allclose(head.probs(new).sum(1), 1, atol=1e-6)


def test_direction_is_the_gradient_of_the_logits():
    x, labels, groups = blobs(90, 3)
    head = fit_head(x, labels, groups)
    step = np.zeros_like(x[:1])
    step[0, 4] = 0.5
    moved = head.logits(x[:1] + step) - head.logits(x[:1])
    np.testing.assert_allclose(moved[0], head.direction()[:, 4] * 0.5, atol=1e-4)


def test_probe_score_is_the_log_odds_of_present():
    x, labels, groups = blobs(90, 2)
    probe = fit_probe(x, labels == "b", groups)
    p = probe.probs(x)[:, probe.classes.index("present")]
    np.testing.assert_allclose(probe_score(probe, x), np.log(p / (1 - p)), atol=1e-3)
    assert np.corrcoef(probe_score(probe, x), labels == "b")[0, 1] > 0.3


# ---- the choice of C


class Recorder:
    """Stands for the logistic regression: keeps the rows that each fit and each score sees."""

    seen: list[tuple[set, set]] = []

    def __init__(self, c):
        self.c = c

    def fit(self, z, labels):
        self.rows = set(z[:, 0].astype(int).tolist())
        return self

    def predict_proba(self, z):
        Recorder.seen.append((self.rows, set(z[:, 0].astype(int).tolist())))
        return np.full((len(z), 2), 0.5)


def test_choose_c_no_group_is_on_both_sides_of_a_fold(monkeypatch):
    monkeypatch.setattr(heads, "_logistic", Recorder)
    Recorder.seen = []
    groups = np.random.default_rng(0).permutation(90) // 3
    labels = np.array(["x", "y"])[np.arange(90) % 2]
    choose_c(np.arange(90.0)[:, None], labels, groups, c_grid=[1.0])
    assert len(Recorder.seen) == 3
    for fit, held in Recorder.seen:
        assert not set(groups[list(fit)]) & set(groups[list(held)])
        assert fit | held == set(range(90))
    assert set().union(*(held for _, held in Recorder.seen)) == set(range(90))


def test_choose_c_copies_within_a_group_do_not_count_as_evidence():
    # Noise, 8 copies of each row: by rows a large C looks right (each copy is foretold by its twin);
    # by groups it does not, and the smallest C is taken.
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(30, 40)), 8, axis=0)
    labels = np.repeat(np.array(["n", "p"])[np.arange(30) % 2], 8)
    assert choose_c(z, labels, np.repeat(np.arange(30), 8)) == min(heads.C_GRID)
    assert choose_c(z, labels, np.arange(240)) >= 1.0


@pytest.mark.parametrize("groups", [np.zeros(40), np.arange(40) % 2], ids=["one", "two"])
def test_fit_head_few_groups(groups):
    x, labels, _ = blobs(40, 2)
    head = fit_head(x, labels, groups)
    assert np.isfinite(head.probs(x)).all()
    if len(set(groups)) == 1:
        assert min(heads.C_GRID) == head.C


def test_fit_head_a_rare_class():
    x, labels, groups = blobs(60, 2)
    labels[:] = "a"
    labels[:1] = "b"
    assert fit_head(x, labels, groups).classes == ["a", "b"]


# ---- files and evidence


def test_head_save_load_equal(tmp_path):
    x, labels, groups = blobs(60, 3)
    head = fit_head(x, labels, groups, site="visual.pooled")
    head.save(tmp_path / "h.safetensors")
    again = LinearHead.load(tmp_path / "h.safetensors")
    np.testing.assert_array_equal(again.logits(x), head.logits(x))
    for name in ("classes", "C", "site", "n_train"):
        assert getattr(again, name) == getattr(head, name)


def test_load_refuses_absent_foreign_and_truncated_files(tmp_path):
    path = tmp_path / "h.safetensors"
    with pytest.raises(UserInputError, match=r"there is no head .*h\.safetensors"):
        LinearHead.load(path)
    save_file({"weight": torch.zeros(2, 3)}, path)
    with pytest.raises(ForeignArtifactError, match="is not a head of dermaudit"):
        LinearHead.load(path)
    x, labels, groups = blobs(60, 2)
    fit_head(x, labels, groups).save(path)
    tensors = load_file(path)
    save_file(
        tensors, path, metadata={"classes": "not json", "C": "1", "site": "s", "n_train": "1"}
    )
    with pytest.raises(ForeignArtifactError):
        LinearHead.load(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ForeignArtifactError):
        LinearHead.load(path)


def test_fit_head_too_little_evidence():
    x, labels, groups = blobs(60, 2)
    with pytest.raises(EvidenceError) as few:
        fit_head(x[:29], labels[:29], groups[:29])
    assert few.value.numbers == {"n": 29, "classes": 2} and few.value.exit_code == 3
    with pytest.raises(EvidenceError, match="1 classes"):
        fit_head(x, np.full(60, "a"), groups)
    with pytest.raises(EvidenceError, match="0 labelled train images"):
        fit_head(x[:0], labels[:0], groups[:0])
    json.dumps(few.value.as_json())
