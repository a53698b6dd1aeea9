"""`bench table`: the published figures are reproduced, ours differ where they must, and
files that cannot be compared are refused in one sentence."""

from __future__ import annotations

import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from dermaudit.bench import Predictions, read_predictions
from dermaudit.bench.inputs.saved_predictions import write_predictions
from dermaudit.bench.measures.legacy import (
    LegacyCell,
    agreement,
    legacy_cells,
    legacy_weights,
    read_published,
)
from dermaudit.errors import UserInputError


def predictions(n=60, seed=0, skill=2.0, groups=None):
    rng = np.random.default_rng(seed)
    truth = np.arange(n) % 3
    logits = rng.normal(size=(n, 3)) + skill * np.eye(3)[truth]
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    images = [f"images/{i}.jpg" for i in range(n)]
    groups = groups or [f"g{i // 2}" for i in range(n)]
    return Predictions(images, truth, probs.argmax(1), probs, ["nv", "mel", "bkl"], groups, True)


@pytest.fixture
def folder(tmp_path):
    write_predictions(
        tmp_path / "p", "toy", {"good": predictions(), "poor": predictions(seed=1, skill=0.3)}
    )
    return tmp_path / "p"


def rewrite(path, change):
    """Let `change` edit the rows (header first) of a file of predictions."""
    with path.open(newline="") as handle:
        rows = list(csv.reader(handle))
    change(rows)
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)


# ---- the published ones


@pytest.fixture(scope="session")
def published(data_dir):
    root = data_dir / "peer-data" / "predictions"
    if not root.is_dir():
        pytest.skip("no peer-data/predictions in DERMAUDIT_DATA")
    return root


def test_published_accuracies_exactly(published, main):
    done = main("bench", "table", "--predictions", published, "--draws", "200", "--json")
    assert done.rc == 0
    found = {
        (f["dataset"], f["model"]): f["value"]
        for f in done.json()["figures"]
        if f["table"] == "classification" and f["metric"] == "accuracy"
    }
    expected = {
        ("HAM", "BiomedCLIP"): 0.6347, ("HAM", "CLIP-Large"): 0.2754,
        ("HAM", "DermFM-Zero"): 0.7957, ("HAM", "MONET"): 0.3347,
        ("PAD", "BiomedCLIP"): 0.4512, ("PAD", "CLIP-Large"): 0.3839,
        ("PAD", "DermFM-Zero"): 0.6941, ("PAD", "MONET"): 0.4729,
    }  # fmt: skip
    assert {key: round(value, 4) for key, value in found.items()} == expected


def test_published_legacy_reproduces_every_cell(published, main):
    done = main("bench", "table", "--predictions", published, "--legacy-bootstrap", "--json")
    checked = done.json()["published"]
    assert (checked["cells"], checked["equal"]) == (56, 56)
    assert (checked["p_values"], checked["p_values_equal"]) == (42, 42)
    assert checked["largest_difference"] <= 0.00005 + 1e-12
    assert "56 of 56 cells (mean and both bounds) agree to all 4 printed digits" in done.stderr


def test_published_one_data_set_alone(published, main):
    done = main(
        "bench", "table", "--predictions", published / "PAD", "--legacy-bootstrap", "--json"
    )
    assert done.json()["published"]["equal"] == 28


# ---- the legacy way


def test_legacy_the_generator_is_numpys_legacy_one():
    np.random.seed(42)  # noqa: NPY002  (the published figures were made with it)
    rows = np.random.choice(7, 7, replace=True)  # noqa: NPY002
    assert np.array_equal(legacy_weights(7, 3)[0], np.bincount(rows, minlength=7))


def test_legacy_the_floor_lifts_a_zero_bound():
    p = predictions(30)
    wrong = (p.truth + 1) % 3
    wrong[0] = p.truth[0]  # one of 30 right: many resamples have none
    odd = Predictions(p.images, p.truth, wrong, p.probs, p.classes, p.groups, True)
    cell = legacy_cells(odd, p)["accuracy"]
    assert cell.floored
    assert cell.low == pytest.approx(0.1 * cell.mean)


def test_legacy_a_differing_cell_is_reported():
    published = {("d", "m"): {"accuracy": "0.5001 (0.4000-0.6000)", "accuracy_p_value": "0.010"}}
    checked = agreement({("d", "m"): {"accuracy": LegacyCell(0.5, 0.4, 0.6, 0.01)}}, published)
    assert (checked.cells, checked.equal, checked.p_equal) == (1, 0, 1)
    assert checked.largest == pytest.approx(1e-4)
    assert "0.5000 (0.4000-0.6000), published 0.5001" in checked.differing[0]


