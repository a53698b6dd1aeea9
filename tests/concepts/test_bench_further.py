"""What `bench suppress` measures beside the effect: groups of patients, the zero-shot classifier, real pairs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
from concept_world import TextTower, basis, world, write_run
from PIL import Image

from dermaudit.bench.suppression import compare
from dermaudit.bench.suppression.strata import (
    age_group,
    by_stratum,
    strata_of,
    zero_shot_accuracy,
)
from dermaudit.concepts.evidence.cross_fit import CrossFitted, TrapData
from dermaudit.stats.intervals import auroc


@pytest.mark.parametrize(
    "age, group",
    [(39.9, "under 40"), (40, "40 to 59"), ("60", "60 and over"), (None, ""), ("old", ""), (float("nan"), "")],
)  # fmt: skip
def test_ages_are_put_into_groups(age, group):
    assert age_group(age) == group


def scored_rows(n=240, seed=0):
    """Rows of one fold with a score that suppression turns from noise into the label."""
    g = np.random.default_rng(seed)
    y = g.integers(0, 2, n).astype(float)
    before, after = g.normal(size=n), y + 0.5 * g.normal(size=n)
    data = TrapData(
        g.normal(size=(n, 3)).astype(np.float32),
        y,
        np.zeros(n),
        np.arange(n).astype(str),
        np.arange(n) >= 40,
    )
    no = np.zeros(n, bool)
    return data, CrossFitted(np.zeros(n, int), before, after, no, no, no, no)


def test_each_stratum_has_its_own_auroc_and_a_small_one_says_so():
    data, result = scored_rows()
    n = len(data.y)
    sex = np.where(np.arange(n) % 2 == 0, "female", "male").astype(object)
    sex[:60], sex[-5:] = "", "other"
    found = by_stratum(data, result, {"sex": sex.astype(str)})["sex"]
    assert list(found) == ["female", "male", "other"]
    assert found["other"] == {"n": 5, "n_target": int(data.y[-5:].sum()), "reason": "n too small"}
    rows = np.flatnonzero(data.scored & (sex == "male"))
    male = found["male"]
    assert male["before"] == pytest.approx(auroc(data.y[rows], result.score_before[rows]))
    assert male["after"] == pytest.approx(auroc(data.y[rows], result.score[rows]))
    assert male["n"] == len(rows) and 0 < male["ci"][0] < male["after"] - male["before"]


def test_strata_are_those_that_the_manifest_has():
    table = pa.table({"image": ["a", "b"], "age": [70, None], "sex": ["male", None]})
    found = {name: values.tolist() for name, values in strata_of(table).items()}
    assert found == {"age": ["60 and over", ""], "sex": ["male", ""]}


class FirstDimension:
    """Says `mel` where the first dimension is above 0, else `nv`."""

    classes = ["mel", "nv"]

    def logits(self, x):
        return np.stack([x[:, 0], -x[:, 0]], 1)


def test_zero_shot_accuracy_by_hand():
    data, _ = scored_rows()
    labels = np.where(data.y == 1, "mel", "nv").astype(object)
    labels[50:60] = "bcc"  # no class of the classifier
    edited = data.x.copy()
    edited[:, 0] = 2 * data.y - 1
    found = zero_shot_accuracy(data, edited, labels.astype(str), FirstDimension())
    rows = np.r_[40:50, 60 : len(labels)]
    assert found["n"] == len(rows) and found["after"] == 1
    assert found["before"] == pytest.approx(((data.x[rows, 0] > 0) == (data.y[rows] == 1)).mean())
    assert 0 < found["ci"][0] < 1 - found["before"] < found["ci"][1]


class PairTower(TextTower):
    """Embeds an image by its first pixel: red is the artifact, green the label."""

    tokenizer, d_pooled = None, 32

    def preprocess(self, images):
        return np.stack([image[0, 0] for image in images])

    def encode_image(self, pixels, normalize=True):
        import torch

        x = (
            basis()[24]
            + (pixels[:, :1] > 100) * 0.6 * basis()[0]
            + (pixels[:, 1:2] > 100) * 0.3 * basis()[1]
        )
        return torch.from_numpy((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32))


@pytest.fixture
def pairs(tmp_path):
    """A table of six pairs, and a run to measure them with."""
    lines = [("artifact", "with_file", "without_file", "group_id")]
    for i in range(6):
        for side, red in (("with", 255), ("without", 0)):
            pixels = np.full((8, 8, 3), [red, 255 * (i % 2), 0], np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{i}_{side}.png")
        lines.append(("ruler_long", f"{i}_with.png", f"{i}_without.png", f"g{i}"))
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return path, write_run(tmp_path / "run", world(1500))


def bench(main, run, *flags):
    return main(
        "bench", "suppress", "--run", run.path, "--concept", "ruler", "--method", "concept_latent",
        *flags, "--json",
    )  # fmt: skip


def test_real_pairs_move_the_prediction_less_after_suppression(main, pairs, monkeypatch):
    path, run = pairs
    monkeypatch.setattr(compare, "tower_of", lambda run, threads: PairTower({}))
    done = bench(main, run, "--pairs", path)
    assert done.rc == 0, done.stderr
    found = done.json()["pairs"]["ruler"]
    assert found["n"] == 6 and found["reason"] == "n too small: 6 pairs"
    assert [one["image"] for one in found["pairs"]] == [f"{i}_with.png" for i in range(6)]
    assert found["before"] > 0.2 and found["after"] < 0.5 * found["before"]
    assert found["before"] == pytest.approx(
        np.mean([abs(one["before"]) for one in found["pairs"]]), abs=1e-5
    )
    assert "n too small: 6 pairs" in done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda text: text.replace("group_id", "group"), "no column group_id"),
        (lambda text: text.splitlines()[0], "has no rows"),
        (lambda text: text.replace("3_with", "missing"), "row 5"),
        (lambda text: text.replace("ruler_long", "rulr", 1), "unknown concept 'rulr'"),
    ],
)
def test_a_table_of_pairs_that_cannot_be_used_is_refused(main, pairs, monkeypatch, change, message):
    path, run = pairs
    monkeypatch.setattr(compare, "tower_of", lambda run, threads: PairTower({}))
    path.write_text(change(path.read_text()))
    done = bench(main, run, "--pairs", path)
    assert done.rc == 2 and message in json.loads(done.stdout)["error"]["message"], done.stdout


def test_a_known_concept_in_a_table_of_pairs_is_not_taken_for_another(main, pairs, monkeypatch):
    """dark_skin is of the vocabulary; it shares a word with the labelled dark_corner."""
    path, _ = pairs
    w = world(1500)
    run = write_run(path.parent / "other", w, **{"artifact:dark_corner": w.a})
    monkeypatch.setattr(compare, "tower_of", lambda run, threads: PairTower({}))
    path.write_text(path.read_text().replace("ruler_long", "dark_skin"))
    done = main(
        "bench", "suppress", "--run", run.path, "--concept", "dark_corner", "--method",
        "concept_latent", "--pairs", path, "--json",
    )  # fmt: skip
    assert done.rc == 0 and "pairs" not in done.json(), done.stdout
