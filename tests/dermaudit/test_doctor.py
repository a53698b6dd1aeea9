"""`dermaudit doctor`: what is sound is listed, what is broken gets a line with the fix."""

from __future__ import annotations

import importlib.metadata
import json
import struct

import pytest

from dermaudit.cli import doctor
from dermaudit.files import write_text
from dermaudit.run.directory import Run


def said(problems) -> str:
    return " | ".join(problem["what"] for problem in problems)


def test_it_reports_through_the_real_command(cli, tmp_path):
    done = cli("doctor", "--json", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    answer = done.json()
    assert answer["device"] in ("cpu", "cuda") and answer["threads"] == 1
    assert answer["packages"]["torch"] == importlib.metadata.version("torch")
    assert answer["free_disk_gb"] > 0 and answer["run"] is None and answer["data"] is None
    assert {c["name"] for c in answer["checkpoints"]} >= {"phantom-vit", "dermoscopy-small"}
    for problem in answer["problems"]:
        assert problem["what"] in done.stderr and problem["fix"] in done.stderr
    assert f"{len(answer['problems'])} problem" in done.stderr


def test_data_that_is_not_there_is_a_problem(main, tmp_path):
    answer = main("doctor", "--json", cwd=tmp_path, env={"DERMAUDIT_DATA": str(tmp_path)}).json()
    assert "DERMAUDIT_DATA is" in said(answer["problems"])
    (tmp_path / "dermoscopy").mkdir()
    (tmp_path / "dermoscopy" / "metadata.csv").write_text("image_id\n")
    answer = main("doctor", "--json", cwd=tmp_path, env={"DERMAUDIT_DATA": str(tmp_path)}).json()
    assert "DERMAUDIT_DATA" not in said(answer["problems"])


def test_packages_that_are_absent_old_or_broken(monkeypatch, tmp_path):
    (tmp_path / "broken_package.py").write_text("raise OSError('libcudart.so is missing')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        doctor, "_PACKAGES", {"no-such-package": "nothing", "numpy": "broken_package"}
    )
    monkeypatch.setattr(doctor, "_requirements", lambda: {"numpy": ">=999"})
    problems: list[doctor.Problem] = []
    found = doctor._packages(deep=False, problems=problems)
    assert found == {"no-such-package": None, "numpy": importlib.metadata.version("numpy")}
    assert [p.what for p in problems] == [
        "the package no-such-package is not installed",
        f"numpy {found['numpy']} is installed, dermaudit needs >=999",
    ]
    assert problems[1].fix == 'run: pip install "numpy>=999"'
    problems.clear()
    doctor._packages(deep=True, problems=problems)
    assert problems[-1].what == "numpy cannot be imported (OSError: libcudart.so is missing)"


# ---- checkpoints


def checkpoint(folder, *, header: dict | None = None, data: bytes = bytes(24)):
    folder.mkdir(exist_ok=True)
    for name in ("open_clip_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text("{}")
    default = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    text = json.dumps(default if header is None else header).encode()
    (folder / "open_clip_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return folder


def test_a_sound_checkpoint_has_its_parameters_counted(tmp_path):
    assert doctor._read_checkpoint(checkpoint(tmp_path), deep=True) == 6


@pytest.mark.parametrize(
    "missing", ["open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors"]
)
def test_a_missing_file_of_a_checkpoint_is_named(tmp_path, missing):
    (checkpoint(tmp_path) / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing} is missing"):
        doctor._read_checkpoint(tmp_path, deep=False)


def test_cut_off_weights_are_seen_without_loading_them(tmp_path):
    weights = checkpoint(tmp_path) / "open_clip_model.safetensors"
    whole = weights.read_bytes()
    for length in range(len(whole)):
        weights.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut off"):
            doctor._read_checkpoint(tmp_path, deep=False)


def test_weights_that_are_not_finite_are_seen_deep(tmp_path):
    nan = struct.pack("<6f", 0, 0, float("nan"), 0, 0, 0)
    checkpoint(tmp_path, data=nan)
    assert doctor._read_checkpoint(tmp_path, deep=False) == 6
    with pytest.raises(ValueError, match="the weight w is not finite"):
        doctor._read_checkpoint(tmp_path, deep=True)


def test_a_broken_bundled_checkpoint_is_a_problem_with_its_fix(tmp_path, monkeypatch):
    monkeypatch.setattr("dermaudit.towers.loading.names.bundled_folder", lambda: tmp_path)
    checkpoint(tmp_path / "phantom-vit")
    checkpoint(tmp_path / "dermoscopy-small", data=bytes(23))
    problems: list[doctor.Problem] = []
    states = {c["name"]: c["state"] for c in doctor._checkpoints(False, problems)}
    assert states == {"phantom-vit": "intact", "dermoscopy-small": "broken"}
    (problem,) = problems
    assert "dermoscopy-small is broken" in problem.what and "cut off" in problem.what
    assert "dermaudit pretrain dermoscopy-small" in problem.fix


# ---- runs


def test_the_newest_run_is_looked_at(tmp_path):
    run = Run.create(tmp_path / "runs" / "r")
    for stage in ("embed", "fit"):
        path = run.file(stage, "file")
        run.stage(stage, {}, lambda path=path: (write_text(path, "x"), ([path], {}))[1])
    problems: list[doctor.Problem] = []
    found = doctor._newest_run(tmp_path / "runs", problems)
    assert found["path"] == str(run.path) and found["stages"] == {"embed": True, "fit": True}
    assert found["missing"][:2] == ["sae measure", "annotate"] and "fit" not in found["missing"]
    assert problems == []
    run.file("fit", "file").write_text("altered")
    found = doctor._newest_run(tmp_path / "runs", problems)
    assert found["stages"] == {"embed": True, "fit": False}
    assert "fit/file is missing or was altered" in problems[0].what
    assert problems[0].fix == f"run: dermaudit fit --run {run.path} --force"


def test_a_run_that_cannot_be_read_is_a_problem(tmp_path):
    path = tmp_path / "runs" / "r" / "run.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    problems: list[doctor.Problem] = []
    assert doctor._newest_run(tmp_path / "runs", problems) is None
    assert "not valid JSON" in problems[0].what