def test_legacy_foreign_published_table(tmp_path):
    path = tmp_path / "published_intervals.csv"
    path.write_text("Dataset,Model\nHAM,x\n")
    with pytest.raises(UserInputError, match="has no column ACCURACY"):
        read_published(path)


# ---- saved and read again


def test_saved_read_back_equal(folder):
    found = read_predictions(folder)["toy"]["good"]
    made = predictions()
    assert found.images == made.images
    assert found.classes == made.classes
    assert found.groups == made.groups
    assert np.array_equal(found.truth, made.truth)
    assert np.array_equal(found.predicted, made.predicted)
    assert found.probs == pytest.approx(made.probs, rel=1e-8)


def test_saved_another_order_of_rows_is_the_same_table(folder, main):
    before = main("bench", "table", "--predictions", folder, "--json").json()["figures"]
    rewrite(folder / "toy" / "poor.csv", lambda rows: rows.__setitem__(slice(1, None), rows[:0:-1]))
    assert main("bench", "table", "--predictions", folder, "--json").json()["figures"] == before


def test_saved_without_groups_each_image_is_its_own(folder, main):
    def drop(rows):
        for row in rows:
            del row[1]

    for name in ("good", "poor"):
        rewrite(folder / "toy" / f"{name}.csv", drop)
    found = read_predictions(folder)["toy"]["good"]
    assert not found.grouped
    assert len(set(found.groups)) == found.n
    assert "each is its own" in main("bench", "table", "--predictions", folder).stderr


def test_saved_groups_of_one_file_hold_for_all(folder, main):
    def drop(rows):
        for row in rows:
            del row[1]

    rewrite(folder / "toy" / "good.csv", drop)
    found = read_predictions(folder)["toy"]
    assert found["good"].groups == found["poor"].groups == predictions().groups
    assert "30 groups" in main("bench", "table", "--predictions", folder).stderr


# ---- formats


@pytest.mark.parametrize("suffix", ["txt", "md", "tex", "parquet"])
def test_formats_the_suffix_of_the_file_decides(folder, main, tmp_path, suffix):
    out = tmp_path / f"table.{suffix}"
    done = main("bench", "table", "--predictions", folder, "--out", out, "--json")
    assert done.rc == 0
    figures = done.json()["figures"]
    if suffix == "parquet":
        rows = pq.read_table(out).to_pylist()
        assert len(rows) == len(figures)
        assert rows[0]["value"] == figures[0]["value"]
        return
    written = out.read_text()
    value = figures[0]["value"]
    assert f"{value:.4f} [" in written
    assert {"txt": "---", "md": "| model |", "tex": r"\toprule"}[suffix] in written


def test_formats_wrong_ones(folder, main, tmp_path):
    done = main("bench", "table", "--predictions", folder, "--format", "latx")
    assert done.rc == 2
    assert "did you mean 'latex'" in done.stderr
    done = main("bench", "table", "--predictions", folder, "--out", tmp_path / "t.doc")
    assert done.rc == 2
    assert "does not follow from its name" in done.stderr
    assert main("bench", "table", "--predictions", folder, "--format", "parquet").rc == 2


def test_by_class_small_classes_have_no_figure(tmp_path, main):
    p = predictions(80)
    keep = [i for i in range(80) if p.truth[i] != 2 or i < 30]
    write_predictions(tmp_path / "p", "toy", {"m": p.take(np.array(keep))})
    done = main("bench", "table", "--predictions", tmp_path / "p", "--by-class", "--json")
    assert "n too small" in done.stderr
    shown = [f for f in done.json()["figures"] if f["table"] == "recall by class"]
    assert {f["class"] for f in shown} <= {"nv", "mel", "bkl"}
    assert all(f["n"] >= 30 for f in shown)


def test_too_few_images_exit_3(tmp_path, main):
    write_predictions(tmp_path / "p", "toy", {"m": predictions(20)})
    done = main("bench", "table", "--predictions", tmp_path / "p")
    assert done.rc == 3
    assert "no data set has 30 images (toy 20)" in done.stderr


# ---- what cannot be used: one sentence, exit 2


def no_column(rows):
    rows[0][2] = "truth"


def no_probability(rows):
    for row in rows:
        del row[5]


def not_one(rows):
    rows[3][4:] = ["0.5", "0.4", "0.3"]


