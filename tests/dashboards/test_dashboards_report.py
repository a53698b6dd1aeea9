"""The report: HTML that is whole, self-contained, repeatable, and says what the files say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pyarrow.parquet as pq
import pytest

from dermaudit.dashboards.exhibits.run_view import RunView
from dermaudit.dashboards.report import report
from dermaudit.errors import StaleArtifactError
from dermaudit.run.directory import open_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a document: checks that tags nest, keeps attributes, styles and visible words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.styles: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        where = {"script": self.scripts, "style": self.styles}.get(
            self.open[-1] if self.open else "", self.words
        )
        where.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture(scope="module")
def html(whole_run) -> str:
    return report.build(RunView.open(whole_run))


def test_topk_the_report_explains_when_its_latents_are_active(topk_run) -> None:
    text = Page(report.build(RunView.open(topk_run))).text
    assert "fires among the 4 largest of its row (a TopK has no threshold)" in text
    assert "above its threshold" not in text


@pytest.fixture(scope="module")
def document(html) -> Page:
    return Page(html)


def test_nothing_is_fetched(document) -> None:
    for tag, name, value in document.attributes:
        if name in ("src", "href", "data", "action", "poster", "srcset", "style"):
            assert not re.search(r"(https?:)?//", value) or value.startswith("data:"), (
                tag,
                name,
                value[:80],
            )
    assert not [s for s in document.styles if "@import" in s or "url(" in s]
    assert [a for a in document.attributes if a[0] == "script" and a[1] == "src"] == []


def test_every_picture_and_figure_has_words(document) -> None:
    pictures = sum(tag == "img" and name == "src" for tag, name, _ in document.attributes)
    alts = [value for tag, name, value in document.attributes if tag == "img" and name == "alt"]
    assert pictures == len(alts) > 20 and all(alts)
    labels = [value for tag, name, value in document.attributes if name == "aria-label"]
    assert len(labels) > 10 and all(labels)


def numbers(row: dict, keys: tuple[str, ...]) -> list[str]:
    return [f"{row[key]:.3f}" for key in keys if row[key] is not None]


def test_report_contains_the_numbers_of_the_files(whole_run, document) -> None:
    text = document.text
    for row in pq.read_table(whole_run / "labels.parquet").to_pylist():
        wanted = numbers(
            row,
            (
                "auprc",
                "auprc_lo",
                "auprc_hi",
                "auroc",
                "auroc_lo",
                "auroc_hi",
                "probe_auprc",
                "prevalence",
                "lift_share",
                "lift_share_lo",
                "lift_share_hi",
            ),
        )
        assert [n for n in wanted if n not in text] == []
        assert row["reason"] is None or row["reason"] in text
    for row in pq.read_table(whole_run / "bottlenecks.parquet").to_pylist():
        assert [n for n in numbers(row, ("auroc", "lo", "hi")) if n not in text] == []
    for row in pq.read_table(whole_run / "concepts.parquet").to_pylist():
        assert [n for n in numbers(row, ("z", "q", "label_auprc")) if n not in text] == []
        assert f"{100 * row['frequency']:.1f} %" in text
    figures = json.loads((whole_run / "suppression" / "ruler.json").read_text())
    for key in (
        "cross_group_auroc_before",
        "cross_group_auroc_after",
        "oracle",
        "auroc_before",
        "auroc_after",
        "clean_auroc_delta",
        "worst_group_before",
        "worst_group_fixed",
        "worst_group_prevalence",
        "identity_share",
    ):
        assert f"{figures[key]:.3f}" in text, key
    assert f"{max(figures['random_changes']):.3f}" in text
    assert figures["insertion_residual_reason"] in text


def test_report_contains_warnings_and_limits(document) -> None:
    text = document.text
    for words in (
        "Research use, not a medical device",
        "Licence of the images: CC0-1.0",
        "What could not be measured, and why",
        "Do not use this run if",
        "n too small",
        "98 of them are beaten",
        "mel missed after suppression",
    ):
        assert words in text, words


def test_markup_in_labels_is_escaped(html, document) -> None:
    assert "<b>nv</b>" in document.text
    assert "<b>" not in html.split("</head>")[1]


def test_a_hostile_name_is_escaped_everywhere(own_run) -> None:
    """A run, a model and a concept name that close a tag, an attribute and a script."""
    hostile = "\"'></title></script><script>alert(1)</script>{{ 7 * 7 }}"
    run = open_run(own_run)
    run.meta["name"], run.meta["model"]["name"] = hostile, hostile
    run.save()
    view = RunView.open(own_run)
    view.concepts[0]["name"] = hostile
    html = report.build(view)
    assert "<script>alert" not in html and "49" not in Page(html).text.split("Concepts")[0]
    page = Page(html)  # the tags still nest
    assert f"Audit of {hostile}" in page.text and f"Model {hostile}" in page.text
    assert sum(hostile in words for words in page.words) >= 5


def test_figures_are_valid_plotly(document) -> None:
    specs = [re.match(r'draw\("figure-\d+", (.*)\);$', s, re.S) for s in document.scripts]
    found = [json.loads(m.group(1)) for m in specs if m]
    assert len(found) >= 10
    for spec in found:
        assert go.Figure(spec).data  # plotly's own validation


def test_same_run_same_bytes(whole_run, html) -> None:
    assert report.build(RunView.open(whole_run)) == html


def test_report_is_a_stage_of_the_run(own_run) -> None:
    path, size = report.write_report(own_run)
    assert path == own_run / "report" / "index.html" and path.stat().st_size == size
    run = open_run(own_run)
    record = run.require("report")
    assert set(record["upstream"]) == set(run.meta["stages"]) - {"report"}
    before = path.stat().st_mtime_ns
    report.write_report(own_run)
    assert path.stat().st_mtime_ns == before  # nothing changed: not written again
    path.write_text("altered")
    report.write_report(own_run)
    assert path.stat().st_size == size


def test_a_report_elsewhere_is_not_entered(own_run, tmp_path) -> None:
    path, size = report.write_report(own_run, tmp_path / "sent.html")
    assert path.stat().st_size == size and "report" not in open_run(own_run).meta["stages"]


def test_run_without_labels(unlabelled_run) -> None:
    text = Page(report.build(RunView.open(unlabelled_run))).text
    assert text.count("no labels: not measured") >= 4
    assert "no recipe was made in this run" in text
    assert "Licence of the images: not stated" in text
    assert "Map of latent" not in text and "Words that fit best" in text


@pytest.mark.parametrize(
    "name",
    [
        "suppression/ruler.json",
        "recipes/ruler.recipe.json",
        "embeddings/visual.pooled/shard-000000.safetensors",
        "concepts.parquet",
        "labels.parquet",
    ],
)
@pytest.mark.parametrize("how", ["altered", "removed"])
def test_report_refuses_a_file_that_was_changed_after_its_stage(
    own_run, name, how, tmp_path
) -> None:
    path = own_run / name
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    for out in (None, tmp_path / "elsewhere.html"):
        with pytest.raises(StaleArtifactError, match=f"{path.name} is missing or was altered"):
            report.write_report(own_run, out)
    assert not (own_run / "report" / "index.html").exists()


def test_run_whose_suppression_is_damaged(own_run) -> None:
    (own_run / "suppression" / "ruler.parquet").write_bytes(b"gone")
    text = Page(report.build(RunView.open(own_run))).text
    assert "was altered after the recipe:ruler stage" in text and "0.712" in text


def test_run_whose_images_table_is_damaged_is_refused(own_run) -> None:
    (own_run / "images.parquet").write_bytes(b"gone")
    with pytest.raises(StaleArtifactError, match=r"images\.parquet"):
        RunView.open(own_run)
