"""Layouts: what becomes of the columns and folders that people have."""

from __future__ import annotations

import numpy as np
import pytest
from data_files import write_csv

from dermaudit.data import Manifest
from dermaudit.data.layouts import LAYOUTS, dermoscopy, detect, read_layout
from dermaudit.data.manifest.validate import complete
from dermaudit.errors import UserInputError

# ---- folder


def test_class_subfolders_are_labels(image_folder):
    root = image_folder("mel/b.jpg", "mel/a.jpg", "nv/deep/c.png", "loose.png")
    manifest = Manifest.load(root)
    assert manifest.column("image") == ["loose.png", "mel/a.jpg", "mel/b.jpg", "nv/deep/c.png"]
    assert manifest.labels == [None, "mel", "mel", "nv"]
    assert manifest.groups == manifest.ids == manifest.column("image")


def test_a_flat_folder_has_no_labels(image_folder):
    manifest = Manifest.load(image_folder("b.JPG", "a.webp"))
    assert manifest.column("image") == ["a.webp", "b.JPG"]
    assert "label" not in manifest.table.column_names and manifest.labels == [None, None]


def test_split_folders_are_splits(image_folder):
    root = image_folder("train/mel/a.png", "Test/nv/b.png", "valid/c.png")
    manifest = Manifest.load(root)
    assert dict(zip(manifest.column("image"), manifest.splits, strict=True)) == {
        "Test/nv/b.png": "test",
        "train/mel/a.png": "train",
        "valid/c.png": "val",
    }
    assert manifest.labels == ["nv", "mel", None]


def test_a_class_called_test_is_no_split_when_other_classes_are_there(image_folder):
    assert Manifest.load(image_folder("test/a.png", "mel/b.png")).labels == ["mel", "test"]


def test_hidden_files_and_other_files_are_left_out(image_folder):
    root = image_folder("a.png", ".b.png", ".cache/c.png")
    (root / "notes.txt").write_text("")
    assert Manifest.load(root).column("image") == ["a.png"]


# ---- dermoscopy


def row(**columns) -> dict:
    """One row of metadata.csv: annotated, everything unknown unless given."""
    names = [*dermoscopy.ARTIFACTS, *(f"attr_{word}" for word in dermoscopy.CONCEPTS)]
    return {
        "image_id": "I1",
        "split": "dev",
        "dx": "mel",
        "group_id": "G1",
        "licence": "CC0-1.0",
        "localization": "",
        "has_artifact_annotation": "1",
        "inferred_ruler": "0.9",
        "dataset": "ISIC",
        **dict.fromkeys(names, ""),
        **columns,
    }


def convert(tmp_path, *rows: dict) -> Manifest:
    folder = tmp_path / "source"
    folder.mkdir()
    write_csv(folder / "metadata.csv", rows)
    raw = read_layout(folder, "dermoscopy")
    return Manifest(complete(raw), raw.root, folder)


def test_artifacts_are_known_only_where_people_judged_them(tmp_path):
    manifest = convert(
        tmp_path,
        row(image_id="I1", ruler="1", ink="0", patches="1"),
        row(image_id="I2", ruler="1", has_artifact_annotation="0"),
        row(image_id="I3", ruler="0", gel_border=""),
    )
    truth = manifest.truth()
    np.testing.assert_array_equal(truth["ruler"][1], [1, np.nan, 0])
    np.testing.assert_array_equal(truth["ink"][1], [0, np.nan, np.nan])
    np.testing.assert_array_equal(truth["patch"][1], [1, np.nan, np.nan])
    assert np.isnan(truth["gel_border"][1]).all()
    artifacts = {name for name, (kind, _) in truth.items() if kind == "artifact"}
    assert artifacts == {"dark_corner", "hair", "gel_border", "gel_bubble", "ruler", "ink", "patch"}
    assert "inferred_ruler" in manifest.table.column_names, "kept, but as no truth"
    assert manifest.column("dataset") == ["ISIC"] * 3


def test_attributes_label_and_group(tmp_path):
    manifest = convert(
        tmp_path,
        row(image_id="I1", attr_streaks="1", attr_globules="0", group_id="G1"),
        row(image_id="I2", dx="nv", group_id="G1"),
    )
    truth = manifest.truth()
    np.testing.assert_array_equal(truth["streaks"][1], [1, np.nan])
    np.testing.assert_array_equal(truth["globules"][1], [0, np.nan])
    assert manifest.labels == ["mel", "nv"] and manifest.groups == ["G1", "G1"]
    assert manifest.column("image") == ["images/I1.jpg", "images/I2.jpg"]
    assert len(set(manifest.splits)) == 1 and set(manifest.splits) <= {"train", "val", "test"}


def test_captions_mention_known_signs_only(tmp_path):
    manifest = convert(
        tmp_path,
        row(image_id="I1", localization="back", ruler="1", hair="1", ink="0", attr_globules="1"),
        row(image_id="I2", dx="nv"),
    )
    captions = manifest.column("caption")
    assert captions[0] == (
        "dermoscopic image of melanoma on the back, globules, hair over the lesion, "
        "a ruler is visible"
    )
    assert captions[1] == "dermoscopic image of a melanocytic nevus"
    assert [manifest.column(f"subcaption_{k}")[0] for k in range(1, 6)] == [
        "dermoscopic image of melanoma",
        "a lesion on the back",
        "with globules",
        "hair over the lesion, a ruler is visible",
        "no ink marks",
    ]
    assert [manifest.column(f"subcaption_{k}")[1] for k in range(1, 6)] == [captions[1]] + 4 * [
        None
    ]


def test_an_id_that_leaves_the_folder_is_refused(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    write_csv(folder / "metadata.csv", [row(image_id="../../secret")])
    from dermaudit.data.manifest.convert import plan_conversion

    with pytest.raises(UserInputError, match=r"images/../../secret.jpg' is a path outside"):
        plan_conversion(folder, "auto", tmp_path / "out", None)


def test_a_table_without_the_columns_is_named(tmp_path):
    (tmp_path / "metadata.csv").write_text("image_id,dx\nI1,mel\n")
    with pytest.raises(UserInputError, match=r"metadata.csv has no column 'attr_globules'"):
        read_layout(tmp_path, "dermoscopy")


# ---- which layout


def test_detection(tmp_path, image_folder):
    convert(tmp_path, row())
    assert detect(tmp_path / "source") == "dermoscopy"
    assert detect(tmp_path / "source" / "metadata.csv") == "dermoscopy"
    images = image_folder("a.png")
    assert detect(images) == "folder"
    (images / "manifest.csv").write_text("image\na.png\n")
    assert detect(images) == detect(images / "manifest.csv") == "native"


def test_a_source_layout_is_not_audited_as_a_folder_of_classes(tmp_path):
    """Its masks would be taken for images."""
    convert(tmp_path, row())
    with pytest.raises(UserInputError, match="must be converted first") as caught:
        Manifest.load(tmp_path / "source")
    assert "dermaudit data convert" in caught.value.hint
    assert "--layout dermoscopy" in caught.value.hint


def test_an_unknown_layout_offers_the_nearest(tmp_path):
    with pytest.raises(UserInputError, match="unknown layout 'dermascopy': did you mean 'dermos"):
        read_layout(tmp_path, "dermascopy")
    assert list(LAYOUTS)[:3] == ["native", "dermoscopy", "folder"]
