"""`concepts teach` without labels: the sheet, the direct fit, drawn artifacts, and the evidence of their recipes."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from concept_world import TextTower, basis, world, write_run

from dermaudit.concepts.suppression import stage as recipes
from dermaudit.concepts.teaching import by_ranking
from dermaudit.concepts.teaching.sheet import candidates
from dermaudit.sae import LatentSuppressor, load_sae

N = 1600


@pytest.fixture(scope="module")
def w():
    return world(N)


@pytest.fixture
def tower(monkeypatch):
    found = TextTower({"ruler": basis()[0]})
    monkeypatch.setattr(found, "tokenizer", object(), raising=False)
    monkeypatch.setattr(by_ranking, "tower_of", lambda run, threads: found)
    monkeypatch.setattr(recipes, "tower_of", lambda run, threads: None)  # no image is drawn on
    return found


@pytest.fixture
def run(tmp_path, w):
    return write_run(tmp_path / "run", w, sha256=[f"{i:064d}" for i in range(w.n)])


@pytest.fixture
def drawn(monkeypatch, w):
    """The artifact drawn onto an image moves its embedding along the planted direction."""
    rows = (w.x + 0.5 * basis()[0]).astype(np.float32)
    rows[(w.splits == "test") | (w.y == 1)] = np.nan
    monkeypatch.setattr(by_ranking, "drawn_rows", lambda *args: rows)
    return rows


def teach(main, run, *flags, **given):
    return main("concepts", "teach", *flags, "--run", run.path, "--json", **given)


def filled(path, values) -> list[dict[str, str]]:
    """Fill in the column `present` by {image: 0, 1 or ""} or a function of the image."""
    with path.open() as file:
        entries = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, entries[0].keys())
        writer.writeheader()
        for entry in entries:
            entry["present"] = values(entry["image"])
            writer.writerow(entry)
    return entries


def row_of(image: str) -> int:
    return int(image.removesuffix(".png"))


def test_candidates_are_spread_over_both_parts_of_the_ranking():
    score = np.random.default_rng(0).permutation(300).astype(float)
    chosen, proposed = candidates(score, 20)
    assert proposed == 10 and len(set(chosen)) == 20
    # By hand: places 0, 11, …, 99 of the highest hundred, then 100, 122, …, 299 of the rest.
    assert score[chosen[0]] == 299 and score[chosen[9]] == 200
    assert score[chosen[10]] == 199 and score[chosen[19]] == 0
    few, _ = candidates(np.arange(30.0), 200)
    assert sorted(few) == list(range(30))


def test_a_sheet_is_written_confirmed_and_taught(main, run, w, tower, tmp_path):
    (run.path / "nowhere").mkdir()
    for i in range(w.n):
        (run.path / "nowhere" / f"{i}.png").touch()
    done = teach(main, run, "ruler", "--from-text", cwd=tmp_path)
    assert done.rc == 0, done.stderr
    sheet = tmp_path / "ruler.candidates.csv"
    assert done.json()["candidates"] == 50 and done.json()["sheet"] == sheet.name
    assert not (run.path / "concept_latents").exists()  # nothing is fitted yet
    again = "dermaudit concepts teach ruler --from-sheet ruler.candidates.csv"
    assert again in done.stderr
    # It is not overwritten: a person may have begun to fill it in.
    refused = teach(main, run, "ruler", "--from-text", cwd=tmp_path)
    assert refused.rc == 2 and again in refused.json()["error"]["hint"]

    # Half filled in: refused with the counts, and the same command goes on later.
    first = iter(range(50))
    filled(sheet, lambda image: int(w.a[row_of(image)]) if next(first) < 8 else "")
    few = teach(main, run, "ruler", "--from-sheet", sheet)
    assert few.rc == 3 and "too few images" in few.json()["error"]["message"]
    entries = filled(sheet, lambda image: int(w.a[row_of(image)]))
    assert all(w.y[row_of(e["image"])] == 0 for e in entries)
    assert all(w.splits[row_of(e["image"])] != "test" for e in entries)
    proposed = np.array([int(e["proposed"]) for e in entries])
    truth = np.array([w.a[row_of(e["image"])] for e in entries])
    assert proposed.sum() == 25 and truth[proposed == 1].mean() > 0.9
    taught = teach(main, run, "ruler", "--from-sheet", sheet)
    assert taught.rc == 0, taught.stderr
    assert taught.json()["n_with"] == truth.sum() and taught.json()["auroc"] > 0.9
    known = json.loads((run.path / "concept_latents" / "ruler" / "provenance.json").read_text())
    assert known["source"] == "sheet, confirmed" and len(known["images"]) == 50
    from dermaudit.run.directory import open_run

    assert f"--from-sheet {sheet}" in open_run(run.path).remake_command("teach:ruler")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,present\n3.png,maybe\n", "line 2: present is 'maybe'"),
        ("image,present\nother.png,1\n", "other.png is no image of the run"),
        ("image,score\n3.png,1\n", "has no column present"),
        ("image,present\n{mel},1\n", "is a test image or has the label mel"),
        ("image,present\n{plain},1\n{plain},0\n", "is given as 0 and as 1"),
    ],
)
def test_a_wrong_sheet_is_one_sentence(main, run, w, tmp_path, text, message):
    usable = (w.y == 0) & (w.splits != "test")
    sheet = tmp_path / "s.csv"
    names = {"plain": f"{np.flatnonzero(usable)[0]}.png", "mel": f"{np.flatnonzero(w.y)[0]}.png"}
    sheet.write_text(text.format(**names))
    done = teach(main, run, "ruler", "--from-sheet", sheet)
    assert done.rc == 2 and message in done.json()["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--direct",), "--direct needs --from-text"),
        (("--sheet", "s.csv"), "--sheet needs --from-text"),
        (("--from-text", "--direct", "--sheet", "s.csv"), "--direct writes no sheet"),
        (("--from-text", "--labels", "artifact:ruler"), "two sources"),
        (("--drawn", "--from-sheet", "s.csv"), "two sources"),
        (("--from-sheet", "missing.csv"), "cannot be read"),
    ],
)
def test_flags_that_contradict_each_other(main, run, flags, message):
    done = teach(main, run, "ruler", *flags)
    assert done.rc == 2 and message in done.json()["error"]["message"]


def test_words_and_drawing_are_needed(main, run, tower):
    done = teach(main, run, "sticker", "--from-text", "--direct")
    assert done.rc == 2 and "unknown concept of the vocabulary" in done.json()["error"]["message"]
    done = teach(main, run, "sticker", "--drawn")
    assert done.rc == 2 and "artifact that can be drawn" in done.json()["error"]["message"]
    tower.tokenizer = None
    done = teach(main, run, "ruler", "--from-text", "--direct")
    assert done.rc == 3 and "no text encoder" in done.json()["error"]["message"]


@pytest.mark.parametrize(
    ("flags", "source", "files"),
    [
        (("--from-text", "--direct"), "text, unconfirmed", {"text_direction"}),
        (("--drawn",), "drawn artifacts, unconfirmed", {"drawn", "drawn_row"}),
        (
            ("--from-text", "--drawn", "--direct"),
            "text and drawn artifacts, unconfirmed",
            {"text_direction", "drawn", "drawn_row"},
        ),
    ],
)
def test_a_ranking_is_taught_and_its_recipe_is_fitted_in_each_fold(
    main, run, w, tower, drawn, flags, source, files
):
    from safetensors.numpy import load_file

    done = teach(main, run, "ruler", *flags)
    assert done.rc == 0, done.stderr
    assert done.json()["source"] == source and "auroc" not in done.json()
    folder = run.path / "concept_latents" / "ruler"
    assert load_file(folder / "ranking.safetensors").keys() == files
    known = json.loads((folder / "provenance.json").read_text())
    used = {int(entry["sha256"]): entry["present"] for entry in known["images"]}
    usable = np.flatnonzero((w.y == 0) & (w.splits != "test"))
    assert known["source"] == source and set(used) == set(usable)
    assert sum(v == 1 for v in used.values()) == len(usable) // 10
    assert teach(main, run, "ruler", *flags).json() == done.json()

    made = main("recipe", "make", "--concept", "ruler", "--run", run.path, "--json")
    assert made.rc == 0, made.stderr
    figures = made.json()["suppression"]["ruler"]
    assert figures["method"] == known["ranked_by"] and figures["random_beaten"] >= 95
    assert figures["ci"][0] > 0
    # No row is left out: those that a fold scores are not fitted on in it.
    assert figures["n_scored"] == int((w.splits != "train").sum())
    shown = main("recipe", "show", "ruler", "--run", run.path)
    assert "fitted without labels, and no person confirmed" in shown.stdout + shown.stderr
    # The latent of the recipe is the one that was taught.
    from dermaudit.concepts.recipes.recipe import load_recipe
    from dermaudit.run.directory import open_run

    x = torch.from_numpy(w.x)
    recipe = load_recipe(open_run(run.path), "ruler")
    taught = LatentSuppressor(load_sae(folder), [0]).apply_to(x).x
    torch.testing.assert_close(
        LatentSuppressor(recipe.sae(), [0]).apply_to(x).x, taught, rtol=1e-4, atol=1e-5
    )


def test_without_labels_of_the_concept_its_recipe_is_refused(main, tmp_path, w, tower):
    run = write_run(
        tmp_path / "r", w, sha256=[f"{i:064d}" for i in range(w.n)], **{"artifact:ruler": None}
    )
    assert teach(main, run, "ruler", "--from-text", "--direct").rc == 0
    made = main("recipe", "make", "--concept", "ruler", "--run", run.path, "--json")
    assert made.rc == 3 and "has no labels in this run" in made.json()["error"]["message"]
    assert not (run.path / "recipes").exists()
