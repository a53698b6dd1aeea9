"""`dermaudit data convert` through the command line: whole, resumable, clear when it fails."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import contents
from PIL import Image

from dermaudit.data import Manifest, read_image
from dermaudit.data.manifest.convert import split_warning

NAMES = ["mel/a.png", "mel/b.jpg", "nv/c.png", "nv/d.png"]


def test_a_folder_becomes_a_self_contained_data_set(cli, image_folder, tmp_path):
    source, out = image_folder(*NAMES), tmp_path / "out"
    done = cli("data", "convert", source, "--out", out, "--json")
    assert done.rc == 0, done.stderr
    answer = done.json()
    assert (answer["layout"], answer["n_images"], answer["n_skipped"]) == ("folder", 4, 0)
    assert answer["labels"] == {"mel": 2, "nv": 2}
    assert sum(answer["splits"].values()) == 4
    assert "mel" in done.stderr and "4 groups" in done.stderr
    before = {path.name: path.read_bytes() for path in source.rglob("*.*")}
    shutil.rmtree(source)
    manifest = Manifest.load(out)
    assert manifest.column("image") == [f"images/{name}" for name in NAMES]
    for path in manifest.paths():
        assert not path.is_symlink() and path.read_bytes() == before[path.name]
    assert manifest.labels == ["mel", "mel", "nv", "nv"]
    data = json.loads((out / "data.json").read_text())
    assert data["n_images"] == 4 and data["layout"] == "folder"
    assert data["manifest_sha256"] == manifest.sha256() == answer["manifest_sha256"]
    assert str(tmp_path) not in (out / "data.json").read_text(), "no path of this machine"
    assert sorted(p.name for p in out.iterdir()) == ["data.json", "images", "manifest.parquet"]


def test_the_same_source_gives_the_same_bytes(cli, main, image_folder, tmp_path):
    source = image_folder(*NAMES)
    for run, out in ((cli, "one"), (main, "two")):
        assert run("data", "convert", source, "--out", tmp_path / out).rc == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_native_table_keeps_its_columns_and_split(main, image_folder, tmp_path):
    source = image_folder("images/a.png", "b.png")
    (source / "manifest.csv").write_text(
        "image,split,group,artifact:ruler,machine\nimages/a.png,test,G1,1,X\nb.png,val,G2,,Y\n"
    )
    out = tmp_path / "out"
    answer = main("data", "convert", source, "--out", out, "--json").json()
    assert answer["splits"] == {"train": 0, "val": 1, "test": 1}
    assert answer["truth"] == {
        "ruler": {"type": "artifact", "present": 1, "absent": 0, "unknown": 1}
    }
    manifest = Manifest.load(out)
    assert manifest.column("image") == ["images/a.png", "images/b.png"]
    assert manifest.column("machine") == ["X", "Y"] and manifest.groups == ["G1", "G2"]
    again = tmp_path / "again"
    assert main("data", "convert", out, "--out", again).rc == 0
    assert (again / "manifest.parquet").read_bytes() == (out / "manifest.parquet").read_bytes()


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 70, "val": 0, "test": 29}, "too few images (0 in val, 29 in test)"),
        ({"train": 70, "val": 30, "test": 0}, "too few images (0 in test)"),
        ({"train": 70, "val": 30, "test": 30}, None),
    ],
)
def test_a_split_too_small_to_measure_on_is_named(sizes, expected):
    warning = split_warning(sizes)
    assert warning is None if expected is None else warning.startswith(expected)


def test_help_names_the_columns_of_every_layout(cli):
    from dermaudit.data.layouts import FOREIGN
    from dermaudit.data.manifest.commands import convert

    message = " ".join(convert.__doc__.split())
    for name, layout in FOREIGN.items():
        assert f"{name}: {layout.description}" in message
    done = cli("data", "convert", "--help")
    assert "sub_caption_mask" in done.stdout and "isic_id" in done.stdout


def test_where_and_dry_run(main, image_folder, tmp_path):
    source, out = image_folder(*NAMES), tmp_path / "out"
    argv = ["data", "convert", source, "--out", out, "--where", "label = 'nv'", "--json"]
    answer = main(*argv, "--dry-run").json()
    assert (answer["dry_run"], answer["n_images"], answer["labels"]) == (True, 2, {"nv": 2})
    assert not out.exists()
    assert main(*argv).json()["n_images"] == 2
    assert sorted(p.name for p in (out / "images").rglob("*.*")) == ["c.png", "d.png"]
    assert json.loads((out / "data.json").read_text())["where"] == "label = 'nv'"


def test_links_instead_of_copies(main, image_folder, tmp_path):
    source, out = image_folder(*NAMES), tmp_path / "out"
    done = main("data", "convert", source, "--out", out, "--link")
    assert done.rc == 0 and "linking images" in done.stderr and "copying" not in done.stderr
    paths = Manifest.load(out).paths()
    assert all(path.is_symlink() for path in paths)
    assert np.array_equal(read_image(paths[0]), read_image(source / NAMES[0]))
    # Copied over the links: the sources must stay as they are.
    before = contents(source)
    assert main("data", "convert", source, "--out", out, "--force").rc == 0
    assert not any(path.is_symlink() for path in paths) and contents(source) == before


def add_bad_images(source) -> None:
    (source / "mel" / "bad.jpg").write_bytes(b"hello")
    whole = (source / "nv" / "c.png").read_bytes()
    (source / "nv" / "cut.png").write_bytes(whole[: len(whole) // 2])
    Image.new("1", (12_000, 12_000)).save(source / "nv" / "huge.png")


def test_bad_images_are_listed_counted_and_skipped(main, image_folder, tmp_path):
    source, out = image_folder(*NAMES), tmp_path / "out"
    add_bad_images(source)
    done = main("data", "convert", source, "--out", out, "--json")
    assert done.rc == 0
    answer = done.json()
    assert (answer["n_images"], answer["n_skipped"]) == (4, 3)
    reasons = {skipped["image"]: skipped["reason"] for skipped in answer["skipped"]}
    assert "not an image" in reasons["images/mel/bad.jpg"]
    assert "ends before" in reasons["images/nv/cut.png"]
    assert "144000000" in reasons["images/nv/huge.png"] or "12000" in reasons["images/nv/huge.png"]
    assert all(name in done.stderr for name in reasons)
    listed = pq.ParquetFile(out / "skipped.parquet").read().to_pylist()
    assert {row["image"]: row["reason"] for row in listed} == reasons
    assert not (out / "images" / "mel" / "bad.jpg").exists()
    assert json.loads((out / "data.json").read_text())["n_skipped"] == 3


def test_bad_images_are_fatal_when_strict(cli, image_folder, tmp_path):
    source = image_folder(*NAMES)
    add_bad_images(source)
    done = cli("data", "convert", source, "--out", tmp_path / "out", "--strict", "--json")
    assert done.rc == 2
    error = done.json()["error"]
    assert error["code"] == "bad_image" and "bad.jpg: not an image" in error["message"]
    assert not (tmp_path / "out" / "manifest.parquet").exists()


@pytest.mark.parametrize("end", ["convert:2", "convert=interrupt:2"])
def test_a_stopped_conversion_is_continued(cli, main, image_folder, tmp_path, end):
    source, out, whole = image_folder(*NAMES), tmp_path / "out", tmp_path / "whole"
    main("data", "convert", source, "--out", whole)
    stopped = cli("data", "convert", source, "--out", out, env={"DERMAUDIT_FAILPOINT": end})
    assert stopped.rc == (130 if "interrupt" in end else 137)
    assert len(list((out / "images").rglob("*.*"))) == 2
    # What is half made is never taken for a data set, nor for a folder of images.
    refused = main("data", "check", out, "--json")
    assert refused.rc == 2 and "unfinished" in refused.json()["error"]["message"]
    other = image_folder("x.png", name="other")
    foreign = main("data", "convert", other, "--out", out)
    assert foreign.rc == 2 and "unfinished work of another source" in foreign.stderr
    first = (out / "images" / "mel" / "a.png").stat().st_mtime_ns
    assert main("data", "convert", source, "--out", out).rc == 0
    assert (out / "images" / "mel" / "a.png").stat().st_mtime_ns == first, "copied twice"
    assert contents(out) == contents(whole)


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(cli, main, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (2, 200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise[0, :40, :40]).save(source / "a.png")
    Image.fromarray(noise[1]).save(source / "b.png")
    full = cli("data", "convert", source, "--out", out, "--json", file_limit_kb=50)
    assert full.rc == 2, full.stderr
    assert full.json()["error"]["code"] == "no_space"
    assert "no space left to write" in full.stderr and "b.png" in full.stderr
    assert [p.name for p in (out / "images").iterdir()] == ["a.png"], "no half file is left"
    assert main("data", "convert", source, "--out", out).rc == 0
    assert Manifest.load(out).n == 2


def test_it_never_overwrites_without_force(main, image_folder, tmp_path):
    source, out = image_folder(*NAMES), tmp_path / "out"
    main("data", "convert", source, "--out", out)
    before = contents(out)
    again = main("data", "convert", source, "--out", out, "--where", "label = 'nv'")
    assert again.rc == 2 and "already holds a data set" in again.stderr
    assert contents(out) == before
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("")
    foreign = main("data", "convert", source, "--out", thesis)
    assert foreign.rc == 2 and "already holds files (chapter.txt)" in foreign.stderr
    forced = main("data", "convert", source, "--out", out, "--where", "label = 'nv'", "--force")
    assert forced.rc == 0 and Manifest.load(out).labels == ["nv", "nv"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("imgae\na.png\n", "manifest.csv has no column 'image'"),
        ("image\n../a.png\n", "manifest.csv, line 2: column 'image': '../a.png' is a path outside"),
        ("image\nmissing.png\n", "missing.png: the file does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    main, image_folder, tmp_path, table, message
):
    source = image_folder("a.png")
    (source / "manifest.csv").write_text(table)
    done = main("data", "convert", source, "--out", tmp_path / "out", "--json")
    assert done.rc == 2
    assert message in done.json()["error"]["message"] and done.json()["error"]["hint"]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "manifest.parquet").exists()


@pytest.mark.parametrize("out", [".", "converted"])
def test_the_output_never_goes_into_the_images(main, image_folder, out):
    source = image_folder("a.png")
    done = main("data", "convert", source, "--out", source / out)
    assert done.rc == 2 and "is inside the images that are converted" in done.stderr
    assert [p.name for p in source.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        ([".", "--layout", "dermascopy"], "did you mean 'dermoscopy'?"),
        ([".", "--where", "lable = 1"], "cannot be used"),
    ],
)
def test_wrong_arguments(main, image_folder, tmp_path, argv, message):
    done = main("data", "convert", *argv, "--out", tmp_path / "out", cwd=image_folder("a.png"))
    assert done.rc == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()
