"""The run directory: what is unchanged is not done again, what is stale or damaged is refused."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import write_text
from dermaudit.run.directory import Run, newest_run, open_run

STAGE = """
import sys
from pathlib import Path
from dermaudit.failpoints import hit
from dermaudit.files import write_text
from dermaudit.run.directory import Run

run = Run.create(Path(sys.argv[1]))

def make():
    print("made")
    for name in ("one", "two"):
        write_text(run.file("stage", name), name)
        hit("between")
    return [run.file("stage", "one"), run.file("stage", "two")], {"n": 2}

print(run.stage("stage", {"seed": 0}, make)["n"])
"""


class Maker:
    """A stage that writes one file and counts how often it was done."""

    def __init__(self, run: Run, name: str, text: str = "x") -> None:
        self.run, self.name, self.text, self.times = run, name, text, 0

    def __call__(self):
        self.times += 1
        path = self.run.file(self.name, "file")
        write_text(path, self.text)
        return [path], {"times": self.times}


def do(run: Run, make: Maker, inputs: dict | None = None, **options) -> int:
    """Do the stage; returns how often `make` has run so far."""
    run.stage(make.name, inputs or {"seed": 0}, make, **options)
    return make.times


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "r", seed=3, threads=1)


def test_an_unchanged_stage_is_skipped_also_by_another_process(run):
    make = Maker(run, "embed")
    assert do(run, make) == 1
    assert do(run, make) == 1
    again = Maker(open_run(run.path), "embed")
    assert do(again.run, again) == 0
    assert again.run.stage("embed", {"seed": 0}, again) == {"times": 1}


@pytest.mark.parametrize("how", ["inputs", "force", "altered", "removed"])
def test_a_stage_is_done_again_when(run, how):
    make = Maker(run, "embed")
    do(run, make)
    if how == "altered":
        run.file("embed", "file").write_text("y")
    if how == "removed":
        run.file("embed", "file").unlink()
    inputs = {"seed": 1} if how == "inputs" else None
    assert do(run, make, inputs, force=how == "force") == 2
    assert do(run, make, inputs) == 2
    assert run.require("embed")["summary"] == {"times": 2}


@pytest.mark.parametrize(
    ("record", "command"),
    [
        ("annotate", "annotate"),
        ("fit:visual.pooled", "fit"),
        ("measure:visual.pooled", "sae measure"),
        ("recipe:dark corner", "recipe make --concept 'dark corner'"),
    ],
)
def test_a_stage_that_is_not_there_names_the_command_that_makes_it(run, record, command):
    with pytest.raises(UserInputError, match=f"has no {record} stage yet") as caught:
        run.require(record)
    assert caught.value.hint == f"run: dermaudit {command} --run {run.path}"


@pytest.mark.parametrize("how", ["altered", "removed"])
def test_a_damaged_file_is_refused_by_name(run, how):
    do(run, Maker(run, "embed"))
    path = run.file("embed", "file")
    path.write_text("y") if how == "altered" else path.unlink()
    with pytest.raises(StaleArtifactError, match="embed/file is missing or was altered"):
        open_run(run.path).require("embed")


def test_a_stage_is_stale_when_what_it_stands_on_was_made_again(run):
    do(run, Maker(run, "embed"))
    fit = Maker(run, "fit")
    do(run, fit, upstream=["embed"])
    run.require("fit")
    do(run, Maker(run, "embed", "other"), {"seed": 1})
    with pytest.raises(StaleArtifactError, match="the fit stage .* is stale: embed was made again"):
        run.require("fit")
    assert do(run, fit, upstream=["embed"]) == 2
    run.require("fit")


def test_a_stage_stays_fresh_when_what_it_stands_on_comes_out_the_same(run):
    do(run, Maker(run, "embed"))
    fit = Maker(run, "fit")
    do(run, fit, upstream=["embed"])
    do(run, Maker(run, "embed"), force=True)
    run.require("fit")
    assert do(run, fit, upstream=["embed"]) == 1


def test_a_stage_that_fails_is_not_recorded_and_keeps_the_others(run):
    do(run, Maker(run, "embed"))

    def fails():
        write_text(run.file("fit", "half"), "x")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run.stage("fit", {}, fails)
    reopened = open_run(run.path)
    assert list(reopened.meta["stages"]) == ["embed"]
    reopened.require("embed")


def test_killed_between_two_files_the_run_stays_usable(tmp_path, run_python):
    script = tmp_path / "stage.py"
    script.write_text(STAGE)
    path = tmp_path / "runs" / "r"
    killed = run_python(script, path, env={"DERMAUDIT_FAILPOINT": "between:1"})
    assert killed.rc == 137, killed.stderr
    assert (path / "stage" / "one").exists() and not (path / "stage" / "two").exists()
    with pytest.raises(UserInputError, match="has no stage stage yet"):
        open_run(path).require("stage")
    assert run_python(script, path).stdout.split() == ["made", "2"]
    assert run_python(script, path).stdout.split() == ["2"], "done once, it is not done again"
    assert [p.name for p in path.rglob("*.tmp")] == []


def test_the_seed_and_threads_are_kept_and_force_forgets_the_stages(run):
    do(run, Maker(run, "embed"))
    again = Run.create(run.path, seed=4, threads=2)
    assert (again.meta["seed"], again.meta["threads"]) == (4, 2)
    assert list(again.meta["stages"]) == ["embed"]
    assert Run.create(run.path, force=True).meta["stages"] == {}


def test_a_folder_of_other_things_is_not_taken_for_a_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserInputError, match="not empty and is not a run"):
        Run.create(tmp_path)
    with pytest.raises(UserInputError, match="is not a run"):
        open_run(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        ('{"format_version": 99}', ForeignArtifactError, "format_version 99"),
        ("[]", ForeignArtifactError, "format_version"),
        ("{", UserInputError, "not valid JSON"),
    ],
)
def test_a_foreign_or_broken_run_is_refused(tmp_path, content, kind, said):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(kind, match=said):
        open_run(tmp_path)


def test_a_run_of_another_model_is_refused(run):
    run.check_model("any model is right while the run has none")
    run.meta["model"] = {"name": "phantom-vit", "fingerprint": "a" * 64}
    run.check_model("a" * 64)
    with pytest.raises(ForeignArtifactError, match="made with another model .phantom-vit, aaaa"):
        run.check_model("b" * 64)


def test_the_hint_for_a_missing_run_can_be_pasted_with_spaces_in_its_path(tmp_path):
    path = tmp_path / "my runs"
    with pytest.raises(UserInputError) as refused:
        open_run(path)
    assert shlex.split(refused.value.hint)[-2:] == ["--run", str(path)]


def test_the_newest_run_is_the_one_written_last(tmp_path):
    with pytest.raises(UserInputError, match="no run found"):
        newest_run(tmp_path)
    for age, name in enumerate(["b", "c", "a"]):
        Run.create(tmp_path / name)
        os.utime(tmp_path / name / "run.json", (age, age))
    assert newest_run(tmp_path).name == "a"


def test_only_the_log_and_run_json_hold_times(run):
    do(run, Maker(run, "embed"))
    run.log("note", n=1)
    lines = [json.loads(line) for line in run.file("log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["stage", "note"]
    assert list(run.meta["stages"]["embed"]["outputs"]) == ["embed/file"], "a relative path"
