"""The verdict: does the head of a run lean on an artifact? Planted answers, both ways."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from concept_world import world, write_run
from sklearn.metrics import roc_auc_score

from dermaudit.concepts.evidence.cross_fit import TrainingRows, TrapData
from dermaudit.concepts.heads import fit_heads
from dermaudit.concepts.suppression.editor import Edit
from dermaudit.concepts.suppression.methods.concept_latent import ConceptLatentMethod
from dermaudit.concepts.verdict import stage as verdict_stage
from dermaudit.concepts.verdict.drawn import change_by_drawing, measure_drawn
from dermaudit.concepts.verdict.reliance import measure_reliance
from dermaudit.errors import AlteredArtifactError, EvidenceError
from dermaudit.heads import LinearHead
from dermaudit.run.directory import open_run
from dermaudit.sae import LatentSuppressor
from dermaudit.sae.run_data import RunData


def planted(n=1200, d=12) -> TrapData:
    """Unit rows in which the first dimension carries the artifact and the second the target."""
    g = np.random.default_rng(3)
    y, a = g.integers(0, 2, n).astype(float), g.integers(0, 2, n).astype(float)
    x = g.standard_normal((n, d)) / 2
    x[:, 0] += 2 * a
    x[:, 1] += 2 * y
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    groups = np.array([f"g{i // 2}" for i in range(n)])
    return TrapData(x, y, a, groups, np.arange(n) // 2 % 2 > 0, row=np.arange(n))


def head_of(artifact: float, target: float, d=12) -> LinearHead:
    """A head whose logit for "mel" is a weighted sum of the two planted dimensions."""
    weights = np.zeros((2, d), np.float32)
    weights[1, :2] = artifact, target
    bias, zeros = np.array([0.0, -1.0], np.float32), np.zeros(d, np.float32)
    return LinearHead(weights, bias, zeros, zeros + 1, ["nv", "mel"], 1.0, "visual.pooled", 1)


def test_a_head_that_leans_on_the_artifact_is_found_and_its_figures_are_those_of_a_plain_recount():
    data, head = planted(), head_of(3.0, 3.0)
    found = measure_reliance(data, head, "mel")
    assert found.relied_on and found.seen > 0.95 and found.change < -0.1
    assert found.change_ci[0] < found.change < found.change_ci[1] < 0
    assert found.random_beaten == 100 and found.decisions > found.decisions_random

    train = np.flatnonzero(~data.scored)
    chosen = ConceptLatentMethod().choose(TrainingRows(data, 0, train), Edit())
    x = torch.from_numpy(data.x[data.scored & (data.a == 1)])
    edited = LatentSuppressor(chosen.sae, [0])(x).numpy()

    def p(rows):
        return 1 / (1 + np.exp(-(3 * rows[:, 0] + 3 * rows[:, 1] - 1)))

    assert found.change == pytest.approx((p(edited) - p(x.numpy())).mean(), abs=1e-6)
    decided = (p(edited) > 0.5) != (p(x.numpy()) > 0.5)
    assert found.decisions == pytest.approx(decided.mean()) and found.n == len(x)

    y, a, logit = (v[data.scored] for v in (data.y, data.a, data.x @ np.r_[3.0, 3.0, [0] * 10]))
    with_ = (y == 1) & (a == 1) | (y == 0) & (a == 0)
    assert found.aurocs.target_with == pytest.approx(roc_auc_score(y[with_], logit[with_]))
    assert found.aurocs.target_without == pytest.approx(roc_auc_score(y[~with_], logit[~with_]))
    assert found.aurocs.within_with == pytest.approx(roc_auc_score(y[a == 1], logit[a == 1]))
    assert found.aurocs.difference_ci[0] > 0


def test_a_head_that_does_not_use_the_artifact_is_clear():
    found = measure_reliance(planted(), head_of(0.0, 3.0), "mel")
    assert not found.relied_on and abs(found.change) < 0.05


def test_too_few_images_are_refused_with_their_number():
    data = planted()
    data.a[np.flatnonzero(data.scored & (data.a == 1))[5:]] = 0
    with pytest.raises(EvidenceError, match="n too small: 5 images with it") as error:
        measure_reliance(data, head_of(1.0, 1.0), "mel")
    assert error.value.numbers["with"] == 5


def test_drawing_that_changes_nothing_beats_no_random_direction_and_along_the_artifact_all():
    data, head = planted(), head_of(6.0, 3.0)
    x, groups = data.x[data.a == 0], data.groups[data.a == 0]
    same = change_by_drawing(x, x, groups, head, "mel", 0)
    assert (same.change, same.random_beaten) == (0.0, 0)
    drawn = x + 0.5 * np.eye(12, dtype=np.float32)[0]
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    found = change_by_drawing(x, drawn, groups, head, "mel", 0)
    assert found.change_ci[0] > 0.05 and found.random_beaten >= 95 and found.n == len(x)
    with pytest.raises(EvidenceError, match="sticker cannot be drawn"):
        measure_drawn(None, "sticker", data, head, "mel", None)


def tilted(n=1600):
    """A world in which most images with the ruler are melanomas."""
    w = world(n, seed=5)
    w.y = np.where(np.random.default_rng(0).random(n) < 0.85, w.a, 1 - w.a)
    return w


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(verdict_stage, "tower_of", lambda run, threads: None)
    run = write_run(tmp_path / "run", tilted(), **{"artifact:hair": [0.0] * 1590 + [1.0] * 10})
    fit_heads(run)
    return run


def test_the_command_writes_one_line_an_artifact_first_those_leaned_on(main, run):
    done = main("verdict", "--run", run.path, "--json")
    assert done.rc == 0, done.stderr
    ruler, hair = done.json()["verdict"]
    assert (ruler["concept"], ruler["badge"], ruler["relied_on"]) == ("ruler", "watch", True)
    assert ruler["seen"] > 0.95 and ruler["helps"] is None
    assert "its suppression was not tried" in ruler["reason"]
    assert "drawn_reason" in ruler["figures"]  # the images of this run are nowhere
    assert (hair["concept"], hair["badge"], hair["relied_on"]) == ("hair", "not measured", None)
    assert "n too small" in hair["reason"] and "watch" in done.stderr

    rows = pq.read_table(run.file("verdict.parquet")).to_pylist()
    assert [{**row, "figures": json.loads(row["figures"])} for row in rows] == [ruler, hair]
    assert RunData(open_run(run.path)).verdict == [ruler, hair]
    assert main("verdict", "--run", run.path, "--json").json()["verdict"] == [ruler, hair]


def test_a_recipe_turns_watch_into_act_and_says_where_suppression_helps(main, run, monkeypatch):
    from dermaudit.concepts.suppression.options import RecipeOptions
    from dermaudit.concepts.suppression.stage import recipe_run
    from dermaudit.concepts.vocabulary.vocabulary import Vocabulary

    recipe_run(run, "ruler", None, Vocabulary.load(), RecipeOptions(concept=("ruler",)))
    done = main("verdict", "--run", run.path, "--json")
    ruler = done.json()["verdict"][0]
    assert ruler["badge"] == "act" and ruler["helps"].startswith("without a threshold")
    assert ruler["cost"] is not None


def test_a_table_that_was_altered_is_not_used(main, run):
    assert main("verdict", "--run", run.path).rc == 0
    path = run.file("verdict.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(AlteredArtifactError, match="verdict"):
        _ = RunData(open_run(run.path)).verdict


def test_a_target_that_the_head_does_not_know_is_not_measured(main, run):
    done = main("verdict", "--run", run.path, "--target", "wart", "--json")
    assert done.rc == 0
    assert all(row["badge"] == "not measured" for row in done.json()["verdict"])
    assert "the head has no class wart" in done.json()["verdict"][0]["reason"]
