"""The model benches as a user calls them: side by side, whole sets, and refusals in one sentence."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dermaudit.bench.inputs.captions import captions_of
from dermaudit.bench.session import dataset_name, short_names
from dermaudit.data import Manifest
from dermaudit.errors import UserInputError
from dermaudit.pretrain.training.probe import measure
from dermaudit.towers import ZeroShot, load_model


@pytest.fixture
def both(two_models, scored):
    """The arguments that every bench takes: two models and the data."""
    return ["--model", two_models / "plain", "--model", two_models / "other", "--data", scored]


def n_test(scored):
    return sum(split == "test" for split in Manifest.load(scored).splits)


# ---- zeroshot


def test_zeroshot_scores_every_image_and_saves_what_table_reads(both, scored, main, tmp_path):
    done = main("bench", "zeroshot", *both, "--out", tmp_path / "o", "--draws", "200", "--json")
    assert done.rc == 0, done.stderr
    found = done.json()
    assert found["n_skipped"] == {"plain": 1, "other": 1}
    figures = [f for f in found["figures"] if f["table"] == "classification"]
    assert {f["model"] for f in figures} == {"plain", "other"}
    assert all(f["n"] == n_test(scored) - 1 for f in figures)
    assert all(np.sum(m) == n_test(scored) - 1 for m in found["confusion"].values())
    assert len(found["templates"]) == 8
    table = main("bench", "table", "--predictions", tmp_path / "o", "--draws", "200", "--json")
    again = {
        (f["model"], f["metric"]): f
        for f in table.json()["figures"]
        if f["table"] == "classification"
    }
    for f in figures:
        other = again[f["model"], f["metric"]]
        assert [f["value"], f["low"], f["high"]] == pytest.approx(
            [other["value"], other["low"], other["high"]]
        )


def test_zeroshot_is_the_zero_shot_classifier(two_models, scored, main, tmp_path):
    main(
        "bench", "zeroshot", "--model", two_models / "plain", "--data", scored,
        "--templates", "dermaudit", "--classes", "ham", "--out", tmp_path / "o",
    )  # fmt: skip
    from dermaudit.bench import read_predictions
    from dermaudit.data import read_image
    from dermaudit.towers.prompts import ham_classes

    saved = read_predictions(tmp_path / "o")["toy"]["plain"]
    tower = load_model(two_models / "plain")
    images = [read_image(scored / name) for name in saved.images[:5]]
    x = tower.encode_image(tower.preprocess(images))
    expected = ZeroShot(tower, ham_classes()).probs(x).detach().numpy()
    assert saved.probs[:5] == pytest.approx(expected, abs=1e-4)
    labels = dict(zip(*(Manifest.load(scored).column(c) for c in ("image", "label")), strict=True))
    assert [saved.classes[t] for t in saved.truth] == [labels[name] for name in saved.images]


def test_zeroshot_hierarchy_classes_and_templates_from_files(both, main, tmp_path):
    (tmp_path / "tree.json").write_text('{"tumours": {"melanoma": {}, "nevus": {}, "bcc": {}}}')
    (tmp_path / "templates.txt").write_text("dermoscopy of {}\n")
    done = main(
        "bench", "zeroshot", *both, "--ontology", tmp_path / "tree.json", "--by-class",
        "--templates", tmp_path / "templates.txt", "--split", "all", "--draws", "100", "--json",
    )  # fmt: skip
    assert done.rc == 0, done.stderr
    found = done.json()
    assert found["templates"] == ["dermoscopy of {}"]
    assert found["nodes"]["mel"] == ["tumours", "melanoma"]
    assert "not in the ontology: akiec" in done.stderr
    level = [f for f in found["figures"] if f["table"] == "hierarchy" and f["metric"] == "level 1"]
    assert len(level) == 2 and all(0 <= f["value"] <= 1 for f in level)


def test_zeroshot_where_leaves_rows_out(both, scored, main):
    done = main(
        "bench", "zeroshot", *both, "--where", "label != 'nv'", "--split", "all", "--draws", "100",
        "--json",
    )  # fmt: skip
    labels = Manifest.load(scored).labels
    n = done.json()["figures"][0]["n"]
    assert sum(label != "nv" for label in labels) - n == 1  # the broken one


# ---- the others


def test_retrieval_whole_split_both_ways(both, scored, main):
    done = main("bench", "retrieval", *both, "--k", "1", "--k", "10", "--draws", "100", "--json")
    assert done.rc == 0, done.stderr
    found = done.json()
    metrics = {f["metric"] for f in found["figures"] if f["table"] == "retrieval"}
    assert {"image → text R@1", "text → image strict R@10", "text → image median rank"} <= metrics
    assert all(f["n"] == n_test(scored) - 1 for f in found["figures"] if f["table"] == "retrieval")
    assert "(chance)" in done.stderr


@pytest.mark.slow
def test_probe_figures_of_measure_and_the_curve(both, two_models, scored, main, tmp_path):
    done = main(
        "bench", "probe", *both, "--parts", "2", "--draws", "100", "--out", tmp_path / "o", "--json"
    )
    assert done.rc == 0, done.stderr
    found = done.json()
    alone = measure(load_model(two_models / "plain"), Manifest.load(scored))
    assert found["models"]["plain"].keys() == alone.keys()
    for label, row in alone.items():
        assert found["models"]["plain"][label]["probe"] == row["probe"]
    curve = [f for f in found["figures"] if f["table"] == "few labels"]
    assert {f["fraction"] for f in curve} == {0.3, 0.5, 1.0}  # 1 and 10 % of 180 images are too few
    assert "n too small" in done.stderr
    saved = main(
        "bench", "table", "--predictions", tmp_path / "o", "--draws", "100", "--json"
    ).json()
    accuracy = {
        f["model"]: f["value"] for f in saved["figures"]
        if f["table"] == "classification" and f["metric"] == "accuracy"
    }  # fmt: skip
    for f in curve:
        if f["fraction"] == 1.0 and f["metric"] == "accuracy":
            assert f["value"] == pytest.approx(accuracy[f["model"]])


def test_annotate_matches_concepts_by_name_and_reports_random_words(both, main, tmp_path):
    (tmp_path / "t.json").write_text(
        '{"Ruler": ["a ruler", "scale marks"], "ulcus": ["ulcus"], "hair": ["a nevus", "hair"]}'
    )
    done = main(
        "bench", "annotate", *both, "--terms", tmp_path / "t.json", "--split", "all",
        "--draws", "100", "--out", tmp_path / "o", "--format", "parquet", "--json",
    )  # fmt: skip
    assert done.rc == 0, done.stderr
    found = done.json()
    ruler = [f for f in found["figures"] if f["metric"] == "ruler"]
    assert [f["terms"] for f in ruler] == ["a ruler; scale marks"] * 2
    assert not ruler[0]["own_name"]
    assert found["terms_without_column"] == ["ulcus"]
    assert found["terms_of_diagnoses"] == {"hair": ["a nevus"]}
    assert "terms that name a diagnosis" in done.stderr
    assert pq.read_table(tmp_path / "o" / "annotate.parquet").num_rows == len(found["figures"])


# ---- refusals


@pytest.mark.parametrize("bench", ["zeroshot", "retrieval", "probe", "annotate"])
def test_training_images_are_refused(two_models, scored, main, bench):
    done = main("bench", bench, "--model", two_models / "seen", "--data", scored)
    assert done.rc == 2
    assert "1 test images of" in done.stderr and "were training images of" in done.stderr


@pytest.mark.parametrize("bench", ["zeroshot", "retrieval", "probe", "annotate"])
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--format", "word"], "unknown format 'word'"),
        (["--format", "html", "--where", "index < 9"], "unknown format 'html'"),
        (["--threads", "0"], "Invalid value for '--threads'"),
        (["--seed", "-1"], "Invalid value for '--seed'"),
        (["--device", "gpu"], "--device gpu is no device\n  use cpu, cuda or cuda:0"),
        (["--out", "/proc/no/such"], "cannot write /proc/no/such"),
        (["--format", "parquet"], "needs a folder"),
        (["--reference", "plane"], "did you mean 'plain'"),
        (["--draws", "1"], "at least 100 are needed"),
        (["--where", "labl = 'nv'"], "did you mean label"),
        (["--model", "phantom-vot"], "did you mean 'phantom-vit'"),
    ],
)
def test_wrong_flags_one_sentence(both, main, bench, extra, message):
    done = main("bench", bench, *both, *extra)
    assert done.rc == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "rc", "message"),
    [
        (["zeroshot", "--split", "tset"], 2, "did you mean 'test'"),
        (["zeroshot", "--classes", "hamm"], 2, "did you mean 'ham'"),
        (["zeroshot", "--classes", "hamm", "--where", "index < 9"], 2, "did you mean 'ham'"),
        (["zeroshot", "--classes", "pad"], 2, "of the labels are none of the classes NEV"),
        (["zeroshot", "--templates", "mine"], 2, "neither a file nor a set"),
        (
            ["zeroshot", "--ontology", "absent.json"],
            2,
            "ontology absent.json does not exist\n  give nested JSON",
        ),
        (["zeroshot", "--where", "index < 20"], 3, "at least 30 are needed"),
        (["retrieval", "--column", "captoin"], 2, "did you mean 'caption'"),
        (
            ["retrieval", "--column", "index"],
            2,
            "holds numbers, not text, such as 0\n  columns of text: ",
        ),
        (["retrieval", "--k", "0"], 2, "--k 0 must be at least 1\n  --k 1 asks"),
        (["annotate", "--templates", "skn"], 2, "did you mean 'skin'"),
        (
            ["annotate", "--terms", "absent.json"],
            2,
            "--terms absent.json does not exist\n  write {",
        ),
        (["annotate", "--templates", "skn", "--where", "index < 9"], 2, "did you mean 'skin'"),
        (["probe", "--parts", "0"], 2, "--parts 0 must be at least 1"),
    ],
)
def test_wrong_input_one_sentence(both, main, argv, rc, message):
    done = main("bench", *argv[:1], *both, *argv[1:])
    assert done.rc == rc
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_out_is_not_overwritten_without_force(both, main, tmp_path):
    argv = ["bench", "zeroshot", *both, "--out", tmp_path / "o", "--draws", "100"]
    assert main(*argv).rc == 0
    done = main(*argv)
    assert done.rc == 2
    assert "zeroshot.txt is there already" in done.stderr and "--force" in done.stderr
    assert main(*argv, "--force").rc == 0
    # Predictions of another bench mean what the file of classes says; it is not replaced either.
    again = main("bench", "probe", *both[2:], "--out", tmp_path / "o", "--draws", "100")
    assert (again.rc, "toy.csv" in again.stderr, "other.csv is there" in again.stderr) == (
        2,
        False,
        True,
    )
    (tmp_path / "o" / "toy" / "other.csv").unlink()
    again = main("bench", "probe", *both[2:], "--out", tmp_path / "o", "--draws", "100")
    assert (again.rc, "toy.classes.csv is there already" in again.stderr) == (2, True)
    (tmp_path / "file").write_text("")
    assert "is a file" in main("bench", "zeroshot", *both, "--out", tmp_path / "file").stderr


def test_out_a_refused_run_leaves_nothing(two_models, scored, main, tmp_path):
    done = main(
        "bench", "zeroshot", "--model", two_models / "plain", "--data", scored, "--where", "index < 9",
        "--out", tmp_path / "new" / "o",
    )  # fmt: skip
    assert done.rc == 3
    assert list(tmp_path.iterdir()) == []


def test_captions_numbers_written_as_text(tmp_path):
    columns = {
        "image": ["a.png", "b.png", "c.png"], "note": ["a dark lesion", None, "2"],
        "years": ["50", " 61.5", None], "blank": pa.nulls(3),
    }  # fmt: skip
    m = Manifest(pa.table(columns), tmp_path, tmp_path / "m.csv")
    assert captions_of(m, "note") == ["a dark lesion", "", "2"]
    for column, message in (
        ("years", "holds numbers, not text, such as 50"),
        ("blank", "holds nothing"),
    ):
        with pytest.raises(UserInputError) as caught:
            captions_of(m, column)
        assert message in caught.value.message and caught.value.hint == "columns of text: note"
    with pytest.raises(UserInputError, match="did you mean 'note'"):
        captions_of(m, "notes")


def test_no_label_no_caption_no_concept(two_models, image_folder, main):
    folder = image_folder(*(f"{i}.png" for i in range(40)))
    argv = ["--model", two_models / "plain", "--data", folder]
    message = main("bench", "zeroshot", *argv, "--split", "all")
    assert (message.rc, "has no label to score zero-shot" in message.stderr) == (2, True)
    message = main("bench", "retrieval", *argv, "--split", "all")
    assert (message.rc, "unknown column of captions" in message.stderr) == (2, True)
    message = main("bench", "annotate", *argv, "--split", "all")
    assert (message.rc, "has no concept: or artifact: column" in message.stderr) == (2, True)


def test_short_names_good_for_files_and_unique():
    assert short_names(["phantom-vit", "hf-hub:org/DermLIP_ViT-B-16", "ViT-B-16/openai"]) == {
        "phantom-vit": "phantom-vit",
        "DermLIP_ViT-B-16": "hf-hub:org/DermLIP_ViT-B-16",
        "ViT-B-16_openai": "ViT-B-16/openai",
    }
    assert list(short_names(["./a/ckpt", "./b/ckpt", "local-dir:../c/ckpt/"])) == [
        "ckpt",
        "b_ckpt",
        "c_ckpt",
    ]
    with pytest.raises(UserInputError, match="given twice"):
        short_names(["a", "a"])


def test_dataset_name_is_the_folder(scored):
    assert dataset_name(scored) == dataset_name(scored / "manifest.parquet") == "toy"


@pytest.mark.parametrize("bench", ["zeroshot", "retrieval", "probe", "annotate", "table"])
def test_help_loads_no_torch(run_python, bench):
    done = run_python(
        "-c",
        "import sys; from dermaudit.cli import main; "
        f"main(['bench', {bench!r}, '--help']); assert 'torch' not in sys.modules",
    )
    assert done.rc == 0, done.stderr
    assert "--model" in done.stdout or "--predictions" in done.stdout
