"""`dermaudit suppress` without a run, as the first command after the installation: sources, formats, kills."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

pytestmark = pytest.mark.slow
N = 40
#: The command with parts of ten images, so that a prediction of 40 images can be stopped between two.
SMALL_PARTS = (
    "import sys; import dermaudit.concepts.inference.predictions as p; p.PART = 10; p.embedded_images = "
    "__import__('functools').partial(p.embedded_images, batch=5); "
    "from dermaudit.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 40 phantoms, some with a ruler."""
    from dermaudit.phantom import load_bias_table, render, sample

    folder, bias = tmp_path_factory.mktemp("images"), load_bias_table(None)
    for i in range(N):
        Image.fromarray(render(sample(5000, i, bias), 96).rgb).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="module")
def first(cli, images, tmp_path_factory):
    """What the first command of a user gives, in an empty folder."""
    here = tmp_path_factory.mktemp("empty")
    done = cli("suppress", "--concept", "ruler", "--images", images, "--json", cwd=here)
    assert done.rc == 0, done.stderr
    return here / "predictions.csv", done


def rows_of(path):
    if path.suffix == ".csv":
        with path.open(newline="") as handle:
            return list(csv.DictReader(handle))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return pq.read_table(path).to_pylist()


def test_the_first_command_after_the_installation(first, images):
    out, done = first
    summary, rows = done.json(), rows_of(out)
    assert summary["run"] is None and summary["concepts"] == ["ruler"]
    assert len(rows) == N == summary["n_images"]
    assert 0 < summary["n_fired"] == sum(row["fired"] == "1" for row in rows) < N
    assert "the reference of dermoscopy-small" in done.stderr
    for row in rows:
        assert (
            (float(row["z:ruler"]) > 0)
            == (row["fired"] == "1")
            == (float(row["relative_change"]) > 0)
        )
        assert len(row["sha256"]) == 64 and row["unlike"] in "01" and row["p_matched:mel"]
    assert sum(row["unlike"] == "1" for row in rows) == summary["n_unlike"]


def in_words(row):
    """A row as the CSV file has it."""
    return {k: f"{v:.6f}" if isinstance(v, float) else str(v) for k, v in row.items()}


def test_parquet_and_jsonl_hold_the_same(cli, first, images, tmp_path):
    wanted = rows_of(first[0])
    for suffix in (".parquet", ".jsonl"):
        out = tmp_path / f"p{suffix}"
        done = cli("suppress", "--concept", "ruler", "--images", images, "--out", out, cwd=tmp_path)
        assert done.rc == 0, done.stderr
        assert [in_words(row) for row in rows_of(out)] == wanted
    done = cli(
        "suppress", "--concept", "ruler", "--images", images, "--out", "p.xlsx", cwd=tmp_path
    )
    assert done.rc == 2 and "ends in .csv, .parquet, .jsonl" in done.stderr


def test_shards_and_a_list_on_stdin_give_the_same_predictions(cli, first, images, tmp_path):
    wanted = [{**row, "image": ""} for row in rows_of(first[0])]
    names = sorted(path.name for path in images.iterdir())
    for number, part in enumerate((names[:25], names[25:])):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as tar:
            for name in part:
                tar.add(images / name, name)
                note = tarfile.TarInfo(name.replace("png", "json"))
                note.size = 2
                tar.addfile(note, io.BytesIO(b"{}"))
    listed = "\n".join(str(images / name) for name in names)
    for source, stdin in ((tmp_path, None), ("-", listed)):
        out = tmp_path / f"{len(str(source))}.jsonl"
        flags = ("--images", source, "--out", out, "--readers", "2")
        done = cli("suppress", "--concept", "ruler", *flags, stdin=stdin, cwd=tmp_path)
        assert done.rc == 0, done.stderr
        rows = rows_of(out)
        assert rows[0]["image"].endswith("000.png")
        assert [in_words({**row, "image": ""}) for row in rows] == wanted


