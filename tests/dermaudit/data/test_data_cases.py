"""Inputs that failed in practice: derived files among images, one class under several spellings."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

DERIVED = [
    "ISIC_1_segmentation.png",
    "ISIC_1_superpixels.png",
    "ISIC_1_attribute_pigment_network.png",
    "ISIC_2_mask.png",
    "ISIC_2-thumb.jpg",
]


@pytest.fixture
def folder(image_folder):
    return image_folder("ISIC_1.jpg", "ISIC_2.jpg", "ISIC_12.jpg", *DERIVED)


def test_derived_files_are_left_out_counted_and_listed(main, folder, tmp_path):
    done = main("data", "convert", folder, "--out", tmp_path / "out", "--json")
    assert done.rc == 0, done.stderr
    assert done.json()["n_skipped"] == len(DERIVED)
    images = pq.read_table(tmp_path / "out" / "manifest.parquet")["image_id"].to_pylist()
    assert len(images) == 3
    skipped = pq.read_table(tmp_path / "out" / "skipped.parquet").to_pylist()
    assert {row["image"] for row in skipped} == set(DERIVED)
    assert all("was made from ISIC_" in row["reason"] for row in skipped)


def test_derived_files_are_taken_on_request(main, folder, tmp_path):
    flags = ("--layout", "folder-all", "--out", tmp_path / "out", "--json")
    done = main("data", "convert", folder, *flags)
    assert done.rc == 0 and done.json()["n_skipped"] == 0
    assert pq.read_table(tmp_path / "out" / "manifest.parquet").num_rows == 3 + len(DERIVED)


def test_a_folder_that_is_used_directly_reports_its_derived_files(folder, capsys):
    from dermaudit.data import Manifest

    assert Manifest.load(folder).n == 3
    assert f"{len(DERIVED)} files are left out" in capsys.readouterr().err


def test_a_mask_without_its_image_and_a_similar_name_stay(main, image_folder, tmp_path):
    folder = image_folder("a_mask.png", "nevus.png", "nevus2.png", "nevus_left.png")
    done = main("data", "convert", folder, "--out", tmp_path / "out", "--json")
    assert done.rc == 0 and done.json()["n_skipped"] == 0


@pytest.fixture
def spelled(image_folder):
    folder = image_folder(*[f"{i}.png" for i in range(6)])
    labels = ["nv", "nv ", "NV", "mel", "mel", "nv"]
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
    (folder / "table.csv").write_text("image,label\n" + rows)
    return folder / "table.csv"


def test_spellings_of_one_class_are_reported_with_counts_and_the_fix(main, spelled, tmp_path):
    for argv in (["check", spelled], ["convert", spelled, "--out", tmp_path / "out"]):
        done = main("data", *argv)
        assert done.rc == 0
        assert "'nv' (3 images), 'NV' (1 images) are different labels" in done.stderr
        assert "--merge-labels 'NV=nv'" in done.stderr


def test_labels_are_merged_on_request(main, spelled, tmp_path):
    out = tmp_path / "out"
    done = main("data", "convert", spelled, "--out", out, "--merge-labels", "NV=nv", "--json")
    assert done.rc == 0 and "different labels" not in done.stderr
    assert set(pq.read_table(out / "manifest.parquet")["label"].to_pylist()) == {"nv", "mel"}
    checked = main("data", "check", spelled, "--merge-labels", "NV=nv", "--json")
    assert "label_spelling" not in json.dumps(checked.json()["counts"])


@pytest.mark.parametrize(
    ("merge", "message"), [("NV", "not of the form old=new"), ("xx=nv", "xx"), ("NV=", "old=new")]
)
def test_a_merge_that_cannot_be_done_is_refused(main, spelled, tmp_path, merge, message):
    done = main("data", "convert", spelled, "--out", tmp_path / "out", "--merge-labels", merge)
    assert done.rc == 2 and message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv", [["convert"], ["check"]])
def test_a_small_set_has_every_split_and_a_warning(main, image_folder, tmp_path, argv):
    """Ten patients with three images each, without a column `split`."""
    folder = image_folder(*[f"{i}.png" for i in range(30)])
    rows = "".join(f"{i}.png,P{i // 3}\n" for i in range(30))
    (folder / "table.csv").write_text("image,group\n" + rows)
    out = tmp_path / "out"
    done = main(
        "data", *argv, folder / "table.csv", *(["--out", out] if argv == ["convert"] else [])
    )
    assert done.rc == 0
    assert "warning: too few images (21 in train, 3 in val, 6 in test)" in done.stderr
    assert "a column 'split'" in done.stderr
    if argv == ["convert"]:
        table = pq.read_table(out / "manifest.parquet").to_pydict()
        split_of_group = dict(zip(table["group"], table["split"], strict=True))
        assert sorted(split_of_group.values()) == ["test"] * 2 + ["train"] * 7 + ["val"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("case", "table", "n"),
    [("01-pad-ufes-20", "metadata.csv", 30), ("02-ddi", "ddi_metadata.csv", 24)],
)
def test_public_tables_are_converted_as_they_are_downloaded(
    main, data_dir, tmp_path, case, table, n
):
    source = data_dir / "cases" / case / table
    done = main("data", "convert", source, "--out", tmp_path / "out", "--json")
    assert done.rc == 0, done.stderr
    assert (done.json()["n_images"], done.json()["n_skipped"]) == (n, 0)
    columns = pq.read_table(tmp_path / "out" / "manifest.parquet").column_names
    assert {"label", "skin_tone", "group"} <= set(columns)


@pytest.mark.data
def test_the_real_cases(main, data_dir, tmp_path):
    masks = data_dir / "cases" / "03-masks-beside-images" / "data"
    done = main("data", "convert", masks, "--out", tmp_path / "masks", "--json")
    assert done.rc == 0 and done.json()["n_skipped"] == 20
    table = data_dir / "cases" / "04-label-spelling" / "table.csv"
    done = main("data", "check", table)
    assert "are different labels" in done.stderr


@pytest.mark.parametrize("header", ["age,photo", "age,img_id", "image_age,photo"])
def test_the_hint_for_a_missing_column_names_a_column_of_files(
    main, image_folder, tmp_path, header
):
    folder = image_folder("a.png", "b.png")
    (folder / "t.csv").write_text(f"{header}\n50,a.png\n61,b.png\n")
    done = main("data", "check", folder / "t.csv", "--layout", "native", "--json")
    hints = [f["hint"] for f in done.json()["error"]["check"]["findings"]]
    assert f"rename the column '{header.split(',')[1]}' to 'image'" in hints


@pytest.mark.parametrize("name", ["../../evil", "a/b", ".hidden"])
def test_a_concept_whose_name_is_a_path_is_refused(main, image_folder, tmp_path, name):
    folder = image_folder("a.png")
    (folder / "t.csv").write_text(f"image,artifact:{name}\na.png,1\n")
    done = main("data", "convert", folder / "t.csv", "--out", tmp_path / "out")
    assert done.rc == 2 and "names a concept with a slash or a leading dot" in done.stderr
