"""`dermaudit suppress` as a user meets it, and the Python form of the same."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from dermaudit.concepts.vocabulary.vocabulary import Vocabulary

pytestmark = pytest.mark.slow


def table_of(path):
    """The rows of a CSV file."""
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.fixture(scope="module")
def concept(demo) -> str:
    """An artifact that the demo has a recipe for."""
    names = sorted(p.name.removesuffix(".recipe.json") for p in (demo.run / "recipes").iterdir())
    assert names, "the demo found no artifact to suppress"
    return "ruler" if "ruler" in names else names[0]


def test_the_runs_own_images(cli, demo, concept, tmp_path):
    out = tmp_path / "predictions.csv"
    done = cli(
        "suppress", "--concept", concept, "--run", demo.run, "--out", out, "--json", timeout=300
    )
    assert done.rc == 0, done.stderr
    summary = done.json()
    rows = table_of(out)
    assert len(rows) == demo.result["n_images"] == summary["n_images"]
    assert sum(row["fired"] == "1" for row in rows) == summary["n_fired"] > 0
    for row in rows:
        before = [float(v) for k, v in row.items() if k.startswith("p:")]
        after = [float(v) for k, v in row.items() if k.startswith("p_after:")]
        assert sum(before) == pytest.approx(1, abs=1e-4) and sum(after) == pytest.approx(
            1, abs=1e-4
        )
        if row["fired"] == "0":
            assert before == after and row["flipped"] == "0"
        assert row["flipped"] == str(int(row["top1_before"] != row["top1_after"]))
    again = cli("suppress", "--concept", concept, "--run", demo.run, "--out", out)
    assert again.rc == 2 and "--force" in again.stderr


def test_a_folder_with_a_broken_image(cli, demo, concept, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for path in sorted((demo.data / "images").iterdir())[:5]:
        shutil.copy(path, folder)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    out = tmp_path / "p.csv"
    done = cli(
        "suppress",
        "--concept",
        concept,
        "--run",
        demo.run,
        "--images",
        folder,
        "--out",
        out,
        timeout=300,
    )
    assert done.rc == 0, done.stderr
    assert len(table_of(out)) == 5
    assert "broken.png" in done.stderr


def test_dry_run_writes_nothing(cli, demo, concept, tmp_path):
    out = tmp_path / "p.csv"
    done = cli(
        "suppress", "--concept", concept, "--run", demo.run, "--out", out, "--dry-run", timeout=300
    )
    assert done.rc == 0 and not out.exists()
    assert "would change" in done.stderr


def test_an_unknown_concept_offers_the_nearest(cli, demo, tmp_path):
    done = cli(
        "suppress", "--concept", "rular", "--run", demo.run, "--out", tmp_path / "p.csv", "--json"
    )
    assert done.rc == 2
    assert done.json()["error"]["message"] == "unknown concept 'rular': did you mean 'ruler'?"


def test_a_concept_that_nothing_supports_exits_3_with_scores(cli, demo, tmp_path):
    # Which words stay without a latent differs from fit to fit: ask the run, not the author.
    rows = pq.read_table(demo.run / "concepts.parquet").to_pylist()
    named = {row["name"] for row in rows if row["site"] == "visual.pooled"}
    labelled = set(demo.result["concepts"])
    bare = [c.id for c in Vocabulary.load().concepts if c.id not in named | labelled]
    assert bare, "every word of the vocabulary names a latent"
    out = tmp_path / "p.csv"
    done = cli(
        "suppress", "--concept", bare[0], "--run", demo.run, "--out", out, "--json", timeout=300
    )
    assert done.rc == 3, done.stderr
    assert not out.exists()
    error = done.json()["error"]
    assert error["code"] == "no_evidence"
    assert f"the concept {bare[0]} has no labels in this run" in error["message"]


def test_a_tampered_recipe_is_refused(cli, demo, concept, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    path = run / "recipes" / f"{concept}.recipe.json"
    raw = json.loads(path.read_text())
    raw["body"]["latents"] = [{"latent": 0, "why": {}}]
    path.write_text(json.dumps(raw))
    done = cli(
        "suppress", "--concept", concept, "--run", run, "--out", tmp_path / "p.csv", timeout=300
    )
    assert done.rc == 2 and "altered" in done.stderr


def test_the_python_form_agrees_with_the_table(cli, demo, concept, tmp_path):
    import dermaudit

    out = tmp_path / "p.csv"
    assert (
        cli("suppress", "--concept", concept, "--run", demo.run, "--out", out, timeout=300).rc == 0
    )
    rows = table_of(out)[:6]
    model = dermaudit.load_model("phantom-vit")
    run = dermaudit.open_run(demo.run)
    before = {k: v.clone() for k, v in model.model.state_dict().items()}
    with run.suppress(concept, model) as m:
        found = m.predict([demo.data / row["image"] for row in rows])
    for i, row in enumerate(rows):
        wanted = [float(row[f"p_after:{c}"]) for c in found.classes]
        assert np.allclose(found.p_after[i], wanted, atol=2e-5)
    assert all((before[k] == v).all() for k, v in model.model.state_dict().items())


def test_a_run_of_another_model_is_refused(demo, concept):
    import open_clip

    import dermaudit
    from dermaudit.errors import ForeignArtifactError
    from dermaudit.towers import HookedTower

    mine = dermaudit.load_model("phantom-vit")
    other = open_clip.model.CLIP(
        16,
        {"image_size": 96, "patch_size": 32, "width": 32, "layers": 1, "head_width": 16},
        {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    )
    tower = HookedTower(
        other, tokenizer=None, preprocess_cfg=mine.preprocess_config, name="other", folder=None
    )
    with (
        pytest.raises(ForeignArtifactError, match="another model"),
        dermaudit.open_run(demo.run).suppress(concept, tower),
    ):
        pass