def test_a_killed_prediction_goes_on_to_the_same_bytes(
    run_python, images, tmp_path_factory, tmp_path
):
    folder = tmp_path_factory.mktemp("some") / "images"
    shutil.copytree(images, folder)
    (folder / "019.png").write_text("the last image of a part is broken")
    command = ("-c", SMALL_PARTS, "suppress", "--concept", "ruler", "--images", folder, "--out")
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    assert run_python(*command, whole, cwd=tmp_path).rc == 0
    done = run_python(*command, killed, cwd=tmp_path, env={"DERMAUDIT_FAILPOINT": "suppress:2"})
    assert done.rc == 137 and not killed.exists()
    assert len(list((tmp_path / "killed.csv.parts").glob("*.parquet"))) == 2
    other = run_python(*command, killed, "--target", "nv", cwd=tmp_path)
    assert other.rc == 2 and "part of another prediction" in other.stderr
    done = run_python(*command, killed, cwd=tmp_path)
    assert done.rc == 0 and "20 images are done already" in done.stderr
    assert killed.read_bytes() == whole.read_bytes()
    names = ("killed.csv", "killed.csv.skipped.csv", "whole.csv", "whole.csv.skipped.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == list(names)
    assert rows_of(tmp_path / names[1]) == rows_of(tmp_path / names[3])
    assert len(rows_of(killed)) == N - 1


def test_images_that_changed_since_are_noticed(run_python, images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    out = tmp_path / "p.csv"
    command = (
        "-c",
        SMALL_PARTS,
        "suppress",
        "--concept",
        "ruler",
        "--images",
        folder,
        "--out",
        out,
    )
    done = run_python(*command, cwd=tmp_path, env={"DERMAUDIT_FAILPOINT": "suppress:1"})
    assert done.rc == 137
    (folder / "005.png").unlink()
    done = run_python(*command, cwd=tmp_path)
    assert done.rc == 2 and "image 10 was 009.png" in done.stderr and not out.exists()
    assert run_python(*command, "--force", cwd=tmp_path).rc == 0 and len(rows_of(out)) == N - 1


def test_broken_images_are_listed_and_the_rest_goes_on(cli, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(images / "000.png", folder)
    (folder / "broken.png").write_bytes((images / "001.png").read_bytes()[:200])
    (folder / "text.jpg").write_text("no image")
    done = cli("suppress", "--concept", "ruler", "--images", folder, "--json", cwd=tmp_path)
    assert done.rc == 0 and done.json()["n_skipped"] == 2, done.stderr
    skipped = rows_of(tmp_path / "predictions.csv.skipped.csv")
    assert [row["image"] for row in skipped] == ["broken.png", "text.jpg"]
    (folder / "000.png").unlink()
    done = cli("suppress", "--concept", "ruler", "--images", folder, "--force", cwd=tmp_path)
    assert done.rc == 2 and "none of the 2 images" in done.stderr
    assert not list(tmp_path.glob("*.parts"))


def test_several_concepts_have_no_prevalence_matched_threshold_without_a_run(cli, images, tmp_path):
    concepts = ("--concept", "ruler", "--concept", "ink")
    done = cli("suppress", *concepts, "--images", images, "--json", cwd=tmp_path)
    assert done.rc == 0 and done.json()["intercept"] is None, done.stderr
    assert "needs the images of a run" in done.stderr
    rows = rows_of(tmp_path / "predictions.csv")
    assert all(row["p_matched:mel"] == row["top1_matched"] == row["cause"] == "" for row in rows)
    assert {"z:ruler", "z:ink"} < set(rows[0])


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--concept", "ruler"), 2, "--images is missing"),
        (("--concept", "rular", "--images", "."), 2, "did you mean 'ruler'"),
        (
            ("--concept", "ruler", "--model", "phantom-vot", "--images", "."),
            2,
            "did you mean 'phantom-vit'",
        ),
        (("--concept", "ruler", "--run", "none", "--images", "."), 2, "none is not a run"),
        (("--recipe", "none.json", "--images", "."), 2, "none.json"),
        (("--concept", "ruler", "--recipe", "a.json"), 2, "a recipe file says its concept"),
        (("--concept", "ruler", "--model", "a", "--run", "b"), 2, "two sources of recipes"),
        (("--concept", "ruler", "--head", "lable", "--images", "."), 2, "did you mean 'label'"),
        (("--concept", "patch", "--images", "."), 3, "n too small"),
    ],
)
def test_what_cannot_be_is_one_sentence(main, flags, code, message, tmp_path):
    done = main("suppress", *flags, "--json", cwd=tmp_path)
    error = done.json()["error"]
    assert done.rc == code and message in f"{error['message']} {error['hint']}"
    assert not list(tmp_path.iterdir())


def test_a_recipe_file_predicts_as_the_reference_does(cli, first, images, tmp_path):
    from dermaudit.concepts.inference.reference import Reference

    recipe = Reference.load("dermoscopy-small").file("recipes/ruler.recipe.json")
    shutil.copy(recipe, tmp_path / "mine.recipe.json")
    done = cli("suppress", "--recipe", "mine.recipe.json", "--images", images, cwd=tmp_path)
    assert done.rc == 0, done.stderr
    assert (tmp_path / "predictions.csv").read_bytes() == first[0].read_bytes()
    assert np.isfinite([float(row["p_matched:mel"]) for row in rows_of(first[0])]).all()
