"""`dermaudit data check`: every fault named, leaks across splits first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dermaudit.data.duplicates.hashes import near_pairs, perceptual_hash
from dermaudit.data.manifest.check import check_data

# ---- duplicates


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(0, 6))
def test_near_pairs_are_those_of_all_pairs(seed, n, max_distance):
    """Against the comparison of all pairs, on hashes that lie close together."""
    rng = np.random.default_rng(seed)
    hashes = rng.random((n, 64)) < 0.5
    for i in range(1, n):
        if rng.random() < 0.6:
            flips = rng.choice(64, rng.integers(0, 9), replace=False)
            hashes[i] = hashes[rng.integers(0, i)]
            hashes[i, flips] ^= True
    distance = (hashes[:, None] != hashes[None]).sum(axis=2)
    expected = [
        (i, j, int(distance[i, j]))
        for j in range(n)
        for i in range(j)
        if distance[i, j] <= max_distance
    ]
    assert list(near_pairs(hashes, max_distance)) == expected


def test_a_smaller_and_a_brighter_copy_are_near_and_another_picture_is_not(image_folder):
    root = image_folder("a.png", "b.png", side=200)
    a, b = (Image.open(root / name) for name in ("a.png", "b.png"))
    hashes = np.stack(
        [
            perceptual_hash(np.array(image))
            for image in (a, a.resize((100, 90)), a.point(lambda v: v * 0.9), b)
        ]
    )
    pairs = {(i, j) for i, j, _ in near_pairs(hashes)}
    assert pairs >= {(0, 1), (0, 2)} and not any(3 in pair for pair in pairs)


# ---- the whole check


def kinds(answer) -> dict[str, list]:
    found: dict[str, list] = {}
    for finding in answer["findings"]:
        found.setdefault(finding["kind"], []).append(finding)
    return found


def test_a_folder_without_problems_has_no_finding(cli, image_folder):
    done = cli("data", "check", image_folder("mel/a.png", "nv/b.png"), "--json")
    answer = done.json()
    assert (done.rc, answer["findings"], answer["n_usable"]) == (0, [], 2)
    assert "nothing is wrong" in done.stderr


@pytest.fixture
def faulty(image_folder):
    """One intact image and one of each fault, in a table with a split."""
    root = image_folder("sound.png", "big.png", side=120)
    sound = Image.open(root / "sound.png")
    (root / "copy.png").write_bytes((root / "sound.png").read_bytes())
    sound.resize((100, 100)).save(root / "near.jpg", quality=90)
    (root / "text.jpg").write_text("hello")
    (root / "cut.png").write_bytes((root / "big.png").read_bytes()[:2000])
    Image.new("1", (12_000, 12_000)).save(root / "huge.png")
    big = Image.open(root / "big.png")
    big.rotate(90).resize((20, 20)).save(root / "tiny.png")
    big.rotate(180).convert("L").save(root / "grey.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    big.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "turned.png", exif=exif)
    names = [
        "sound.png",
        "copy.png",
        "near.jpg",
        "text.jpg",
        "cut.png",
        "huge.png",
        "tiny.png",
        "grey.png",
        "turned.png",
        "gone.png",
    ]
    splits = ["train", "test", "val"] + ["train"] * 7
    labels = ["mel", "nv", "mel", "mel", "mel", "mel", "", "mel", "mel", "mel"]
    rows = [f"{n},{s},{lab}" for n, s, lab in zip(names, splits, labels, strict=True)]
    (root / "manifest.csv").write_text("\n".join(["image,split,label", *rows]) + "\n")
    return root


def test_every_fault_is_named_with_its_line(cli, faulty):
    done = cli("data", "check", faulty, "--json")
    assert done.rc == 0, done.stderr
    answer = done.json()
    found = kinds(answer)
    assert {kind: [f["image"] for f in fs] for kind, fs in found.items()} == {
        "exact_duplicate_across_splits": ["copy.png"],
        "near_duplicate_across_splits": ["near.jpg"],
        "huge": ["huge.png"],
        "missing": ["gone.png"],
        "not_image": ["text.jpg"],
        "truncated": ["cut.png"],
        "tiny": ["tiny.png"],
        "not_rgb": ["grey.png"],
        "exif_rotated": ["turned.png"],
        "blank_label": ["tiny.png"],
        "unlisted": ["big.png"],
    }
    assert (answer["n_rows"], answer["n_usable"]) == (10, 6)
    assert answer["levels"] == {"leak": 2, "error": 0, "skip": 4, "warning": 5}
    copy = found["exact_duplicate_across_splits"][0]
    assert (copy["row"], copy["line"]) == (1, 3)
    for message in (
        "manifest.csv, line 3: copy.png",
        "sound.png (line 2)",
        "in train, this in test",
        "labelled nv here and mel there",
        "give both one group",
    ):
        assert message in copy["message"]
    for finding in answer["findings"]:
        assert finding["message"] in done.stderr


def test_leaks_come_first(main, faulty):
    levels = [f["level"] for f in main("data", "check", faulty, "--json").json()["findings"]]
    assert levels == sorted(levels, key=["leak", "error", "skip", "warning"].index)
    assert levels[0] == "leak"


def test_duplicates_within_a_split_are_only_warnings(image_folder):
    root = image_folder("a.png", "b.png")
    (root / "c.png").write_bytes((root / "a.png").read_bytes())
    (root / "manifest.csv").write_text("image,group\na.png,G\nb.png,G\nc.png,G\n")
    found = kinds(check_data(root))
    assert list(found) == ["exact_duplicate"]
    assert found["exact_duplicate"][0]["level"] == "warning"


def test_each_copy_is_reported_once_and_across_splits_first(image_folder):
    root = image_folder("a.png")
    rows = ["image,split", "a.png,train"]
    for k in range(6):
        (root / f"copy{k}.png").write_bytes((root / "a.png").read_bytes())
        rows.append(f"copy{k}.png,{'test' if k >= 3 else 'train'}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    found = check_data(root)["findings"]
    assert [(f["image"], f["kind"]) for f in found] == [
        *((f"copy{k}.png", "exact_duplicate_across_splits") for k in (3, 4, 5)),
        *((f"copy{k}.png", "exact_duplicate") for k in (0, 1, 2)),
    ]


def test_faults_of_the_table_are_findings_not_failures(main, image_folder):
    root = image_folder("a.png", "b.png", "c.png")
    (root / "manifest.csv").write_text(
        "image,group,split,artifact:ruler\n"
        "a.png,G,train,1\nb.png,G,test,maybe\n../x.png,,train,\nc.png,,dev,0\nc.png,,train,2\n"
    )
    done = main("data", "check", root, "--json")
    assert done.rc == 2, "a run would refuse it"
    answer = done.json()["error"]["check"]
    assert "3 of 5 images can be used" in done.json()["error"]["message"]
    assert "manifest.csv, line 3" in done.json()["error"]["hint"]
    found = kinds(answer)
    assert set(found) == {
        "group_across_splits",
        "bad_path",
        "bad_value",
        "duplicate_image",
        "unknown_split",
    }
    assert answer["findings"][0]["level"] == "leak" and not answer["usable"]
    assert [f["line"] for f in found["bad_value"]] == [3, 6]
    assert all(f["hint"] for kind in ("bad_path", "bad_value") for f in found[kind])


@pytest.mark.parametrize(
    ("table", "kind"), [("label\nmel\n", "missing_column"), ("image\n", "empty")]
)
def test_a_table_of_nothing_is_a_finding(main, image_folder, table, kind):
    root = image_folder("a.png")
    (root / "manifest.csv").write_text(table)
    done = main("data", "check", root, "--json")
    answer = done.json()["error"]["check"]
    assert done.rc == 2 and answer["counts"] == {kind: 1} and answer["n_usable"] == 0


def test_many_findings_of_a_kind_are_cut_on_the_screen_and_whole_in_json(main, tmp_path):
    rows = "\n".join(f"gone{k}.png" for k in range(30))
    (tmp_path / "manifest.csv").write_text(f"image\n{rows}\n")
    done = main("data", "check", tmp_path, "--json")
    answer = done.json()["error"]["check"]
    assert done.rc == 2 and answer["counts"] == {"missing": 30}, "no image can be used"
    assert len(answer["findings"]) == 30
    assert "gone19.png" in done.stderr and "gone20.png" not in done.stderr
    assert "10 more" in done.stderr


def test_a_fault_of_one_image_alone_is_no_failure(main, image_folder):
    root = image_folder("a.png")
    (root / "manifest.csv").write_text("image\na.png\ngone.png\n")
    done = main("data", "check", root, "--json")
    assert done.rc == 0 and done.json()["usable"] and done.json()["counts"] == {"missing": 1}


def test_a_group_in_two_splits_alone_is_refused(main, image_folder):
    """It is reported as a leak, and refused by a run as any error."""
    root = image_folder("a.png", "b.png")
    (root / "manifest.csv").write_text("image,group,split\na.png,G,train\nb.png,G,test\n")
    done = main("data", "check", root, "--json")
    assert done.rc == 2 and done.json()["error"]["check"]["levels"]["error"] == 0


def test_one_fact_of_many_rows_is_one_line(main, image_folder):
    names = [f"{k}.png" for k in range(5)]
    root = image_folder(*names)
    (root / "manifest.csv").write_text("image,label\n0.png,\n1.png,\n2.png,nv\n")
    done = main("data", "check", root, "--json")
    assert done.json()["counts"] == {"blank_label": 2, "unlisted": 2}
    assert [
        line.split()[:2]
        for line in done.stderr.splitlines()
        if line.startswith("  blank_label") or line.startswith("  unlisted")
    ] == [["blank_label", "2"], ["unlisted", "2"]]
    assert (
        "2 rows without a label; the first: " in done.stderr and "3.png: no row of" in done.stderr
    )


def test_nothing_to_check_is_bad_input(main, tmp_path):
    done = main("data", "check", tmp_path / "nowhere", "--json")
    assert done.rc == 2 and "does not exist" in done.json()["error"]["message"]
