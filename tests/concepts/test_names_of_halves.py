"""Names of the dictionaries of two halves: compared by hand, and in a run on disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from concept_world import POOLED, RULER, TextTower, basis, world, write_run
from test_concepts_stages import TOWER, WORDS

from dermaudit.concepts.naming.stage import name_run
from dermaudit.concepts.naming.two_halves import NOT_FOUND, UNNAMED_WORD, HalfNames, compared
from dermaudit.files import write_json
from dermaudit.sae.inference.model import load_sae

EYE = np.eye(6, 8)


def test_shares_by_hand():
    one = HalfNames(EYE, np.array([0, 1, 2, -1, 4, 3]))
    other = HalfNames(EYE[[1, 0, 2, 3, 4]], np.array([1, 5, 2, 3, -1]))
    # Pairs of words: (0, 5), (1, 1), (2, 2), (−1, 3), (4, −1); the last latent of `one` has no partner.
    found = compared(one, other)
    assert found["n_pairs"] == 5 and found["n_named_in_one"] == 5 and found["n_named_in_both"] == 3
    assert found["same"] == pytest.approx(2 / 3)
    # Of the nine pairs of the words 0, 1, 2 and 5, 1, 2 two are equal.
    assert found["by_chance"] == pytest.approx(2 / 9)
    assert found["interval"][0] < 2 / 3 < found["interval"][1]


def test_nothing_named_and_nothing_found():
    empty = compared(HalfNames(EYE, np.full(6, -1)), HalfNames(EYE, np.full(6, -1)))
    assert empty["same"] is None and empty["n_named_in_both"] == 0
    half = HalfNames(EYE, np.array([0, 1, 2, -1, 4, 3]))
    near, far = EYE[:1] + 0.1, np.eye(8)[7:]
    assert half.names_of(np.concatenate([3 * near, far, EYE[3:4]])).tolist() == [
        0,
        NOT_FOUND,
        UNNAMED_WORD,
    ]
    assert HalfNames(EYE[:0], np.zeros(0)).names_of(EYE).tolist() == [NOT_FOUND] * 6


@pytest.fixture
def run(tmp_path):
    """A run whose first half finds the same latents, and whose second half lacks the ruler."""
    w = world(1500, seed=4)
    run = write_run(tmp_path / "r", w)
    sae = load_sae(run.files.sae(POOLED))
    other = replace(sae, W_dec=sae.W_dec.clone())
    other.W_dec[RULER] = -other.W_dec[RULER]
    paths = sae.save(run.files.half(POOLED, 1)) + other.save(run.files.half(POOLED, 2))
    report = run.files.stability(POOLED)
    write_json(report, {"against": ["half 1", "half 2"]})
    run.record(f"seeds:{POOLED}", {}, [*paths, report], upstream=["embed", f"fit:{POOLED}"])
    return run


def test_names_of_a_run_with_halves(run, capsys):
    figures = name_run(run, WORDS, TOWER)
    halves = figures["two_halves"][POOLED]
    assert halves["n_named_in_both"] > 0 and halves["same"] == 1.0
    assert "are named in both, 100% of them alike" in capsys.readouterr().err
    rows = {row["latent"]: row for row in pq.read_table(run.path / "concepts.parquet").to_pylist()}
    assert rows[RULER]["name"] == "ruler" and rows[RULER]["half_names"] == ["ruler", "not found"]
    assert json.loads(run.files.naming.read_text())["two_halves"][POOLED] == halves


def test_halves_of_an_earlier_sae_are_not_read(run):
    record = run.meta["stages"][f"fit:{POOLED}"]
    files = [run.path / name for name in record["outputs"]]
    extra = run.files.consensus(POOLED)
    write_json(extra, {"agreement": [0.9] * 3})
    run.record(f"fit:{POOLED}", {}, [*files, extra], upstream=["embed"])
    figures = name_run(run, WORDS, TextTower({"ruler": basis()[RULER], "veil": basis()[5]}))
    assert figures["two_halves"] == {}
    rows = pq.read_table(run.path / "concepts.parquet").to_pylist()
    assert all(row["half_names"] is None for row in rows)
