"""Published tables: their columns are mapped, and a bad row is skipped with its reason."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import write_csv, write_rows
from hypothesis import given
from hypothesis import strategies as st

from dermaudit.data import Manifest
from dermaudit.data.layouts import detect, foreign_tables, read_layout
from dermaudit.data.layouts.csv_rows import read_rows
from dermaudit.data.layouts.make import parse_mask
from dermaudit.data.manifest.check import check_data
from dermaudit.data.manifest.convert import plan_conversion
from dermaudit.data.manifest.validate import check_table, complete
from dermaudit.errors import UserInputError


def loaded(path: Path, layout: str = "auto") -> Manifest:
    raw = read_layout(path, layout)
    check_table(raw)
    return Manifest(complete(raw), raw.root, path)


def reasons(path: Path, layout: str = "auto") -> list[tuple[str, int | None]]:
    return [(one.kind, one.line) for one in read_layout(path, layout).skipped]


# ---- Derm1M


def derm1m(**columns) -> dict:
    return {
        "filename": "edu/a.png",
        "caption": "A scaly plaque.</s>",
        "truncated_caption": "A plaque.",
        "source": "x",
        "source_type": "edu",
        "disease_label": "psoriasis",
        "hierarchical_disease_label": "inflammatory, non-infectious, Psoriasis, psoriasis",
        "skin_concept": "plaque, scale",
        "body_location": "arm",
        "symptoms": "No symptom information",
        "age": "No age information",
        "gender": "male",
        **columns,
    }


def test_derm1m_columns_and_sentinels(tmp_path, image_folder):
    root = image_folder("edu/a.png", "edu/b  2.png")
    file = write_csv(
        root / "Derm1M_v2_pretrain.csv",
        [
            derm1m(),
            derm1m(
                filename="edu/b  2.png",
                caption='Two\nlines, and "quotes".',
                disease_label="No definitive diagnosis",
                age="44",
                gender="No gender information",
                hierarchical_disease_label="no definitive diagnosis",
                skin_concept="No visual concepts",
            ),
        ],
    )
    assert detect(file) == "derm1m"
    manifest = loaded(file)
    assert manifest.column("image") == ["edu/a.png", "edu/b  2.png"]
    assert manifest.labels == ["psoriasis", None]
    assert manifest.column("ontology") == ["inflammatory > non-infectious > Psoriasis", None]
    assert manifest.column("caption") == ["A scaly plaque.", 'Two lines, and "quotes".']
    assert manifest.column("skin_concept") == ["plaque, scale", None]
    assert manifest.column("symptoms") == [None, None]
    assert manifest.column("age") == [None, 44] and manifest.column("gender") == ["male", None]
    assert all(path.is_file() for path in manifest.paths())


def test_derm1m_further_captions_of_an_image_are_kept(tmp_path):
    file = write_csv(
        tmp_path / "a.csv",
        [
            derm1m(),
            derm1m(caption="Red.", disease_label="other"),
            derm1m(),
            derm1m(filename="b.png"),
            derm1m(caption="Red."),
        ],
    )
    manifest = loaded(file)
    assert manifest.column("image") == ["edu/a.png", "b.png"]
    assert manifest.labels == ["psoriasis", "psoriasis"]
    assert [c and json.loads(c) for c in manifest.column("more_captions")] == [["Red."], None]


def test_derm1m_empty_captions_and_names_are_set_aside_with_their_line(tmp_path):
    file = write_csv(
        tmp_path / "a.csv",
        [
            derm1m(caption="of two\nlines"),
            derm1m(filename="b.png", caption=" "),
            derm1m(filename="", caption="x"),
            derm1m(filename="c.png", caption="No caption"),
            derm1m(filename="d.png", caption="</s>"),
            derm1m(filename="e.png"),
        ],
    )
    # The first row is two lines long.
    assert reasons(file) == [
        ("empty_caption", 4),
        ("blank_image", 5),
        ("empty_caption", 6),
        ("empty_caption", 7),
    ]
    raw = read_layout(file)
    assert (
        raw.describe(raw.skipped[0])
        == f"{file}, line 4: b.png: the caption is empty or a placeholder"
    )
    assert (raw.at(0), raw.at(1)) == ("line 2", "line 8")


def test_rows_another_encoding_is_reported_with_its_row(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"filename,caption,disease_label\na.png,caf\xe9 au lait,x\nb.png,red,y\n")
    raw = read_layout(file)
    assert raw.table.column("image").to_pylist() == ["b.png"]
    assert raw.describe(raw.skipped[0]) == (
        f"{file}, line 2: column 'caption' is not UTF-8 text (byte e9 at character 4)"
    )
    file.write_text("filename,caption,disease_label\na.png,x,y\n", encoding="utf-16")
    with pytest.raises(UserInputError, match="is UTF-16 text"):
        read_layout(file, "derm1m")


def test_rows_a_quote_that_never_ends_is_no_short_table(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('filename,caption,disease_label\na.png,red,x\nb.png,"open,y\nc.png,blue,z\n')
    with pytest.raises(UserInputError, match="line 3: a quote is opened here and never closed"):
        read_layout(file)


def test_rows_cells_too_few_and_stray_quotes(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('filename,caption,disease_label\na.png,red\nb.png,"x"y,z\n\nc.png,blue,z\n')
    assert reasons(file) == [("bad_row", 2), ("bad_row", 3)]
    assert read_layout(file).at(0) == "line 5"


def test_rows_ids_stay_text_and_numbers_become_numbers(tmp_path):
    file = write_csv(
        tmp_path / "a.csv",
        [derm1m(age="44", source="0012"), derm1m(filename="b.png", age="5.5", source="7")],
    )
    manifest = loaded(file)
    assert manifest.column("source") == ["0012", "7"] and manifest.column("age") == [44, 5.5]
    assert manifest.where("age > 40").n == 1


@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_characters="\x00")), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=5,
    )
)
def test_rows_equal_the_standard_reader(tmp_path_factory, cells):
    file = tmp_path_factory.mktemp("rows") / "a.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([["a,1", "b"], *cells])
    rows = read_rows(file)
    blank = {"", "NA", "N/A", "NaN", "nan", "NULL", "null"}
    expected = [[None if c.strip() in blank else c.strip() for c in row] for row in cells]
    assert [list(row) for row in zip(rows.get("a,1"), rows.get("b"), strict=True)] == expected


# ---- MAKE


def make(**columns) -> dict:
    parts = {f"subcaption_{k}": "" for k in range(1, 9)}
    return {
        "filename": "a.png",
        "caption": "A plaque. It is red.",
        "truncated_caption": "A plaque.",
        "visual_concept_caption": "shows plaque",
        "ontology_caption": "diagnosed as psoriasis",
        "sub_captions": "2",
        **parts,
        "subcaption_1": "A plaque.",
        "subcaption_2": "It is red.",
        "sub_caption_mask": "[1, 1, 0, 0, 0, 0, 0, 0]",
        "knowledge_masks": "[1, 1, 1]",
        "standardized_disease": "psoriasis",
        "ontology_final": "inflammatory, psoriasis",
        "age": "No age information",
        **columns,
    }


def test_make_masks_blank_the_views_in_the_order_of_the_code(tmp_path):
    file = write_csv(
        tmp_path / "m.csv",
        [
            make(),
            make(filename="b.png", knowledge_masks="[1, 0, 1]"),
            make(filename="c.png", knowledge_masks="[0,1,0]", caption="", sub_captions=""),
        ],
    )
    assert detect(file) == "make"
    manifest = loaded(file)
    assert manifest.column("caption") == ["A plaque. It is red."] * 2 + [None]
    assert manifest.column("ontology_caption") == [
        "diagnosed as psoriasis",
        None,
        "diagnosed as psoriasis",
    ]
    assert manifest.column("concept_caption") == ["shows plaque", "shows plaque", None]
    assert manifest.column("subcaption_2") == ["It is red."] * 3
    assert manifest.column("subcaption_3") == [None] * 3
    assert manifest.labels == ["psoriasis"] * 3 and manifest.column("age") == [None] * 3
    assert manifest.column("ontology") == ["inflammatory > psoriasis"] * 3
    assert not {"sub_caption_mask", "knowledge_masks"} & set(manifest.table.column_names)


@pytest.mark.parametrize(
    ("columns", "kind", "message"),
    [
        (
            {"sub_caption_mask": "__import__('os').getcwd()"},
            "bad_mask",
            "which is not a list of 0 and 1",
        ),
        ({"sub_caption_mask": "[1, 1, 0]"}, "bad_mask", "'sub_caption_mask' has 3 entries, 8 are"),
        ({"sub_caption_mask": ""}, "bad_mask", "column 'sub_caption_mask' is blank"),
        ({"knowledge_masks": "[1, 1, 2]"}, "bad_mask", "column 'knowledge_masks' says '[1, 1, 2]'"),
        ({"knowledge_masks": "[True, 1, 1]"}, "bad_mask", "not a list of 0 and 1"),
        (
            {"sub_captions": "3"},
            "count_disagrees",
            "sub_captions says 3, sub_caption_mask has 2 ones",
        ),
        ({"sub_captions": "9e99"}, "count_disagrees", "sub_captions says 9e99"),
        ({"subcaption_2": ""}, "mask_disagrees", "says 1 for 'subcaption_2', which is empty"),
        (
            {"subcaption_2": "", "subcaption_3": "It is red."},
            "mask_disagrees",
            "says 1 for 'subcaption_2'",
        ),
        ({"subcaption_3": "More."}, "mask_disagrees", "says 0 for 'subcaption_3', which is filled"),
        ({"ontology_caption": ""}, "mask_disagrees", "counts 'ontology_caption', which is empty"),
        ({"caption": ""}, "empty_caption", "counts 'caption', which is empty"),
        ({"filename": ""}, "blank_image", "column 'filename' is blank"),
        ({"filename": "good.png"}, "duplicate_image", "was there before, at line 2"),
    ],
)
def test_make_each_bad_row_is_reported_in_one_sentence(tmp_path, columns, kind, message):
    file = write_csv(tmp_path / "m.csv", [make(filename="good.png"), make(**columns)])
    raw = read_layout(file)
    assert raw.table.num_rows == 1
    [one] = raw.skipped
    assert one.kind == kind and one.line == 3 and message in one.reason and one.hint
    assert "\n" not in raw.describe(one)


def test_make_a_mask_is_never_run(tmp_path):
    trap = tmp_path / "ran"
    file = write_csv(
        tmp_path / "m.csv",
        [make(), make(filename="b.png", knowledge_masks=f"open({str(trap)!r}, 'w')")],
    )
    assert reasons(file) == [("bad_mask", 3)] and not trap.exists()


@given(st.lists(st.integers(0, 1), min_size=1, max_size=12))
def test_parse_mask_reads_what_python_writes(mask):
    assert parse_mask(str(mask), len(mask)) == mask
    assert parse_mask(json.dumps(mask, separators=(",", ":")), len(mask)) == mask


@given(st.text(max_size=30))
def test_parse_mask_reads_nothing_else(text):
    try:
        mask = parse_mask(text, 3)
    except ValueError:
        return
    assert json.loads(text) == mask and set(mask) <= {0, 1}


def test_make_through_the_commands(main, image_folder, tmp_path):
    root = image_folder("a.png", "b.png")
    file = write_csv(root / "train.csv", [make(), make(filename="b.png", sub_caption_mask="1,1")])
    checked = main("data", "check", file, "--json")
    found = [f for f in checked.json()["findings"] if f["kind"] == "bad_mask"]
    assert checked.rc == 0 and found[0]["line"] == 3 and found[0]["level"] == "skip"
    assert (checked.json()["n_rows"], checked.json()["n_usable"]) == (2, 1)
    out = tmp_path / "out"
    done = main("data", "convert", file, "--out", out, "--json")
    assert done.rc == 0 and done.json()["n_images"] == 1 and done.json()["n_skipped"] == 1
    assert done.json()["skipped"][0]["reason"].startswith("line 3: column 'sub_caption_mask' says")
    assert pq.read_table(out / "skipped.parquet").num_rows == 1
    assert Manifest.load(out).column("subcaption_1") == ["A plaque."]
    strict = main("data", "convert", file, "--out", tmp_path / "no", "--strict", "--json")
    assert strict.rc == 2 and "line 3" in strict.json()["error"]["message"]
    assert not (tmp_path / "no").exists()


def test_a_table_without_a_usable_row_reports_the_first_problem(tmp_path):
    file = write_csv(tmp_path / "m.csv", [make(knowledge_masks="x"), make(knowledge_masks="y")])
    with pytest.raises(
        UserInputError, match=r"none of its 2 rows can be used; the first: .*line 2"
    ):
        plan_conversion(file, "auto", tmp_path / "out", None)


# ---- zero-shot


def test_zeroshot_the_name_is_the_label(tmp_path, image_folder):
    root = image_folder("HAM/a.png", "HAM/b.png", name="images")
    file = write_rows(
        root.parent / "toy.csv",
        "image_path label diag",
        ("HAM/a.png", "4", "melanoma"),
        ("HAM/b.png", "5", "nevus"),
        ("HAM/c.png", "4", "nevus"),
        ("HAM/d.png", "mel", "nevus"),
    )
    assert detect(file) == "dermfm-zeroshot"
    manifest = loaded(file)
    assert manifest.labels == ["melanoma", "nevus"] and manifest.column("class_index") == ["4", "5"]
    assert manifest.root == root and all(path.is_file() for path in manifest.paths())
    assert reasons(file) == [("class_disagrees", 4), ("bad_value", 5)]
    assert "class 4 is called 'nevus' here and 'melanoma' at line 2" in (
        read_layout(file).skipped[0].reason
    )


@pytest.mark.parametrize("start", ["/", "/VL_Data/", "/mnt/hdd/derm/", "C:\\derm\\data\\"])
def test_absolute_paths_lose_the_folders_of_another_machine(tmp_path, image_folder, start):
    root = image_folder("images/edu/a, b.png", "images/edu/c.png", name="set")
    file = write_csv(
        root / "m.csv",
        [
            make(filename=f"{start}edu/a, b.png"),
            make(filename=f"{start}edu/c.png"),
            make(filename=f"{start}edu/gone.png"),
        ],
    )
    manifest = loaded(file)
    assert manifest.column("image") == ["edu/a, b.png", "edu/c.png", "edu/gone.png"]
    assert [path.is_file() for path in manifest.paths()] == [True, True, False]


def test_zeroshot_absolute_paths_below_the_table_are_taken(tmp_path, image_folder):
    root = image_folder("a.png")
    header = "image_path label diag"
    file = write_rows(root / "toy.csv", header, (str(root / "a.png"), "0", "nevus"))
    assert loaded(file).column("image") == ["a.png"]
    file = write_rows(root / "toy.csv", header, ("/else/gone.png", "0", "nevus"))
    with pytest.raises(UserInputError, match=r"line 2.*is an absolute path"):
        loaded(file)


# ---- concept meta


def test_concept_meta_images_are_matched_by_name(image_folder):
    root = image_folder("final_images/B.JPEG", "final_images/a.png", "final_images/c.x.webp")
    file = write_rows(
        root / "meta.csv",
        "ImageID Papule brown(hyperpigmentation) site label",
        ("c.x", "1", "", "arm", "1"),
        ("a.png", "0.0", "1", "", "0"),
        ("gone", "1", "1", "", "0"),
        ("b", "", "0", "leg", "1"),
        ("A.PNG", "1", "0", "", "1"),
    )
    assert detect(file) == "concept-meta" and detect(root) == "folder"
    manifest = loaded(root, "concept-meta")
    assert manifest.column("image") == [
        "final_images/c.x.webp",
        "final_images/a.png",
        "final_images/B.JPEG",
    ]
    truth = manifest.truth()
    assert set(truth) == {"papule", "brown(hyperpigmentation)"}
    np.testing.assert_array_equal(truth["papule"][1], [1, 0, np.nan])
    np.testing.assert_array_equal(truth["brown(hyperpigmentation)"][1], [np.nan, 1, 0])
    assert manifest.labels == ["1", "0", "1"] and manifest.column("site") == ["arm", None, "leg"]
    assert reasons(file) == [("no_image", 4), ("no_image", 6)]
    assert "belongs to line 3 already" in read_layout(file).skipped[1].reason


def test_concept_meta_two_images_of_one_name_and_no_folder(image_folder, tmp_path):
    root = image_folder("final_images/a.png", "final_images/A.jpg", "final_images/a.jpg")
    file = write_csv(root / "meta.csv", [{"ImageID": "a", "Papule": "1"}])
    assert "2 images have this name" in read_layout(file).skipped[0].reason
    (tmp_path / "bare").mkdir()
    file = write_csv(tmp_path / "bare" / "meta.csv", [{"ImageID": "a", "Papule": "1"}])
    with pytest.raises(UserInputError, match="holds no folder final_images"):
        read_layout(file)


def test_concept_meta_known_artifacts_are_artifacts(main, image_folder, tmp_path):
    root = image_folder(*(f"final_images/{k}.png" for k in range(4)))
    columns = {
        "Papule": "1010",
        "Ruler": "1001",
        "dark corners": "0011",
        "Patch": "0100",
        "ink": "10 0",
        "purple pen": "0100",
        "gel-bubble": "1   ",
    }
    file = write_csv(
        root / "meta.csv",
        [
            {"ImageID": str(k), **{name: cells[k].strip() for name, cells in columns.items()}}
            for k in range(4)
        ],
    )
    truth = loaded(file).truth()
    assert {word: kind for word, (kind, _) in truth.items()} == {
        "papule": "concept",
        **dict.fromkeys(["ruler", "dark_corner", "patch", "ink", "gel_bubble"], "artifact"),
    }
    np.testing.assert_array_equal(truth["ink"][1], [1, 1, np.nan, 0], "either of two columns")
    done = main("data", "convert", file, "--out", tmp_path / "out")
    assert (
        "'Ruler' as artifact:ruler" in done.stderr and "'purple pen' as artifact:ink" in done.stderr
    )
    # In SkinCon's words a patch is a lesion.
    file = write_csv(
        root / "meta.csv",
        [{"ImageID": str(k), "Papule": "1", "Patch": str(k % 2)} for k in range(4)],
    )
    assert loaded(file).truth()["patch"][0] == "concept"
    assert "taken for the kind of lesion" in read_layout(file).remarks[0]
    file = write_csv(
        root / "meta.csv", [{"ImageID": str(k), "artifact:patch": str(k % 2)} for k in range(4)]
    )
    assert loaded(file).truth()["patch"][0] == "artifact" and not read_layout(file).remarks


def test_concept_meta_a_typing_error_in_a_concept_column_is_reported(image_folder):
    names = [f"final_images/{i}.png" for i in range(40)]
    root = image_folder(*names, side=16)
    rows = [{"ImageID": str(i), "Papule": str(i % 2), "years": str(i)} for i in range(40)]
    rows[7]["Papule"] = "yes"
    write_csv(root / "meta.csv", rows)
    with pytest.raises(UserInputError, match="line 9: column 'concept:papule' says 'yes'"):
        loaded(root, "concept-meta")
    rows[7]["Papule"] = "1"
    write_csv(root / "meta.csv", rows)
    assert loaded(root, "concept-meta").column("years") == list(range(40))


# ---- Hugging Face


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_hf_metadata_file_name_and_text(image_folder, kind):
    root = image_folder("a.png", "sub/b.png")
    rows = [
        {"file_name": "a.png", "text": "a red papule", "split": "validation", "n": 3},
        {"file_name": "sub/b.png", "text": None, "split": "train", "n": 4},
    ]
    file = root / f"metadata.{kind}"
    if kind == "csv":
        write_csv(file, rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert detect(file) == "hf-metadata" and detect(root) == "folder"
    manifest = loaded(root, "hf-metadata")
    assert manifest.column("image") == ["a.png", "sub/b.png"]
    assert manifest.column("caption") == ["a red papule", None] and manifest.column("n") == [3, 4]
    assert set(manifest.splits) <= {"train", "val", "test"}, "other words are no split of ours"


def test_hf_metadata_a_folder_without_it(image_folder):
    with pytest.raises(UserInputError, match=r"holds no metadata.jsonl"):
        read_layout(image_folder("a.png"), "hf-metadata")
    (root := image_folder("a.png"))
    (root / "metadata.jsonl").write_text('{"name": "a.png"}\n')
    with pytest.raises(UserInputError, match="has no column 'file_name'"):
        read_layout(root, "hf-metadata")


# ---- ISIC


def one_hot(image: str, code: str | None) -> dict:
    return {"image": image, **{c: f"{float(c == code)}" for c in ("MEL", "NV", "BCC", "UNK")}}


def test_isic_one_hot_is_joined_with_the_metadata_in_the_folder(image_folder):
    root = image_folder("Input/ISIC_1.JPG", *(f"Input/ISIC_{i}.jpg" for i in range(2, 6)))
    both = one_hot("ISIC_4", "MEL") | {"NV": "1.0"}
    file = write_csv(
        root / "GroundTruth.csv",
        [
            one_hot("ISIC_2", "MEL"),
            one_hot("ISIC_1", "NV"),
            one_hot("ISIC_3", "UNK"),
            both,
            one_hot("ISIC_5", None),
            one_hot("ISIC_9", "NV"),
        ],
    )
    write_rows(
        root / "Metadata.csv",
        "image age_approx lesion_id",
        ("ISIC_1", "55", "L1"),
        ("ISIC_2", "", ""),
        ("ISIC_3", "40", "L1"),
    )
    assert detect(file) == "isic"
    manifest = loaded(file)
    assert manifest.column("image") == ["Input/ISIC_2.jpg", "Input/ISIC_1.JPG", "Input/ISIC_3.jpg"]
    assert manifest.labels == ["mel", "nv", None] and manifest.groups == ["ISIC_2", "L1", "L1"]
    assert manifest.column("age_approx") == [None, 55, 40]
    assert reasons(file) == [("not_one_hot", 5), ("not_one_hot", 6), ("no_image", 7)]
    assert "2 diagnoses (MEL, NV)" in read_layout(file).skipped[0].reason


def test_isic_id_and_diagnosis_with_patients(image_folder):
    root = image_folder("train/ISIC_1.jpg", "train/ISIC_2.jpg")
    file = write_rows(
        root / "train.csv",
        "image_name patient_id lesion_id diagnosis",
        ("ISIC_1", "P1", "L1", "unknown"),
        ("ISIC_2", "", "L2", "nevus"),
    )
    manifest = loaded(file)
    assert manifest.labels == [None, "nevus"] and manifest.groups == ["P1", "L2"]


def test_isic_the_archive_gives_the_finest_diagnosis_and_the_licence(main, image_folder, tmp_path):
    root = image_folder("ISIC_1.jpg", "ISIC_2.jpg", "ISIC_3.jpg")
    file = write_rows(
        root / "metadata.csv",
        "isic_id copyright_license diagnosis_1 diagnosis_2 diagnosis_3",
        ("ISIC_1", "CC-0", "Benign", "Benign proliferations", "Nevus"),
        ("ISIC_2", "CC-BY", "Malignant", "Malignant proliferations", ""),
        ("ISIC_3", "CC-0", "", "", ""),
    )
    manifest = loaded(file)
    assert manifest.labels == ["Nevus", "Malignant proliferations", None]
    assert manifest.column("licence") == ["CC-0", "CC-BY", "CC-0"]
    assert manifest.column("diagnosis_1") == ["Benign", "Malignant", None]
    done = main("data", "convert", file, "--out", tmp_path / "out")
    assert "column 'diagnosis_3' (1 rows), 'diagnosis_2' (1 rows)" in done.stderr
    assert json.loads((tmp_path / "out" / "data.json").read_text())["licence"] == "CC-0, CC-BY"


def test_columns_that_are_missing_are_named_all_and_once(tmp_path):
    (tmp_path / "t.csv").write_text("filename,subcaption_1\na.png,x\n")
    with pytest.raises(UserInputError) as caught:
        read_layout(tmp_path / "t.csv", "make")
    assert (
        "has no columns 'caption', 'knowledge_masks', 'sub_caption_mask', 'ontology_caption', "
        "'visual_concept_caption', which the layout 'make' needs"
    ) in caught.value.message
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        UserInputError, match="image_id, image_name and isic_id serve too"
    ) as caught:
        read_layout(tmp_path / "t.csv", "isic")
    assert "and no 'diagnosis'" in caught.value.message
    with pytest.raises(UserInputError) as caught:
        read_layout(tmp_path / "t.csv", "help")
    assert "make: filename, caption" in caught.value.hint


# ---- which layout


def test_detection_a_native_table_with_foreign_columns_stays_native(image_folder):
    root = image_folder("a.png")
    (root / "isic.csv").write_text("image,MEL,NV,diagnosis\na.png,1,0,mel\n")
    (root / "pairs.csv").write_text("image,filename,caption,disease_label\na.png,a,b,c\n")
    (root / "rows.jsonl").write_text('{"image": "a.png", "file_name": "a.png"}\n')
    for name in ("isic.csv", "rows.jsonl"):
        assert detect(root / name) == "native"
        assert Manifest.load(root / name).n == 1
    assert detect(root / "pairs.csv") == "native"
    assert detect(root) == "folder"


def test_a_folder_with_one_such_table_is_read_by_it(main, image_folder, tmp_path):
    root = image_folder("final_images/a.png")
    file = write_csv(root / "meta.csv", [{"ImageID": "a", "Papule": "1"}])
    assert [name for name, _ in foreign_tables(root)] == ["concept-meta"]
    done = main("data", "convert", root, "--out", tmp_path / "out", "--json")
    assert done.rc == 0 and f"{file} was read, in the layout 'concept-meta'" in done.stderr
    assert (
        done.json()["layout"] == "concept-meta" and done.json()["truth"]["papule"]["present"] == 1
    )
    used = main("data", "check", root, "--json")
    assert used.rc == 0 and used.json()["layout"] == "concept-meta"
    plain = main("data", "check", root, "--layout", "folder", "--json")
    assert plain.rc == 0 and plain.json()["layout"] == "folder"


def test_a_folder_with_a_table_of_other_images_stays_a_folder_with_a_remark(
    main, image_folder, tmp_path
):
    root = image_folder("mel/a.png")
    file = write_csv(root / "derm1m.csv", [derm1m(filename="else/x.png")])
    done = main("data", "convert", root, "--out", tmp_path / "out", "--json")
    assert done.rc == 0 and done.json()["labels"] == {"mel": 1}
    assert f"{file} was not read: it looks like the layout 'derm1m'" in done.stderr


def test_a_folder_with_several_such_tables_is_refused(main, image_folder, tmp_path):
    root = image_folder("edu/a.png")
    write_csv(root / "a.csv", [derm1m()])
    write_csv(root / "b.csv", [make(filename="edu/a.png")])
    done = main("data", "convert", root, "--out", tmp_path / "out", "--json")
    error = done.json()["error"]
    assert done.rc == 2 and "a.csv (derm1m), b.csv (make)" in error["message"]
    assert "--layout derm1m" in error["hint"] and "--layout folder" in error["hint"]
    assert main("data", "convert", root / "b.csv", "--out", tmp_path / "out").rc == 0


def test_a_recognised_table_that_cannot_be_read_is_not_dropped(image_folder):
    root = image_folder("mel/a.png")
    (root / "t.csv").write_text('filename,caption,disease_label\nmel/a.png,"open,x\n')
    with pytest.raises(UserInputError, match="never closed") as caught:
        read_layout(root)
    assert "--layout folder" in caught.value.hint


def test_a_foreign_table_must_be_converted_first(tmp_path):
    file = write_csv(tmp_path / "train.csv", [make()])
    with pytest.raises(UserInputError, match="layout 'make', which must be converted first"):
        Manifest.load(file)
    with pytest.raises(UserInputError, match="must be converted first"):
        Manifest.load(tmp_path)


def test_a_folder_with_a_foreign_table_must_be_converted_first(image_folder):
    root = image_folder("edu/a.png")
    write_csv(root / "train.csv", [make(filename="edu/a.png")])
    with pytest.raises(UserInputError, match=r"holds train.csv in the layout 'make'") as caught:
        Manifest.load(root)
    assert "data convert" in caught.value.hint


@pytest.mark.parametrize("layout", ["derm1m", "make", "dermfm-zeroshot", "concept-meta", "isic"])
def test_each_layout_reports_the_missing_column_or_table(tmp_path, layout):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserInputError, match="has no column"):
        read_layout(tmp_path / "t.csv", layout)
    with pytest.raises(UserInputError, match=f"holds no table in the layout '{layout}'"):
        read_layout(tmp_path, layout)
    (tmp_path / "e.csv").write_text("")
    with pytest.raises(UserInputError, match=r"e.csv is empty"):
        read_layout(tmp_path / "e.csv", layout)


def test_two_tables_in_a_folder_one_must_be_named(tmp_path):
    for name in ("pretrain.csv", "validation.csv"):
        write_csv(tmp_path / name, [derm1m()])
    with pytest.raises(
        UserInputError, match=r"holds 2 tables in the layout 'derm1m': pretrain.csv"
    ):
        read_layout(tmp_path, "derm1m")


def test_an_empty_table_has_no_rows(tmp_path, main):
    (tmp_path / "t.csv").write_text("filename,caption,disease_label\n")
    done = main("data", "convert", tmp_path / "t.csv", "--out", tmp_path / "o", "--json")
    assert done.rc == 2 and "t.csv has no rows" in done.json()["error"]["message"]
    checked = check_data(tmp_path / "t.csv")
    assert checked["counts"] == {"empty": 1}
