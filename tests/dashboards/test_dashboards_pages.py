"""Every page of the explorer, run by Streamlit's own test driver; and what a bad run looks like."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest
from toy_run import PATCHES, POOLED

import dermaudit.dashboards
from dermaudit.concepts.recipes.recipe import load_recipe
from dermaudit.dashboards.exhibits import image, latents
from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.run.directory import Run, open_run

APP = Path(dermaudit.dashboards.__file__).parent / "app" / "app.py"


@pytest.fixture
def page(monkeypatch):
    """`page("concepts", run, latent="…")`: one page after its run."""

    def run(name: str, path: Path, **query: str) -> AppTest:
        monkeypatch.setenv("DERMAUDIT_RUN", str(path))
        at = AppTest.from_string(
            f"from dermaudit.dashboards.pages import {name}, page\npage.open_page({name}.PAGE)\n",
            default_timeout=60,
        )
        for key, value in query.items():
            at.query_params[key] = value
        at.run()
        assert not at.exception, at.exception
        return at

    return run


def shown(at: AppTest) -> str:
    """Everything a page says: HTML pieces, Markdown, headings, warnings and notes."""
    parts = [element.proto.body for element in at.get("html")]
    for kind in (at.markdown, at.title, at.header, at.subheader, at.warning, at.info):
        parts += [element.value for element in kind]
    return "\n".join(parts)


def test_app_opens_on_the_overview(whole_run, monkeypatch) -> None:
    monkeypatch.setenv("DERMAUDIT_RUN", str(whole_run))
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not at.exception
    assert [title.value for title in at.title] == ["Overview"]
    assert "Research use, not a medical device" in shown(at)


def test_every_choice_in_a_select_box_counts(page, whole_run) -> None:
    at = page("images", whole_run, split="val")
    assert at.selectbox[0].value == "val"
    for split in ("train", "test", "val", "all"):
        at.selectbox[0].select(split).run()
        assert not at.exception
        assert at.selectbox[0].value == split
        linked = at.query_params.get("split")
        assert linked in ([split], split) if split != "all" else linked is None


def test_every_choice_in_the_segmented_control_counts(page, whole_run) -> None:
    at = page("concepts", whole_run)
    for kind in ("named", "unnamed", "all"):
        at.session_state["widget:show"] = kind
        at.run()
        assert not at.exception
        assert at.session_state["kept:show"] == kind


def test_a_filter_is_kept_when_the_page_is_left_and_opened_again(page, whole_run) -> None:
    at = page("images", whole_run)
    at.selectbox[0].select("test").run()
    del at.query_params["split"]
    at.session_state["page"] = "image"  # another page was open in between
    at.run()
    assert at.selectbox[0].value == "test"


def test_overview(page, whole_run) -> None:
    at = page("overview", whole_run)
    text = shown(at)
    assert "ruler" in text and "0.417" in text  # the FVU of the SAEs
    assert "n too small: 2 of 48 labelled test images" in text
    assert "mel leans on ruler; there is a recipe for ruler; not measured: ink." in text
    assert "drawing ruler moves the prediction by 0.0021 only" in text
    assert "truncated" not in text and "1 images" in text
    assert "fewer than 30" in text or "skin tone" in text
    assert "<b>nv</b>" not in text and "&lt;b&gt;nv&lt;/b&gt;" in text
    assert len(at.get("plotly_chart")) == 4
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))


def test_concepts_table_and_filters(page, whole_run) -> None:
    view = RunView.open(whole_run)
    everything = latents.concept_rows(view)
    at = page("concepts", whole_run)
    assert len(at.dataframe[0].value) == len(everything) == len(view.concepts)
    for kind in ("unnamed", "artifact"):
        at = page("concepts", whole_run, show=kind)
        rows = latents.concept_rows(view, kind)
        assert 0 < len(rows) < len(everything)
        assert len(at.dataframe[0].value) == len(rows)
    assert all(row["name"] is None for row in latents.concept_rows(view, "unnamed"))
    assert "No latent fits this filter." in shown(page("concepts", whole_run, find="zebra"))


def test_concept_page_of_a_patch_site(page, whole_run) -> None:
    row = next(r for r in RunView.open(whole_run).concepts if r["site"] == PATCHES and r["name"])
    at = page("concept", whole_run, latent=f"{PATCHES}/{row['latent']}")
    text = shown(at)
    assert row["name"] in at.title[0].value
    assert (
        text.count("data:image/webp") == min(24, row["n_active"]) + 12
    )  # top images; 6 pairs of map and plain
    assert f"Map of latent {row['latent']} over image" in text and "da-scale" in text
    assert 'alt="Dermoscopic image' in text
    assert [h.value for h in at.header] == [
        "Images in which it is most active",
        "Activations",
        "Words that fit best",
        "How well it ranks labelled images",
        "Where in the image it is active",
    ]


def test_concept_page_of_the_pooled_site_has_no_map(page, whole_run) -> None:
    at = page("concept", whole_run, latent=f"{POOLED}/0")
    assert any("no patches" in info.value for info in at.info)
    assert "On validation images, the best latent of the run for: **ruler**" in shown(at)


@pytest.mark.parametrize("link", ["nonsense", f"{POOLED}/9999", "visual.nowhere/1"])
def test_concept_page_of_a_wrong_link_is_a_sentence(page, whole_run, link) -> None:
    assert len(page("concept", whole_run, latent=link).warning) == 1


def test_images_are_browsed_24_a_page(page, whole_run) -> None:
    at = page("images", whole_run)
    assert shown(at).count("data:image/webp") == 24
    few = page("images", whole_run, split="val", label="mel")
    view = RunView.open(whole_run)
    assert shown(few).count("data:image/webp") == int(
        ((view.splits == "val") & (view.labels == "mel")).sum()
    )


def test_image_page(page, whole_run) -> None:
    view = RunView.open(whole_run)
    row = int((view.splits == "test").argmax())
    at = page("image", whole_run, row=str(row))
    text = shown(at)
    assert at.title[0].value == f"Image {row}"
    p = view.head().probs(view.pooled[row : row + 1])[0]
    tables = [frame.value for frame in at.dataframe]
    assert any(
        sorted(t["probability"]) == pytest.approx(sorted(p)) for t in tables if "probability" in t
    )
    assert "n too small to cross-fit: 2 images with y=1 a=1" in text  # ink: refused


def test_image_page_shows_one_classifier_and_leads_to_the_other(page, whole_run) -> None:
    view = RunView.open(whole_run)
    row = next(r for r in view.suppressed_rows("ruler"))
    change = f"p {row['p_before']:.3f} → {row['p_after']:.3f}"
    at = page("image", whole_run, row=str(row["row"]))
    assert change not in shown(at) and "head (label)" in shown(at)
    assert f"suppression?concept=ruler&amp;row={row['row']}" in shown(at)
    of_recipe = page("suppression", whole_run, concept="ruler", row=str(row["row"]))
    assert change in shown(of_recipe) and "It is not the run&#x27;s head" in shown(of_recipe)


def test_wrong_predictions_are_marked(page, whole_run) -> None:
    view = RunView.open(whole_run)
    predicted = np.array(view.head().classes)[view.head().probs(view.pooled).argmax(1)]
    wrong, right = (int(np.argmax((predicted != view.labels) == w)) for w in (True, False))
    marked = shown(page("image", whole_run, row=str(wrong)))
    assert "✗ wrong, the label is" in marked and "✗ predicted" in marked
    assert "✓ right" in shown(page("image", whole_run, row=str(right)))
    grid = shown(page("images", whole_run)).split("da-grid", 1)[1]
    assert grid.count("✗ predicted") == int((predicted != view.labels)[:24].sum()) * 2


@pytest.mark.parametrize("row", ["-1", "120", "x"])
def test_image_page_of_a_wrong_link_is_a_sentence(page, whole_run, row) -> None:
    at = page("image", whole_run, row=row)
    assert "there is no image" in at.warning[0].value


def test_suppression_page(page, whole_run) -> None:
    at = page("suppression", whole_run)
    text = shown(at)
    assert at.selectbox[0].value == "ruler"
    assert "98 of them are beaten" in text and "0.784" in text and "n too small" in text
    cases = [r for r in RunView.open(whole_run).suppressed_rows("ruler") if r["flipped"]]
    assert text.count("data:image/webp") == len(cases)
    assert text.index("mel missed after suppression") < text.index("false alarm gone")


def test_suppression_page_says_why_there_is_no_recipe(page, own_run) -> None:
    """Of a refused suppression all figures are shown, but no latents of a recipe."""
    run = open_run(own_run)
    path = run.files.effects("ruler")
    reason = "it beats 12 of 100 random latents (at least 95 are needed)"
    path.write_text(json.dumps({**json.loads(path.read_text()), "refused": [reason]}))
    run.files.recipe("ruler").unlink()
    files = [path, run.files.suppressed_images("ruler")]
    run.record("recipe:ruler", {}, files, upstream=["images"])
    at = page("suppression", own_run, concept="ruler")
    assert [e.value for e in at.error] == [f"No recipe is written: {reason}."]
    assert "Suppressed latents" not in [h.value for h in at.header] and "0.784" in shown(at)


def test_suppression_page_shows_what_was_not_measured(page, whole_run) -> None:
    assert "n too small to cross-fit" in shown(page("suppression", whole_run, concept="ink"))
    by_name = page("suppression", whole_run, concept="hair")
    assert "nothing can depend on it; the recipe was written because: a try" in shown(by_name)
    assert "Suppressed latents" in [h.value for h in by_name.header]


@pytest.mark.parametrize("name", ["overview", "concepts", "images", "suppression"])
def test_run_without_labels(page, unlabelled_run, name) -> None:
    text = shown(page(name, unlabelled_run))
    if name == "overview":
        assert "no labels: not measured" in text
    if name == "images":
        one = shown(page("image", unlabelled_run, row="70"))
        assert "Nearest images" in one and "Concepts in this image" in one


@pytest.mark.parametrize("name", ["overview", "concepts", "images", "suppression"])
def test_empty_run_is_a_sentence(page, tmp_path, name) -> None:
    Run.create(tmp_path / "empty")
    assert "has no images stage yet" in page(name, tmp_path / "empty").warning[0].value


def test_no_run_is_reported_in_one_sentence(page, tmp_path) -> None:
    assert "is not a run" in page("overview", tmp_path / "nothing").warning[0].value


def test_damaged_names_are_reported_and_the_rest_is_shown(page, own_run) -> None:
    (own_run / "concepts.parquet").write_bytes(b"PAR1 no longer")
    assert "was altered after the name stage" in page("concepts", own_run).warning[0].value
    overview = page("overview", own_run)
    assert "was altered after the name stage" in shown(overview)
    assert "0.417" in shown(overview)
    assert shown(page("images", own_run)).count("data:image/webp") == 24
    one = shown(page("image", own_run, row="70"))
    assert "was altered after the name stage" in one and ("✓ right" in one or "✗ wrong" in one)
    assert "What each recipe changes" in one and "cosine" in one


def test_run_json_that_is_not_json_is_a_sentence(page, own_run) -> None:
    (own_run / "run.json").write_text("{", encoding="utf-8")
    assert "not valid JSON" in page("overview", own_run).warning[0].value


def test_stale_names_are_refused(page, own_run) -> None:
    run = Run(own_run, RunView.open(own_run).run.meta)
    run.meta["stages"]["embed"]["outputs"]["embeddings/new"] = "0" * 64
    run.save()
    assert "is stale" in page("concepts", own_run).warning[0].value


def test_pages_of_a_topk_run(page, topk_run) -> None:
    where = "among the 4 largest of its row (a TopK has no threshold)"
    assert where in shown(page("concept", topk_run, latent=f"{PATCHES}/0"))
    view = RunView.open(topk_run)
    # An image in which the ruler's recipe changes something.
    row = int(np.argmax((view.codes(POOLED).column(0) > 0) & (view.splits == "test")))
    at = page("image", topk_run, row=str(row))
    assert where in shown(at) and not at.warning
    recipe = load_recipe(view.run, "ruler")
    edited = image.suppressor(view, recipe).apply_to(torch.from_numpy(view.pooled))
    after = view.head().probs(edited.x.numpy())[row]
    found = {c.concept: c for c in image.recipe_changes(view, row)}["ruler"]
    assert found.after == pytest.approx(after[view.head().classes.index(found.label)])
    assert found.edited is True and found.before != found.after
    assert "embedding changed" in shown(at) and "needs the model" not in shown(at)


def test_pages_load_no_model_library_and_torch_only_for_weights(whole_run, run_python) -> None:
    code = (
        "import os, sys\nfrom streamlit.testing.v1 import AppTest\n"
        f"os.environ['DERMAUDIT_RUN'] = {str(whole_run)!r}\n"
        "def load(name, **query):\n"
        "    code = f'from dermaudit.dashboards.pages import {name}, page\\npage.open_page({name}.PAGE)'\n"
        "    at = AppTest.from_string(code, default_timeout=60)\n"
        "    for key, value in query.items(): at.query_params[key] = value\n"
        "    at.run()\n    assert not at.exception, at.exception\n"
        "for name in ('overview', 'concepts', 'images', 'suppression', 'training'): load(name)\n"
        "print('torch' in sys.modules)\n"
        f"load('concept', latent='{PATCHES}/0')\nload('image', row='70')\n"
        "print([m for m in ('open_clip', 'sae_lens', 'transformer_lens') if m in sys.modules])\n"
    )
    done = run_python("-c", code, cwd=Path.cwd(), env={"OMP_NUM_THREADS": "1"})
    assert done.rc == 0, done.stderr
    assert done.stdout.strip().splitlines()[-2:] == ["False", "[]"]
    assert "DERMAUDIT_RUN" not in os.environ or os.environ["DERMAUDIT_RUN"] != str(whole_run)


@pytest.mark.parametrize(("label", "named"), [("ruler", False), ("hair", True), (None, False)])
def test_a_wrong_name_is_marked_and_never_contradicted(label, named) -> None:
    from dermaudit.dashboards.exhibits.run_view import latent_title

    row = {
        "name": "ruler",
        "type": "artifact",
        "z": 5.0,
        "q": 0.01,
        "p_correct": 0.93,
        "named_by": "words",
        "one_of": None,
        "n_active": 3,
        "frequency": 0.1,
        "wrong": True,
        "label_concept": label,
    }
    text = latents.describe(row, [], 30)
    assert "The name is wrong on test images" in text
    assert "ranks **ruler** best" not in text
    assert ("On train and validation images it ranks **hair** best." in text) == named
    assert latent_title(row) == "ruler ⚠ wrong on test"
    assert latent_title({**row, "wrong": False}) == "ruler"
    assert latent_title({**row, "wrong": None}) == "ruler"
    assert "right with a probability of 93%" in text


def test_a_set_and_a_verdict_are_shown_instead_of_a_name() -> None:
    from dermaudit.dashboards.exhibits.run_view import latent_title

    row = {"name": None, "p_correct": 0.91, "n_active": 3, "frequency": 0.1, "wrong": None}
    pair = {
        **row,
        "verdict": "one of a set",
        "one_of": ["ink", "hair"],
        "reason": "one of: ink, hair",
    }
    assert latent_title(pair) == "ink or hair"
    text = latents.describe(pair, [], 30)
    assert "One of a set: **ink or hair**, among them with a probability of 91%." in text
    other = {
        **row,
        "verdict": "diagnosis-like",
        "one_of": None,
        "reason": "the diagnosis mel explains it best",
    }
    assert latent_title(other) == "diagnosis-like"
    assert "Diagnosis-like: the diagnosis mel explains it best." in latents.describe(other, [], 30)
