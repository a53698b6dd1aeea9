"""Killed in every stage, resumed, and the same bytes as an unbroken run."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow
POINTS = ("images:40", "embed", "fit:3", "annotate", "name", "recipe")


def test_a_run_killed_in_every_stage_goes_on_to_the_same_bytes(cli, demo, tmp_path):
    run = tmp_path / "killed"
    audit = (
        "audit",
        demo.data,
        "--model",
        "phantom-vit",
        "--run",
        run,
        "--seed",
        1000,
        "--threads",
        1,
    )
    for point in POINTS:
        done = cli(*audit, env={"DERMAUDIT_FAILPOINT": point}, timeout=600)
        assert done.rc == 137, (point, done.stderr[-500:])
    done = cli(*audit, "--json", timeout=900)
    assert done.rc == 0, done.stderr[-2000:]
    for name in ("concepts.parquet", "labels.parquet", "images.parquet"):
        assert (run / name).read_bytes() == (demo.run / name).read_bytes(), name
    recipes = sorted(path.name for path in (demo.run / "recipes").iterdir())
    assert recipes == sorted(path.name for path in (run / "recipes").iterdir())
    for name in recipes:
        mine, theirs = (json.loads((r / "recipes" / name).read_text()) for r in (run, demo.run))
        assert mine["body"] == theirs["body"]
    assert not list(run.rglob("*.tmp"))


def test_ctrl_c_ends_with_130_and_keeps_the_run(cli, demo, tmp_path):
    run = tmp_path / "stopped"
    embed = ("embed", demo.data, "--model", "phantom-vit", "--run", run)
    done = cli(*embed, "--json", env={"DERMAUDIT_FAILPOINT": "images=interrupt:5"}, timeout=300)
    assert done.rc == 130
    assert done.json()["error"]["code"] == "interrupted"
    assert (run / "run.json").is_file()


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(cli, demo, tmp_path):
    run = tmp_path / "full"
    embed = ("embed", demo.data, "--model", "phantom-vit", "--run", run)
    done = cli(*embed, file_limit_kb=200, timeout=300)
    assert done.rc == 2
    assert "no space left" in done.stderr and "Traceback" not in done.stderr
    assert not list(run.rglob("*.tmp"))
    assert cli(*embed, timeout=300).rc == 0
