"""The manifest: the same table from every format, and every fault named with file, line and fix."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermaudit.data import Manifest
from dermaudit.data.layouts import read_layout
from dermaudit.data.manifest.validate import truth_value
from dermaudit.data.splits import split_of
from dermaudit.errors import UserInputError

HEADER = "image,image_id,label,group,artifact:ruler,concept:globules,age"
ROWS = ["a.jpg,001,mel,G1,1,0.25,50", "b.jpg,002,nv,G1,0,,60", "c.jpg,003,,G2,,1,"]


def write(folder, *rows: str, header: str = HEADER, name: str = "manifest.csv"):
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def records() -> list[dict]:
    names = HEADER.split(",")
    return [{n: v for n, v in zip(names, row.split(","), strict=True) if v} for row in ROWS]


@pytest.fixture(params=["csv", "jsonl", "parquet", "semicolon", "bom", "quoted"])
def any_format(request, tmp_path):
    """A data folder with the same three rows, in each form that people send."""
    kind = request.param
    if kind == "jsonl":
        lines = [json.dumps(row) for row in records()]
        (tmp_path / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    elif kind == "parquet":
        columns = {name: [row.get(name) for row in records()] for name in HEADER.split(",")}
        columns["artifact:ruler"] = pa.array([1, 0, None], pa.int8())
        columns["concept:globules"] = [0.25, None, 1.0]
        columns["age"] = [50, 60, None]
        pq.write_table(pa.table(columns), tmp_path / "manifest.parquet")
    else:
        text = "\n".join([HEADER, *ROWS]) + "\n"
        if kind == "semicolon":
            text = text.replace(",", ";")
        if kind == "quoted":
            text = "\n".join(
                ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
            )
        (tmp_path / "manifest.csv").write_text(
            text, encoding="utf-8-sig" if kind == "bom" else "utf-8"
        )
    return tmp_path


def test_every_format_gives_the_same_manifest(any_format):
    manifest = Manifest.load(any_format)
    assert manifest.n == len(manifest) == 3
    assert manifest.ids == ["001", "002", "003"], "an id is text, its zeros are kept"
    assert manifest.labels == ["mel", "nv", None]
    assert manifest.groups == ["G1", "G1", "G2"]
    assert manifest.splits == [split_of("G1"), split_of("G1"), split_of("G2")]
    assert manifest.paths() == [any_format / f"{name}.jpg" for name in "abc"]
    assert all(path.is_absolute() for path in manifest.paths())
    truth = manifest.truth()
    assert {name: kind for name, (kind, _) in truth.items()} == {
        "ruler": "artifact",
        "globules": "concept",
    }
    np.testing.assert_array_equal(truth["ruler"][1], [1, 0, math.nan])
    np.testing.assert_array_equal(truth["globules"][1], [0.25, math.nan, 1])
    assert [None if age is None else float(age) for age in manifest.column("age")] == [50, 60, None]


def test_a_table_file_is_opened_as_its_folder(any_format):
    (file,) = any_format.iterdir()
    assert Manifest.load(file).sha256() == Manifest.load(any_format).sha256()
    assert Manifest.load(str(file)).paths() == Manifest.load(any_format).paths()


def test_a_row_without_a_group_is_its_own(tmp_path):
    write(tmp_path, "a.jpg,", "b.jpg,G", header="image,group")
    manifest = Manifest.load(tmp_path)
    assert manifest.groups == ["a.jpg", "G"] and manifest.ids == ["a.jpg", "b.jpg"]
    assert manifest.labels == [None, None]
    assert manifest.truth() == {}


def test_a_split_of_the_table_is_kept(tmp_path):
    write(tmp_path, "a.jpg,G,test", "b.jpg,G,test", "c.jpg,,train", header="image,group,split")
    assert Manifest.load(tmp_path).splits == ["test", "test", "train"]


def test_column_defaults(tmp_path):
    write(tmp_path, "a.jpg,CC0", "b.jpg,", header="image,licence")
    manifest = Manifest.load(tmp_path)
    assert manifest.column("licence") == ["CC0", None]
    assert manifest.column("licence", "unknown") == ["CC0", "unknown"]
    assert manifest.column("fov") is None
    assert manifest.column("fov", "full") == ["full", "full"]


def test_sha256_follows_the_content(tmp_path):
    write(tmp_path, *ROWS)
    first = Manifest.load(tmp_path)
    assert first.sha256() == Manifest.load(tmp_path).sha256()
    assert first.take([0, 1]).sha256() != first.sha256()
    assert first.take([1, 0, 2]).sha256() != first.sha256()
    write(tmp_path, *ROWS[:2], "c.jpg,003,,G2,0,1,")
    assert Manifest.load(tmp_path).sha256() != first.sha256(), "unknown and 0 are not the same"


# ---- parts


def test_take_keeps_the_given_order(tmp_path):
    write(tmp_path, *ROWS)
    part = Manifest.load(tmp_path).take(np.array([2, 0]))
    assert part.ids == ["003", "001"]
    np.testing.assert_array_equal(part.truth()["ruler"][1], [math.nan, 1])


@pytest.mark.parametrize(
    ("expression", "ids"),
    [
        ("label == 'mel'", ["001"]),
        ("label = 'mel' or label is null", ["001", "003"]),
        ('"artifact:ruler" = 0', ["002"]),
        ("age > 50 -- a comment", ["002"]),
        ('"group" = \'G1\' and "concept:globules" < .5', ["001"]),
    ],
)
def test_where(tmp_path, expression, ids):
    write(tmp_path, *ROWS)
    assert Manifest.load(tmp_path).where(expression).ids == ids


@pytest.mark.parametrize(
    ("expression", "message", "hint"),
    [
        ("lable = 'mel'", "lable", "did you mean label?"),
        ("rular = 1", "rular", 'did you mean "artifact:ruler"?'),
        ("lable = 'mel'", "cannot be used: there is no column lable", "did you mean label?"),
        ("label = ", "cannot be used: a part is missing", "columns: image"),
        ("label = = 'mel'", "cannot be used: it cannot be read from '=' on", "columns"),
        ("label = 'mel", "cannot be used: a quote is not closed", "columns"),
        ("age > 'old'", "the text 'old' is where a number is needed", "columns"),
        ("lenth(label) = 3", "there is no function lenth", "columns"),
        ("label + 1 = 2", "it is no condition on one row", "columns"),
        ("max(age) = 3", "for each row by itself", "columns"),
        ("label = 'bcc'", "holds for none of the 3 rows", "single quotes"),
        ("image in (select * from read_text('/etc/hostname'))", "disabled", "columns"),
        ("1=1); COPY manifest TO 'stolen.csv'; SELECT (1", "cannot be used", "columns"),
    ],
)
def test_where_that_cannot_be_used(tmp_path, monkeypatch, expression, message, hint):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, *ROWS)
    with pytest.raises(UserInputError) as caught:
        Manifest.load(tmp_path).where(expression)
    assert message in caught.value.message and hint in caught.value.hint
    assert "Error" not in caught.value.message, "DuckDB's own words are left out"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.csv"]


# ---- faults


@pytest.mark.parametrize(
    ("header", "rows", "message", "hint"),
    [
        ("imgae,label", ["a.jpg,mel"], "has no column 'image'", "rename the column 'imgae'"),
        ("image_path,label", ["a.jpg,mel"], "has no column 'image'", "'image_path' to 'image'"),
        ("label", ["mel"], "has no column 'image'", "columns: label"),
        ("image,label", [], "has no rows", "one row an image"),
        ("image,label,label", ["a.jpg,mel,nv"], "two columns called 'label'", "rename one"),
        ("image,label", ["a.jpg,mel", ",nv"], "line 3: column 'image' is blank", "remove the row"),
        ("image", ["../a.jpg"], "line 2: column 'image': '../a.jpg' is a path outside", "inside"),
        ("image", ["x/../../a.jpg"], "is a path outside the data folder", "inside"),
        ("image", ["..\\a.jpg"], "is a path outside the data folder", "inside"),
        ("image", ["/etc/a.jpg"], "'/etc/a.jpg' is an absolute path", "relative to"),
        ("image", ["C:\\a.jpg"], "is an absolute path", "relative to"),
        (
            "image",
            ["https://x.org/a.jpg?w=9"],
            "line 2: column 'image': 'https:",
            "download the images",
        ),
        (
            "image",
            ["a.jpg", "s3://b/a.jpg"],
            "line 3: column 'image': 's3://b/a.jpg' is a URL",
            "download",
        ),
        (
            "image,label,Label",
            ["a.jpg,mel,1"],
            "the columns 'label' and 'Label' differ in letter case alone",
            "rename or remove one",
        ),
        ("image", ["a.txt"], "'a.txt' is not the name of an image (jpg", "relative"),
        (
            "image",
            ["a.jpg", "b.jpg", "a.jpg"],
            "line 4: column 'image': 'a.jpg' was there before, at line 2",
            "one row an image",
        ),
        (
            "image,image_id",
            ["a.jpg,1", "b.jpg,1"],
            "line 3: column 'image_id': '1' was there",
            "its own id",
        ),
        ("image,split", ["a.jpg,trian"], "line 2: column 'split' says 'trian'", "mean 'train'?"),
        ("image,split", ["a.jpg,dev"], "says 'dev'", "write train, val or test"),
        ("image,split", ["a.jpg,train", "b.jpg,"], "line 3: column 'split' is blank", "by group"),
        (
            "image,group,split",
            ["a.jpg,G,train", "b.jpg,G,test"],
            "line 3: group 'G' is in test here and in train at line 2",
            "stays in one split",
        ),
        (
            "image,artifact:ruler",
            ["a.jpg,yes"],
            "line 2: column 'artifact:ruler' says 'yes'",
            "1, 0, a probability between them, or leave it blank",
        ),
        (
            "image,artifact:ruler",
            ["a.jpg,0", "b.jpg,-1"],
            "line 3: column 'artifact:ruler' says",
            "blank for unknown",
        ),
        ("image,concept:streaks", ["a.jpg,1.5"], "column 'concept:streaks' says '1.5'", "blank"),
        ("image,concept:streaks", ["a.jpg,inf"], "column 'concept:streaks' says 'inf'", "blank"),
        ("image,artifact:scale,concept:scale", ["a.jpg,1,0"], "says the same word", "rename"),
        ("image,concept:", ["a.jpg,1"], "names no concept", "rename"),
        (
            "image,label",
            ["a.jpg,mel", "b.jpg,a,b,c"],
            "line 3: the row has 4 fields, the header 2",
            "in quotes",
        ),
        (
            "image,caption",
            ['a.jpg,"two', 'lines"', "b.jpg"],
            "line 4: the row has 1 fields",
            "in quotes",
        ),
    ],
)
def test_a_fault_is_reported_with_its_place_and_fix(tmp_path, header, rows, message, hint):
    path = write(tmp_path, *rows, header=header)
    with pytest.raises(UserInputError) as caught:
        Manifest.load(tmp_path)
    assert message in caught.value.message and str(path) in caught.value.message
    assert hint in caught.value.hint


def test_several_faults_are_counted(tmp_path):
    write(tmp_path, "a.jpg,x", "b.jpg,y", header="image,artifact:ruler")
    with pytest.raises(UserInputError, match=r"line 2.*\(and 1 more: dermaudit data check"):
        Manifest.load(tmp_path)


def test_rows_are_counted_where_lines_are_not_rows(tmp_path):
    path = write(tmp_path, 'a.jpg,"two\nlines"', "b.jpg,x", "../c.jpg,y", header="image,caption")
    with pytest.raises(UserInputError, match="row 2: column 'image'"):
        Manifest.load(tmp_path)
    pq.write_table(pa.table({"image": ["a.jpg", "/b.jpg"]}), tmp_path / "manifest.parquet")
    path.unlink()
    with pytest.raises(UserInputError, match=r"manifest\.parquet, row 1: column 'image'"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("manifest.csv", b"", "is empty"),
        ("manifest.csv", b"image\n\xff\xfe.jpg\n", "cannot be read as CSV"),
        ("manifest.jsonl", b'{"image": "a.jpg"}\n{"image": \n', "line 2: not JSON"),
        ("manifest.jsonl", b'["a.jpg"]\n', "line 1: a list, not an object"),
        ("manifest.parquet", b"PAR1 and no more", "cannot be read as PARQUET"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserInputError, match=message) as caught:
        Manifest.load(tmp_path)
    assert name in caught.value.message and caught.value.hint


def test_a_place_without_images_is_named(tmp_path):
    with pytest.raises(UserInputError, match="nothing-here does not exist") as caught:
        Manifest.load(tmp_path / "nothing-here")
    assert caught.value.hint == f"{tmp_path} has no such file or folder: check the spelling"
    with pytest.raises(UserInputError) as caught:
        Manifest.load(tmp_path / "no" / "such" / "place")
    assert caught.value.hint.startswith(f"there is no {tmp_path / 'no'} either")
    (tmp_path / "lesions").mkdir()
    with pytest.raises(UserInputError) as caught:
        Manifest.load(tmp_path / "lesion")
    assert caught.value.hint == f"did you mean {tmp_path / 'lesions'}?"
    with pytest.raises(UserInputError, match="holds no manifest and no image"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "hint"),
    [
        (".xlsx", "save it as .csv"),
        (".TSV", "save it as .csv"),
        (".db", "use .csv, .parquet or .jsonl"),
    ],
)
@pytest.mark.parametrize("layout", ["auto", "native", "isic"])
def test_the_hint_for_a_file_that_is_no_table_is_how_to_save_it(tmp_path, suffix, hint, layout):
    file = tmp_path / f"a{suffix}"
    file.write_bytes(b"image\tlabel\n")
    with pytest.raises(UserInputError, match="is not a table that can be read") as caught:
        read_layout(file, layout)
    assert caught.value.hint == hint


def test_images_may_be_links_but_paths_may_not_leave_the_folder(tmp_path, image_folder):
    """`data convert --link` makes links that point outside; a path in a table may not."""
    source = image_folder("a.png", name="elsewhere")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").symlink_to(source / "a.png")
    write(data, "a.png", header="image")
    assert Manifest.load(data).paths()[0].read_bytes() == (source / "a.png").read_bytes()
    write(data, "../elsewhere/a.png", header="image")
    with pytest.raises(UserInputError, match="outside the data folder"):
        Manifest.load(data)


def test_a_linked_folder_of_images_is_read_and_a_loop_ends(tmp_path, image_folder):
    source = image_folder("a.png", "b.png", name="elsewhere")
    data = tmp_path / "data"
    (data / "nv").mkdir(parents=True)
    (data / "mel").symlink_to(source)
    (data / "nv" / "up").symlink_to(data)
    manifest = Manifest.load(data)
    assert list(zip(manifest.column("image"), manifest.labels, strict=True)) == [
        ("mel/a.png", "mel"),
        ("mel/b.png", "mel"),
    ]


@pytest.mark.parametrize("value", [["mel", "nv"], {"name": "mel"}, []])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_list_or_object_in_a_plain_column_is_refused(tmp_path, main, value, suffix):
    rows = [{"image": "a.jpg", "label": value}, {"image": "b.jpg", "label": value}]
    path = tmp_path / f"manifest.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in [{"image": "c.jpg"}, *rows]))
    else:
        pq.write_table(pa.Table.from_pylist([*rows, {"image": "c.jpg"}]), path)
    where = "line 2" if suffix == "jsonl" else "row 0"
    for argv in (["convert", path, "--out", tmp_path / "out"], ["check", path]):
        done = main("data", *argv)
        assert done.rc == 2 and f"{where}: column 'label' holds" in done.stderr
        assert "write one value per image" in done.stderr


@pytest.mark.parametrize(
    ("written", "file"),
    [
        ("mel\\a.png", "mel/a.png"),
        ("L\u00e9sion.png", "Le\u0301sion.png"),  # composed in the table, decomposed on the disk
        ("Le\u0301sion.png", "L\u00e9sion.png"),
        ("mel\\L\u00e9sion.png", "mel/Le\u0301sion.png"),
        ("a\\b.png", "a\\b.png"),  # a file whose name holds a backslash
    ],
)
def test_paths_that_another_system_wrote_are_found(tmp_path, image_folder, written, file):
    folder = image_folder(file)
    write(folder, written, header="image")
    assert Manifest.load(folder).column("image") == [file]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("image,Label", "no column 'label'; if 'Label' is meant, rename it to 'label'"),
        ("image,diagnosis", "if 'diagnosis' is meant, rename it to 'label'"),
        ("image,patient_id", "if 'patient_id' is meant, rename it to 'group'"),
        ("image,label", ""),
    ],
)
def test_an_optional_column_under_another_name_is_reported(
    tmp_path, image_folder, main, header, expected
):
    folder = image_folder("a.png")
    write(folder, "a.png,x", header=header)
    for argv in (["convert", folder, "--out", tmp_path / "out"], ["check", folder]):
        done = main("data", *argv)
        assert done.rc == 0 and expected in done.stderr
        assert ("is meant" in done.stderr) == bool(expected)


@given(st.floats(0, 1) | st.integers(0, 1) | st.booleans())
def test_truth_keeps_its_value_as_text_or_number(value):
    assert truth_value(value) == truth_value(f" {float(value)!r} ") == float(value)


@given(st.floats().filter(lambda v: not 0 <= v <= 1 and v == v) | st.text("yesnot?", min_size=1))
def test_anything_else_is_never_taken_for_truth(value):
    with pytest.raises(ValueError, match=r"could not convert|not between"):
        truth_value(value)


@pytest.mark.parametrize("blank", [None, "", "  ", math.nan, "nan"])
def test_blank_is_unknown_and_never_0(blank):
    assert truth_value(blank) is None
