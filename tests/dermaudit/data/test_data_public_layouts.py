"""Layouts of public dermatology tables: small tables with the published columns."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from dermaudit.data import layouts as layouts_package
from dermaudit.data.layouts import detect, read_layout
from dermaudit.data.layouts.registry import layouts
from dermaudit.data.manifest.validate import check_table, complete


def read(folder: Path, table: str, text: str, *images: str) -> tuple[str, dict[str, list]]:
    """Write a table and its images; return the detected layout and the columns of the manifest."""
    folder.mkdir(exist_ok=True)
    (folder / table).write_text(text)
    for name in images:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    raw = read_layout(folder / table)
    check_table(raw)
    assert not raw.skipped
    return detect(folder / table), complete(raw).to_pydict()


def test_pad_ufes_20_finds_images_in_every_part(tmp_path):
    layout, got = read(
        tmp_path / "pad",
        "metadata.csv",
        "patient_id,lesion_id,smoke,age,fitspatrick,region,gender,diagnostic,img_id\n"
        "PAT_1,1,,55,2.0,ARM,FEMALE,BCC,PAT_1_1_1.png\nPAT_1,2,,55,,NOSE,,NEV,PAT_1_2_2.png\n",
        "images/imgs_part_1/PAT_1_1_1.png",
        "images/imgs_part_3/PAT_1_2_2.png",
    )
    assert layout == "pad-ufes-20" and got["label"] == ["BCC", "NEV"]
    assert got["group"] == ["PAT_1"] * 2 and got["skin_tone"] == ["2.0", None]
    assert got["site"] == ["ARM", "NOSE"] and got["age"] == [55, 55]
    assert got["sex"] == ["FEMALE", None]


def test_ddi_has_two_labels_and_skin_tone(tmp_path):
    layout, got = read(
        tmp_path / "ddi",
        "ddi_metadata.csv",
        ",DDI_ID,DDI_file,skin_tone,malignant,disease\n0,1,000001.png,12,True,melanoma\n"
        "1,2,000002.png,56,False,nevus\n",
        "images/000001.png",
        "images/000002.png",
    )
    assert layout == "ddi" and got["label"] == ["melanoma", "nevus"]
    assert got["malignant"] == ["malignant", "benign"] and got["skin_tone"] == ["12", "56"]


def test_fitzpatrick17k_takes_minus_one_as_unknown(tmp_path):
    layout, got = read(
        tmp_path / "fitz",
        "fitzpatrick17k.csv",
        "md5hash,fitzpatrick_scale,fitzpatrick_centaur,label,nine_partition_label,"
        "three_partition_label,qc,url\nab12,3,3,psoriasis,inflammatory,non-neoplastic,,http://x\n"
        "cd34,-1,2,melanoma,malignant melanoma,malignant,,http://y\n",
        "finalfitz17k/ab12.jpg",
        "finalfitz17k/cd34.jpg",
    )
    assert layout == "fitzpatrick17k" and got["skin_tone"] == ["3", None]
    assert got["label"] == ["psoriasis", "melanoma"] and got["malignant"] == ["benign", "malignant"]


def test_bcn20000_groups_by_lesion(tmp_path):
    layout, got = read(
        tmp_path / "bcn",
        "bcn_20k_train.csv",
        "bcn_filename,age_approx,anatom_site_general,diagnosis,lesion_id,capture_date,sex,split\n"
        "BCN_0000000001.jpg,55.0,anterior torso,MEL,BCN_0003884,2012-05-16,male,train\n"
        "BCN_0000000003.jpg,,,NV,BCN_0000019,2015-07-09,female,train\n"
        "BCN_0000000004.jpg,60.0,head/neck,SCC,BCN_0003499,2016-06-23,male,train\n",
        *(f"BCN_20k_train/bcn_20k_train/BCN_000000000{i}.jpg" for i in (1, 3, 4)),
    )
    assert layout == "bcn20000" and got["label"] == ["MEL", "NV", "SCC"]
    assert got["group"] == ["BCN_0003884", "BCN_0000019", "BCN_0003499"]
    assert got["site"] == ["anterior torso", None, "head/neck"] and got["age"] == [55, None, 60]
    assert set(got["split"]) == {"train", "val", "test"}, "'train' in every row is not a split"


def test_derm7pt_attributes_become_concepts(tmp_path):
    layout, got = read(
        tmp_path / "derm7pt",
        "meta.csv",
        "case_num,diagnosis,pigment_network,streaks,blue_whitish_veil,location,sex,clinic,derm\n"
        "1,melanoma,atypical,absent,present,back,male,A/a1.jpg,A/a2.jpg\n"
        "2,nevus,typical,irregular,absent,back,male,B/b1.jpg,B/b2.jpg\n",
        "images/A/a2.jpg",
        "images/B/b2.jpg",
        "images/A/a1.jpg",
    )
    assert layout == "derm7pt" and got["image"] == ["images/A/a2.jpg", "images/B/b2.jpg"]
    assert got["concept:pigment_network"] == [1, 1]
    assert got["concept:atypical_pigment_network"] == [1, 0]
    assert got["concept:streaks"] == [0, 1] and got["concept:blue_whitish_veil"] == [1, 0]
    assert got["group"] == ["1", "2"]


def test_derm7pt_release_folder_keeps_its_published_split(tmp_path):
    meta = tmp_path / "release_v0" / "meta"
    meta.mkdir(parents=True)
    for name, indexes in (("train", "0\n3"), ("valid", "1"), ("test", "2")):
        (meta / f"{name}_indexes.csv").write_text(f"indexes\n{indexes}\n")
    rows = [f"{i},nevus,absent,NEL/C{i}.jpg,NEL/D{i}.jpg\n" for i in range(1, 5)]
    layout, got = read(
        meta,
        "meta.csv",
        "case_num,diagnosis,pigment_network,clinic,derm\n" + "".join(rows),
        *(f"../images/NEL/{letter}{i}.jpg" for i in range(1, 5) for letter in "CD"),
    )
    assert layout == "derm7pt" and got["split"] == ["train", "val", "test", "train"]
    assert got["image"] == [f"images/NEL/D{i}.jpg" for i in range(1, 5)]
    by_folder = read_layout(tmp_path / "release_v0")
    assert by_folder.layout == "derm7pt" and complete(by_folder).to_pydict() == got
    (meta / "test_indexes.csv").write_text("indexes\n")
    assert "split" not in read_layout(meta / "meta.csv").table.column_names


def test_scin_has_one_row_per_photograph_and_the_heaviest_label(tmp_path):
    (tmp_path / "scin_labels.csv").write_text(
        "case_id,weighted_skin_condition_label\n7,\"{'Acne': 0.3, 'Eczema': 0.7}\"\n8,{}\n"
    )
    layout, got = read(
        tmp_path,
        "scin_cases.csv",
        "case_id,age_group,sex_at_birth,fitzpatrick_skin_type,textures_flat,body_parts_arm,"
        "image_1_path,image_2_path,image_3_path\n"
        "7,AGE_30_TO_39,FEMALE,FST4,YES,YES,dataset/images/1.png,dataset/images/2.png,\n"
        "8,AGE_UNKNOWN,MALE,NONE_SELECTED,,,dataset/images/3.png,,\n",
        "dataset/images/1.png",
        "dataset/images/2.png",
        "dataset/images/3.png",
    )
    assert layout == "scin" and got["label"] == ["Eczema", "Eczema", None]
    assert got["group"] == ["7", "7", "8"] and got["skin_tone"] == ["FST4", "FST4", None]
    assert got["site"] == ["arm", "arm", None] and got["concept:flat"] == [1, 1, None]


def test_skincon_concepts_of_rejected_images_are_unknown(tmp_path):
    layout, got = read(
        tmp_path / "skincon",
        "annotations_ddi.csv",
        ",ImageID,Vesicle,Dome-shaped,Brown(Hyperpigmentation),Do not consider this image\n"
        "0,000001.png,1,0,1,0\n1,000002.png,0,0,1,1\n",
        "images/000001.png",
        "images/000002.png",
    )
    assert layout == "skincon" and got["concept:vesicle"] == [1, None]
    assert got["concept:dome_shaped"] == [0, None]
    assert got["concept:brown_hyperpigmentation"] == [1, None]


@pytest.mark.data
@pytest.mark.parametrize(
    ("case", "layout", "n"), [("01-pad-ufes-20", "pad-ufes-20", 30), ("02-ddi", "ddi", 24)]
)
def test_the_case_folders_are_read_whole(case, layout, n):
    raw = read_layout(Path(os.environ["DERMAUDIT_DATA"]) / "cases" / case)
    check_table(raw)
    assert raw.layout == layout and raw.table.num_rows == n and not raw.skipped


def test_a_new_layout_needs_one_file(tmp_path, monkeypatch):
    """The example of docs/snippets/extending_layout.md, in a folder of layouts."""
    page = Path(__file__).parents[3] / "docs" / "snippets" / "extending_layout.md"
    code = page.read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "my_clinic.py").write_text(code)
    monkeypatch.setattr(layouts_package, "__path__", [*layouts_package.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "dermaudit.data.layouts.my_clinic", raising=False)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "P1.png")
    (tmp_path / "list.csv").write_text("photo,finding,person\nP1,nevus,A\n")
    raw = layouts()["my-clinic"].read(tmp_path / "list.csv")
    assert raw.table.column("image").to_pylist() == ["photos/P1.png"]
    assert raw.table.column("label").to_pylist() == ["nevus"]