def logits(rows):
    rows[2][4:] = ["4.0", "-2.0", "-1.0"]


def outside(rows):
    rows[5][2] = "3"


def worded(rows):
    rows[5][2] = "mel"


def not_a_number(rows):
    rows[4][4] = "x"


def twice(rows):
    rows[7][0] = rows[6][0]


def fewer(rows):
    del rows[9]


def other_image(rows):
    rows[9][0] = "images/else.jpg"


def other_truth(rows):
    rows[1][2] = "2"


def other_group(rows):
    rows[4][1] = "elsewhere"


def empty(rows):
    del rows[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_column, "poor.csv has no column true_label"),
        (no_probability, "has no column probability_class_1, but probability_class_2"),
        (not_one, "poor.csv, line 4: the probabilities sum to 1.2, not 1 (1 of 60 rows)"),
        (logits, "poor.csv, line 3: a probability outside 0 … 1"),
        (outside, "poor.csv, line 6: true_label is '3', outside the classes 0 … 2"),
        (worded, "poor.csv, line 6: true_label is 'mel', outside the classes 0 … 2"),
        (not_a_number, "poor.csv, line 5: probability_class_0 is 'x'"),
        (twice, "poor.csv, line 8: images/5.jpg occurs twice, first at line 7"),
        (fewer, "hold different images (the first: images/8.jpg, not in"),
        (other_image, "hold different images (the first: images/else.jpg, not in"),
        (other_truth, "disagree on the true label of images/0.jpg (1 images)"),
        (other_group, "disagree on the group of images/3.jpg"),
        (empty, "poor.csv has no row"),
    ],
)
def test_bad_file_one_sentence(folder, main, change, message):
    rewrite(folder / "toy" / "poor.csv", change)
    done = main("bench", "table", "--predictions", folder)
    assert done.rc == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_folder_one_sentence(folder, main, tmp_path):
    (tmp_path / "file").write_text("")
    assert (
        "is not a folder of predictions"
        in main("bench", "table", "--predictions", tmp_path / "file").stderr
    )
    (tmp_path / "bare").mkdir()
    assert (
        "holds no predictions" in main("bench", "table", "--predictions", tmp_path / "bare").stderr
    )
    (folder / "toy.classes.csv").write_text("diag,label\nnv,0\nmel,1\n")
    done = main("bench", "table", "--predictions", folder)
    assert done.rc == 2
    assert "has 3 columns of probabilities, its classes are 2" in done.stderr
    (folder / "toy.classes.csv").write_text("diag,label\nnv,0\nmel,1\nbkl,3\n")
    assert (
        "does not number its classes 0 … 2"
        in main("bench", "table", "--predictions", folder).stderr
    )


def test_unknown_reference(folder, main):
    done = main("bench", "table", "--predictions", folder, "--reference", "goood")
    assert done.rc == 2
    assert "did you mean 'good'" in done.stderr


def test_loads_no_torch(run_python, folder):
    done = run_python(
        "-c",
        "import sys; from dermaudit.cli import main; "
        f"main(['bench', 'table', '--predictions', {str(folder)!r}, '--quiet']); "
        "assert 'torch' not in sys.modules",
    )
    assert done.rc == 0, done.stderr


# ---- where it is written


def test_out_is_kept_without_force_and_checked_before_any_work(folder, main, tmp_path):
    out = tmp_path / "t.md"
    out.write_text("precious")
    # Nothing was read yet: the folder of predictions is not there.
    done = main("bench", "table", "--predictions", tmp_path / "absent", "--out", out)
    assert (done.rc, "is there already" in done.stderr, "--force" in done.stderr) == (2, True, True)
    assert out.read_text() == "precious"
    argv = ["bench", "table", "--predictions", folder, "--draws", "100"]
    done = main(*argv, "--out", out, "--force")
    assert done.rc == 0 and out.read_text().startswith("**toy")
    done = main(*argv, "--out", tmp_path, "--format", "text")
    assert (done.rc, "is a folder" in done.stderr) == (2, True)
    for bad in ("/proc/no/t.md", out / "below" / "t.md", tmp_path / ("x" * 300 + ".md")):
        done = main("bench", "table", "--predictions", tmp_path / "absent", "--out", bad)
        assert done.rc == 2 and "cannot write" in done.stderr, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "t.md"]


def test_predictions_absent(main, tmp_path):
    done = main("bench", "table", "--predictions", tmp_path / "absent")
    assert done.rc == 2 and "absent does not exist\n  give DIR with" in done.stderr
