"""Runs that cannot be wrong silently: columns, locks, moved runs, commands, cached hashes."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from dermaudit.errors import LockedRunError, StaleArtifactError, UserInputError
from dermaudit.files import sha256_file, write_parquet, write_text
from dermaudit.run import hashes
from dermaudit.run.directory import Run, open_run
from dermaudit.run.hashes import FileHashes
from dermaudit.run.lock import LOCK_FILE


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "runs" / "r", seed=3, threads=1)
    make_images(run, ["train", "test"], ["nv", "mel"])
    make_stage(run, "embed", upstream=["images"])
    return run


def make_images(run: Run, splits: list[str], labels: list[str]) -> None:
    def make():
        table = pa.table({"image": ["a.png", "b.png"], "split": splits, "label": labels})
        write_parquet(run.file("images.parquet"), table)
        return [run.file("images.parquet")], {"n": 2}

    run.stage("images", {"splits": splits, "labels": labels}, make)


def make_stage(run: Run, name: str, **options) -> dict:
    def make():
        write_text(run.file(name), "x")
        return [run.file(name)], {}

    return run.stage(name, {}, make, **options)


def remake_images_and_embed(run: Run, splits: list[str], labels: list[str]) -> None:
    """The embeddings come out the same: only images.parquet differs."""
    make_images(run, splits, labels)
    make_stage(run, "embed", upstream=["images"])


def test_a_changed_split_makes_a_fit_and_what_stands_on_it_stale(run):
    make_stage(run, "fit:site", upstream=["embed"], columns=["split", "group"])
    make_stage(run, "name", upstream=["fit:site"])
    remake_images_and_embed(run, ["test", "train"], ["nv", "mel"])
    for stage in ("fit:site", "name"):
        with pytest.raises(
            StaleArtifactError, match="column split of images.parquet changed"
        ) as error:
            run.require(stage)
        assert error.value.hint == f"run: dermaudit fit --run {run.path} --force"


def test_a_column_that_a_stage_does_not_read_may_change(run):
    make_stage(run, "fit:site", upstream=["embed"], columns=["split", "group"])
    remake_images_and_embed(run, ["train", "test"], ["nv", "bcc"])
    run.require("fit:site")


def test_a_stage_is_made_again_when_a_column_changed(run):
    make_stage(run, "fit:site", upstream=["embed"], columns=["split"])
    remake_images_and_embed(run, ["train", "val"], ["nv", "mel"])
    make_stage(run, "fit:site", upstream=["embed"], columns=["split"])
    run.require("fit:site")


def test_reading_verifies_what_a_stage_was_made_from(run):
    make_stage(run, "fit:site", upstream=["embed"])
    make_stage(run, "name", upstream=["fit:site"])
    run.file("embed").write_text("y")
    with pytest.raises(StaleArtifactError, match="embed is missing or was altered"):
        run.require("name")


def test_an_upstream_stage_that_the_run_lacks_is_refused(run):
    with pytest.raises(UserInputError, match="has no fit:site stage yet") as error:
        make_stage(run, "name", upstream=["fit:site"])
    assert error.value.hint == f"run: dermaudit fit --run {run.path}"


def test_two_writers_the_second_is_refused_and_the_first_is_not_lost(run):
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from dermaudit.files import write_text\nfrom dermaudit.run.directory import open_run\n"
        "run = open_run(sys.argv[1])\n"
        "def make():\n    print('started', flush=True)\n    sys.stdin.readline()\n"
        "    write_text(run.file('fit'), 'x')\n    return [run.file('fit')], {}\n"
        "run.stage('fit', {}, make)\n"
    )
    root = str(Path(__file__).parents[2])
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert other.stdout is not None and other.stdout.readline() == "started\n"
    with pytest.raises(LockedRunError, match=f"is being written by process {other.pid}"):
        make_stage(run, "name")
    other.communicate("\n")
    assert other.returncode == 0
    make_stage(run, "name")
    assert {"fit", "name"} <= open_run(run.path).meta["stages"].keys()


def test_the_lock_of_a_killed_process_is_taken_over(run):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    owner = {"host": platform.node(), "pid": child.pid, "process_started": "1"}
    run.file(LOCK_FILE).write_text(json.dumps(owner))
    make_stage(run, "name")
    assert not run.file(LOCK_FILE).exists()


def test_a_number_that_belongs_to_a_later_process_is_no_owner(run):
    owner = {"host": platform.node(), "pid": os.getppid(), "process_started": "1"}
    run.file(LOCK_FILE).write_text(json.dumps(owner))
    make_stage(run, "name")


def test_the_lock_of_another_host_is_refused_with_the_file_to_remove(run):
    owner = {
        "host": "elsewhere",
        "pid": 1,
        "started": "2026-01-01",
        "command": ["dermaudit", "fit"],
    }
    run.file(LOCK_FILE).write_text(json.dumps(owner))
    with pytest.raises(LockedRunError, match="process 1 on elsewhere since 2026-01-01") as error:
        make_stage(run, "name")
    assert str(run.file(LOCK_FILE)) in error.value.hint
    assert error.value.exit_code == 2


def test_a_stage_inside_a_stage_of_the_same_process_may_write(run):
    def make():
        make_stage(run, "inner")
        write_text(run.file("outer"), "x")
        return [run.file("outer")], {}

    run.stage("outer", {}, make)
    assert {"inner", "outer"} <= open_run(run.path).meta["stages"].keys()


def test_a_file_is_hashed_once_while_it_is_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "big"
    path.write_text("a")
    past = time.time() - 60
    os.utime(path, (past, past))
    monkeypatch.setattr(hashes, "SETTLED", -1.0)  # the change time cannot be set back
    counted = []
    monkeypatch.setattr(hashes, "sha256_file", lambda p: counted.append(p) or sha256_file(p))
    first = FileHashes(tmp_path)
    digest = first.digest("big")
    assert first.digest("big") == digest and len(counted) == 1
    first.save()
    assert FileHashes(tmp_path).digest("big") == digest and len(counted) == 1
    path.write_text("b")
    os.utime(path, (past, past))  # same size, same modification time
    assert FileHashes(tmp_path).digest("big") == sha256_file(path) != digest


def test_a_damaged_hash_cache_is_ignored(tmp_path):
    (tmp_path / "file").write_text("a")
    cached = FileHashes(tmp_path)
    cache = cached._cache_file()
    cache.parent.mkdir(parents=True)
    cache.write_text("not json")
    assert cached.digest("file") == sha256_file(tmp_path / "file")


def test_commands_that_wrote_to_a_run_are_recorded(main, image_folder, tmp_path):
    images = image_folder(*[f"{i}.png" for i in range(3)])
    argv = [
        "embed",
        images,
        "--model",
        "phantom-vit",
        "--run",
        tmp_path / "r",
        "--tokens",
        "pooled",
    ]
    assert main(*argv).rc == 0
    recorded = open_run(tmp_path / "r").meta["commands"]
    assert [command["argv"] for command in recorded] == [["dermaudit", *map(str, argv)]]


def test_a_run_and_its_data_can_be_moved_together_or_apart(main, image_folder, tmp_path):
    images = image_folder(*[f"{i}.png" for i in range(3)], name="work/images")
    made = ["embed", images, "--model", "phantom-vit", "--tokens", "pooled"]
    assert main(*made, "--run", tmp_path / "work" / "runs" / "r", cwd=tmp_path).rc == 0
    shutil.move(tmp_path / "work", tmp_path / "moved")
    run = open_run(tmp_path / "moved" / "runs" / "r")
    assert run.image_file("0.png") == tmp_path / "moved" / "runs" / "r" / "../../images/0.png"

    shutil.move(tmp_path / "moved" / "images", tmp_path / "elsewhere")
    with pytest.raises(UserInputError, match="does not exist") as error:
        run.image_file("0.png")
    assert f"dermaudit data locate FOLDER --run {run.path}" in error.value.hint
    assert main("data", "locate", tmp_path / "elsewhere", "--run", run.path).rc == 0
    assert open_run(run.path).image_file("0.png").is_file()

    (tmp_path / "elsewhere" / "1.png").write_bytes(b"another image")
    refused = main("data", "locate", tmp_path / "elsewhere", "--run", run.path)
    assert refused.rc == 2 and "its sha256 differs" in refused.stderr
