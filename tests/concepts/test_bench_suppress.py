"""`bench suppress`: every method under one protocol, what cannot be measured, and a method of one's own."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from concept_world import TextTower, basis, world, write_run

from dermaudit.bench.suppression import compare, methods
from dermaudit.bench.suppression.methods.registry import methods as all_methods

PAGE = Path(__file__).parents[2] / "docs" / "snippets" / "extending_bench_method.md"
SHORT = "concept_latent", "mean_difference", "leace", "sae", "dfr"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose artifact is the first direction of the SAE; patches are labelled on two images only."""
    w = world(1500)
    patch = np.zeros(w.n)
    patch[:2] = 1
    return write_run(tmp_path_factory.mktemp("bench") / "run", w, **{"artifact:patch": patch})


def suppress(main, run, *flags):
    return main("bench", "suppress", "--run", run.path, *flags, "--json")


def flags(*names):
    return [word for name in names for word in ("--method", name)]


def test_every_method_is_measured_and_the_artifact_is_suppressed(main, run, monkeypatch):
    tower = TextTower({"ruler": basis()[0]})
    tower.tokenizer = object()
    monkeypatch.setattr(compare, "tower_of", lambda run, threads: tower)
    w = world(1500)
    drawn = np.where((w.y == 0)[:, None], w.x + 0.5 * basis()[0], np.nan).astype(np.float32)
    monkeypatch.setattr(compare, "drawn_rows", lambda *args: drawn)
    done = suppress(main, run, "--concept", "ruler")
    assert done.rc == 0, done.stderr
    found = done.json()["suppression"]["ruler"]
    assert found.keys() == all_methods().keys()
    keys = {
        "cross_group_auroc_before", "cross_group_auroc_after", "oracle", "gap_closed", "ci",
        "clean_auroc_delta", "worst_group_fixed", "worst_group_prevalence", "identity_share",
        "random_beaten", "n",
    }  # fmt: skip
    for name, figures in found.items():
        assert keys <= figures.keys(), (name, figures)
    latent, roboshot = found["concept_latent"], found["roboshot"]
    assert latent["ci"][0] > 0 and latent["gap_closed"] > 0.7 and latent["random_beaten"] >= 95
    assert 0.3 < latent["identity_share"] < 0.8 and found["leace"]["identity_share"] == 0
    assert roboshot["cross_group_auroc_after"] > roboshot["cross_group_auroc_before"]
    for name in ("text_seeded", "drawn", "agreement"):
        assert found[name]["gap_closed"] > 0.5 and found[name]["random_beaten"] >= 95, name
    # The SAE of this world has the artifact as one latent: it does well, too.
    assert found["sae"]["gap_closed"] > 0.5
    assert "n too small" not in done.stderr


def test_the_trap_grows_with_its_strength_and_suppression_undoes_it(main, run, monkeypatch):
    tower = TextTower({})
    tower.tokenizer = None
    monkeypatch.setattr(compare, "tower_of", lambda run, threads: tower)
    done = suppress(main, run, "--concept", "ruler", *flags("mean_difference"), "--sweeps")
    assert done.rc == 0, done.stderr
    curve = done.json()["curves"]["ruler"]
    assert [point["strength"] for point in curve] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0]
    before, after, oracle = (
        np.array([point[key] for point in curve]) for key in ("before", "after", "oracle")
    )
    assert (
        abs(before[0] - oracle[0]) < 0.05 and abs(after[0] - before[0]) < 0.05
    )  # there is no trap
    assert before[0] - before[4] > 0.1 and (np.diff(before[:6]) < 0.02).all()
    assert (after[1:] > before[1:]).all() and abs(after[4] - oracle[4]) < 0.1
    assert all(p["ci"][0] <= p["after"] - p["before"] <= p["ci"][1] for p in curve)
    few = done.json()["few_labels"]["ruler"]
    assert list(few) == ["10", "25", "50", "100"]
    assert all(row["lowest"] <= row["mean"] and row["draws"] == 5 for row in few.values())
    assert few["100"]["mean"] > 0.7 and few["100"]["refused"] == 0 <= few["10"]["refused"] <= 1
    assert "n + n labels" in done.stderr
    side = done.json()["side_effects"]["ruler"]
    for probe in side["residual"].values():  # the artifact is a direction: little is left of it
        assert probe["before"] > 0.95 and probe["ci"][1] < 0 and probe["after"] < probe["before"]
    assert side["concepts"].keys() == {"mel", "nv"}  # patches are labelled on two images only
    for one in side["concepts"].values():
        assert one["before"] > 0.7 and abs(one["after"] - one["before"]) < 0.03
    assert done.json()["zero_shot"]["ruler"] == {"reason": "the model has no text encoder"}
    assert done.json()["strata"] == {"ruler": {}}  # the manifest has no column for them


def test_two_runs_of_it_are_equal_and_the_file_holds_the_figures(main, run, tmp_path):
    out = tmp_path / "s.json"
    one = suppress(main, run, "--concept", "ruler", *flags("concept_latent"), "--out", out)
    two = suppress(main, run, "--concept", "ruler", *flags("concept_latent"))
    assert one.json()["suppression"] == two.json()["suppression"]
    assert json.loads(out.read_text()) == {"suppression": one.json()["suppression"]}
    again = suppress(main, run, *flags("concept_latent"), "--out", out)
    assert again.rc == 2 and "is there already" in again.json()["error"]["message"]


def test_too_few_images_are_a_reason_with_the_counts(main, run):
    done = suppress(main, run, *flags("mean_difference"))
    assert done.rc == 0, done.stderr
    patch = done.json()["suppression"]["patch"]
    assert "n too small to cross-fit" in patch["reason"] and patch["numbers"]["y=1 a=1"] <= 2
    assert "n too small to cross-fit" in done.stderr


@pytest.mark.parametrize(
    "given, message",
    [
        (("--method", "leac"), "unknown method 'leac'.*'leace'"),
        (("--target", "bcc"), "has the label 'bcc'"),
        (("--concept", "rular"), "unknown concept 'rular'.*'ruler'"),
        (("--strength", "0.3"), "greater than or equal to 0.5"),
    ],
)
def test_bad_input_is_one_sentence(main, run, given, message):
    done = suppress(main, run, *given)
    assert done.rc == 2
    error = done.json()["error"]
    assert re.search(message, f"{error['message']} {error['hint']}"), error


def test_a_new_file_adds_a_method(main, run, tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert code is not None
    (tmp_path / "raw_mean_difference_example.py").write_text(code.group(1))
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    all_methods.cache_clear()
    try:
        done = suppress(main, run, "--concept", "ruler", *flags("raw_mean_difference"))
        assert done.rc == 0, done.stderr
        found = done.json()["suppression"]["ruler"]
        assert found["raw_mean_difference"]["gap_closed"] > 0.5
    finally:
        all_methods.cache_clear()
