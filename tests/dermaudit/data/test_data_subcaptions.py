"""`dermaudit data subcaptions`: the text views of a data set, by hand and through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_files import write_csv

from dermaudit.data import Manifest
from dermaudit.data.captions.concept_words import ConceptWords
from dermaudit.data.captions.ontology import Ontology
from dermaudit.data.captions.subcaptions import find_disease, text_views

TREE = {
    "inflammatory": {"eczema": {"nummular eczema": {}}, "Psoriasis": {}, "halo": {}},
    "proliferations": {
        "benign": {"melanocytic": {"melanocytic nevus, mole": {}}},
        "malignant": {"melanocytic": {"malignant melanoma, melanoma": {}}},
    },
}
ROWS = [
    {"label": "melanoma", "caption": "A 2.5 cm scaly plaque. No crust is seen. Red."},
    {"label": "No definitive diagnosis", "caption": "No caption"},
    {"label": "psoriasys", "caption": "2."},
    {"label": "nv", "caption": ""},
]
VIEWS = ["subcaption_1", "subcaption_2", "ontology_caption", "concept_caption"]


@pytest.fixture
def data(image_folder):
    """`data(rows)`: a data set with a manifest.csv of these rows."""

    def make(rows: list[dict] = ROWS, name: str = "set") -> Path:
        root = image_folder(*(f"img/{i}.png" for i in range(len(rows))), name=name, side=16)
        named = [{"image": f"img/{i}.png", **row} for i, row in enumerate(rows)]
        write_csv(root / "manifest.csv", named)
        (root.parent / "tree.json").write_text(json.dumps(TREE))
        return root

    return make


def views(manifest: Manifest, **options):
    given = {
        "most": 8,
        "words": ConceptWords.load(),
        "ontology": Ontology.from_tree(TREE),
        **options,
    }
    return text_views(manifest, **given)


def test_text_views_by_hand(data):
    done, made = views(Manifest.load(data()), most=2)
    assert done.column("subcaption_1") == ["A 2.5 cm scaly plaque.", None, None, None]
    assert done.column("subcaption_2") == ["No crust is seen.", None, None, None]
    assert "subcaption_3" not in done.table.column_names
    assert done.column("ontology_caption") == [
        "A skin image diagnosed as proliferations, malignant, melanocytic, malignant melanoma.",
        None,
        None,
        "A skin image diagnosed as proliferations, benign, melanocytic, melanocytic nevus.",
    ]
    assert done.column("concept_caption") == [
        "On the skin one sees scale, plaque, erythema.",
        None,
        None,
        None,
    ]
    assert done.column("ontology") == [
        "proliferations > malignant > melanocytic > malignant melanoma",
        None,
        None,
        "proliferations > benign > melanocytic > melanocytic nevus",
    ]
    assert done.column("caption")[1] is None, "a sentinel is no text to train on"
    assert made.views == {"subcaptions": 1, "ontology_caption": 2, "concept_caption": 1}
    assert made.empty_captions == [1, 3] and made.no_sentence == [2]
    assert (made.n_subcaptions, made.cut, made.denied, made.no_diagnosis) == (2, 1, 1, 1)
    assert made.unknown == {"psoriasys": {"n": 1, "nearest": "psoriasis"}}


def test_text_views_existing_views_are_kept_unless_replaced(data):
    names = ("label", "caption", "subcaption_1", "subcaption_2", "subcaption_3", "ontology_caption")
    rows = [
        dict(zip(names, row, strict=True))
        for row in (
            ("melanoma", "Red. Blue.", "mine", "", "and mine", "mine too"),
            ("psoriasis", "Red. Blue.", "", "", "", ""),
        )
    ]
    manifest = Manifest.load(data(rows))
    done, made = views(manifest)
    assert done.column("subcaption_1") == ["mine", "Red."]
    assert done.column("subcaption_2") == [None, "Blue."]
    assert done.column("subcaption_3") == ["and mine", None]
    assert done.column("ontology_caption") == [
        "mine too",
        "A skin image diagnosed as inflammatory, psoriasis.",
    ]
    assert made.kept == {"subcaptions": 1, "ontology_caption": 1, "concept_caption": 0}
    again, _ = views(done)
    assert again.table.equals(done.table), "a second time changes nothing"
    anew, made = views(manifest, replace=True)
    assert anew.column("subcaption_1") == ["Red.", "Red."] and made.kept["subcaptions"] == 0
    assert "subcaption_3" not in anew.table.column_names


def test_text_views_without_an_ontology_the_column_is_used(data):
    rows = [
        {"label": "x", "caption": "Red.", "ontology": "skin > odd > x"},
        {"label": "x", "caption": "Red.", "ontology": "No ontology information"},
    ]
    done, made = views(Manifest.load(data(rows)), ontology=None)
    assert done.column("ontology_caption") == ["A skin image diagnosed as skin, odd, x.", None]
    assert made.unknown == {}
    # With one, what it lacks is message as the column has it, and counted.
    done, made = views(Manifest.load(data(rows)))
    assert done.column("ontology_caption")[0] == "A skin image diagnosed as skin, odd, x."
    assert made.unknown == {"x": {"n": 2, "nearest": None}}


def test_text_views_further_captions_and_listed_concepts(data):
    rows = [
        {
            "caption": "Red.",
            "more_captions": json.dumps(["Blue. Red.", "Scaly."]),
            "skin_concept": "Papule, scale",
        },
        {"caption": "Red.", "more_captions": "__import__('os')", "skin_concept": ""},
    ]
    done, _ = views(Manifest.load(data(rows)))
    assert [done.column(f"subcaption_{k}") for k in (1, 2, 3)] == [
        ["Red.", "Red."],
        ["Blue.", None],
        ["Scaly.", None],
    ]
    assert done.column("concept_caption") == [
        "On the skin one sees papule, scale, erythema, blue.",
        "On the skin one sees erythema.",
    ]


@pytest.mark.parametrize(
    ("label", "path", "expected"),
    [
        ("eczema, nummular eczema", [], ["inflammatory", "eczema", "nummular eczema"]),
        ("Mole", [], ["proliferations", "benign", "melanocytic", "melanocytic nevus"]),
        ("melanocytic", [], ["proliferations", "benign", "melanocytic"]),
        (
            "melanocytic",
            ["proliferations", "malignant"],
            ["proliferations", "malignant", "melanocytic"],
        ),
        ("nv", [], ["proliferations", "benign", "melanocytic", "melanocytic nevus"]),
        ("nummular_eczema", [], ["inflammatory", "eczema", "nummular eczema"]),
        (None, ["inflammatory", "psoriasis"], ["inflammatory", "psoriasis"]),
        ("plague", ["inflammatory", "psoriasis"], ["inflammatory", "psoriasis"]),
        ("plague", [], None),
        (None, [], None),
    ],
)
def test_find_disease_label_and_path_together(label, path, expected):
    tree = Ontology.from_tree(TREE)
    node = find_disease(tree, label, path)
    assert (None if node is None else tree.path(node)) == expected


# ---- the command


def test_command_makes_a_new_data_set(cli, data, tmp_path):
    root, out = data(), tmp_path / "out"
    before = {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    done = cli(
        "data", "subcaptions", root, "--out", out, "--ontology", tmp_path / "tree.json", "--json"
    )
    assert done.rc == 0, done.stderr
    answer = done.json()
    assert answer["views"] == {"subcaptions": 1, "ontology_caption": 2, "concept_caption": 1}
    assert answer["unknown"]["psoriasys"]["nearest"] == "psoriasis"
    assert "psoriasys" in done.stderr and "2 × empty caption (row 1, 3)" in done.stderr
    manifest = Manifest.load(out)
    assert manifest.column("subcaption_3")[0] == "Red."
    assert manifest.sha256() == answer["manifest_sha256"]
    assert (
        json.loads((out / "data.json").read_text())["manifest_sha256"] == answer["manifest_sha256"]
    )
    message = json.loads((out / "subcaptions.json").read_text())
    assert message["segmenter"].startswith("nupunkt ") and message["n_no_sentence"] == 1
    assert all(path.is_file() for path in manifest.paths())
    assert before == {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    again = cli("data", "subcaptions", root, "--out", out, "--json")
    assert again.rc == 2 and "already holds a data set" in again.json()["error"]["message"]


def test_command_writes_in_place_only_with_force(main, data):
    root = data()
    refused = main("data", "subcaptions", root, "--json")
    assert refused.rc == 2 and "--force" in refused.json()["error"]["hint"]
    assert not (root / "manifest.parquet").exists()
    dry = main("data", "subcaptions", root, "--dry-run", "--json")
    assert (
        dry.rc == 0
        and dry.json()["n_subcaptions"] == 3
        and not (root / "manifest.parquet").exists()
    )
    assert main("data", "subcaptions", root, "--force", "--json").rc == 0
    table = pq.read_table(root / "manifest.parquet")
    assert table.column("subcaption_1").to_pylist()[0] == "A 2.5 cm scaly plaque."
    first = (root / "manifest.parquet").read_bytes()
    assert main("data", "subcaptions", root, "--force", "--json").rc == 0
    assert (root / "manifest.parquet").read_bytes() == first


def test_command_a_full_disk_leaves_the_table_as_it_was(cli, data):
    rows = [
        {"label": "x", "caption": " ".join(f"Word {i} {j} {i * j}." for j in range(30))}
        for i in range(60)
    ]
    root = data(rows)
    assert cli("data", "convert", root, "--out", root.parent / "c", "--json").rc == 0
    before = (root.parent / "c" / "manifest.parquet").read_bytes()
    argv = ("data", "subcaptions", root.parent / "c", "--force", "--max", "30", "--json")
    done = cli(*argv, file_limit_kb=4)
    assert done.rc == 2 and done.json()["error"]["code"] == "no_space"
    assert (root.parent / "c" / "manifest.parquet").read_bytes() == before
    assert Manifest.load(root.parent / "c").n == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max", "0"], "--max 0 is not between 1 and 64"),
        (["--max", "65"], "--max 65 is not between"),
        (["--ontology", "none.json"], "ontology none.json does not exist"),
        (["--vocabulary", "none.txt"], "vocabulary none.txt does not exist"),
        (["--llm", "small"], "DERMAUDIT_LLM_URL is not set"),
    ],
)
def test_command_wrong_options_are_named(main, data, options, message, monkeypatch):
    monkeypatch.delenv("DERMAUDIT_LLM_URL", raising=False)
    done = main("data", "subcaptions", data(), "--force", *options, "--json")
    assert done.rc == 2 and message in done.json()["error"]["message"]


def test_command_out_is_checked_before_the_model_is_asked(main, data, model, tmp_path, monkeypatch):
    monkeypatch.setenv("DERMAUDIT_LLM_URL", model.url)
    out = tmp_path / "out"
    out.mkdir()
    argv = ("data", "subcaptions", data(), "--out", out, "--llm", "small", "--json")
    for name, text, message in (
        ("thesis.txt", "mine", "already holds files (thesis.txt)"),
        ("unfinished.json", '{"source": "/else"}', "unfinished work of another source"),
    ):
        (out / name).write_text(text)
        done = main(*argv)
        assert done.rc == 2 and message in done.json()["error"]["message"]
    assert model.asked == [] and not out.with_name("out.llm").exists()


def test_command_a_data_set_without_words(main, data, image_folder, tmp_path):
    root = data([{"label": "melanoma"}])
    done = main("data", "subcaptions", root, "--force", "--json")
    assert done.rc == 2 and "has no column 'caption'" in done.json()["error"]["message"]
    done = main(
        "data", "subcaptions", root, "--force", "--ontology", tmp_path / "tree.json", "--json"
    )
    assert done.rc == 0 and done.json()["views"]["ontology_caption"] == 1
    bare = image_folder("a.png", name="bare")
    done = main("data", "subcaptions", bare, "--out", tmp_path / "o", "--json")
    assert done.rc == 2 and "does not exist either" in done.json()["error"]["hint"]
    (root / "own.csv").write_text("image,caption\nimg/0.png,Red.\n")
    done = main("data", "subcaptions", root / "own.csv", "--force", "--json")
    assert done.rc == 2 and "a table of its own" in done.json()["error"]["message"]
    empty = data([{"label": "x", "caption": "y"}], name="empty")
    (empty / "manifest.csv").write_text("image,caption\n")
    done = main("data", "subcaptions", empty, "--force", "--json")
    assert done.rc == 2 and "has no rows" in done.json()["error"]["message"]


def test_command_a_killed_run_asks_the_model_no_caption_twice(cli, data, model, tmp_path):
    """The server refuses at the third caption; the same command again asks for that one only."""
    rows = [{"caption": f"A {word} papule. It itches."} for word in ("red", "blue", "pink")]
    root, refuse = data(rows), [True]
    model.replies = lambda caption, n: (
        (403, {}, "")
        if "pink" in caption and refuse[0]
        else "no JSON"
        if "blue" in caption
        else json.dumps([caption.replace("A ", "").split(".")[0] + "."])
    )
    env = {"DERMAUDIT_LLM_URL": model.url, "DERMAUDIT_LLM_KEY": "k", "no_proxy": "127.0.0.1"}
    command = ("data", "subcaptions", root, "--out", tmp_path / "out", "--llm", "small", "--json")
    stopped = cli(*command, env=env)
    assert stopped.rc == 2 and "HTTP 403" in stopped.json()["error"]["message"]
    assert not (tmp_path / "out").exists()
    refuse[0], n_asked = False, len(model.asked)
    done = cli(*command, env=env)
    assert done.rc == 0, done.stderr
    assert [c for c in model.asked[n_asked:] if "pink" not in c] == []
    llm = done.json()["llm"]
    assert llm["invalid"] == {"not JSON": 1} and llm["asked"] == 1 and llm["cached"] == 2
    assert Manifest.load(tmp_path / "out").column("subcaption_1") == [
        "red papule.",
        "A blue papule.",
        "pink papule.",
    ]
    assert (tmp_path / "out.llm").is_dir()
    third = cli(*command, "--force", env=env)
    assert third.rc == 0 and third.json()["llm"]["asked"] == 0


def test_command_help_loads_nothing_heavy(run_python):
    done = run_python(
        "-c",
        (
            "import sys; from dermaudit.cli import main; main(['data', 'subcaptions', '--help']);"
            "print([m for m in ('torch', 'nupunkt', 'pyarrow', 'numpy') if m in sys.modules])"
        ),
    )
    assert done.rc == 0 and done.stdout.strip().endswith("[]"), done.stdout


@pytest.mark.data
def test_the_real_table_with_the_real_ontology(main, data_dir, tmp_path):
    out = tmp_path / "set"
    flags = ("--out", out, "--link", "--where", "dx = 'df'", "--json")
    done = main("data", "convert", data_dir / "dermoscopy", *flags)
    assert done.rc == 0, done.stderr
    tree = data_dir / "peer-data" / "derm1m" / "ontology.json"
    answer = main("data", "subcaptions", out, "--force", "--ontology", tree, "--json").json()
    assert answer["views"]["ontology_caption"] == answer["n_images"] and answer["unknown"] == {}
    assert answer["kept"]["subcaptions"] == answer["n_images"], "the layout's own are kept"
