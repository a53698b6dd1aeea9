"""The Training page, run by Streamlit's own test driver, its figures, and `explore --log`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import dermaudit
import dermaudit.dashboards
from dermaudit.dashboards.exhibits import training
from dermaudit.dashboards.exhibits.training_log import read_logs
from dermaudit.errors import EvidenceError
from dermaudit.run.directory import open_run

APP = Path(dermaudit.dashboards.__file__).parent / "app" / "app.py"


def write(folder: Path, entries: list[dict], name: str = "training_log.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    return path


def new(loss: float, images: int = 64) -> list[dict]:
    """A line of stage 1 and two of stage 2, as they are written now."""
    rest = {"lr": 1e-3, "images_per_s": 16.0, "failed": 1}
    at = [{"step": s, "epoch": s / 4, "images": images * s, "seconds": 30.0 * s} for s in (1, 2)]
    parts = {"make": loss, "alignment": 0.5}
    return [
        {"stage": "masked", **at[0], **rest, "loss": 0.9},
        *({"stage": "contrastive", **a, **rest, "loss": loss + 0.5, **parts} for a in at),
    ]


OLD = [
    {"stage": "contrastive", "epoch": e, "seconds": 60.0 * e, "loss": 2.0, "clip": 3.0}
    for e in (1, 2)
]


@pytest.fixture
def page(monkeypatch):
    """`page(run or None, *logs)`: the Training page after its run."""

    def run(path: Path | None, *logs: Path) -> AppTest:
        monkeypatch.setenv("DERMAUDIT_RUN", str(path or ""))
        monkeypatch.setenv("DERMAUDIT_LOGS", json.dumps([str(log) for log in logs]))
        at = AppTest.from_string(
            "from dermaudit.dashboards.pages import page, training\npage.open_page(training.PAGE)\n",
            default_timeout=60,
        ).run()
        assert not at.exception, at.exception
        return at

    return run


def shown(at: AppTest) -> str:
    parts = [element.proto.body for element in at.get("html")]
    for kind in (at.markdown, at.subheader, at.warning, at.info):
        parts += [element.value for element in kind]
    return "\n".join(parts)


def test_page_logs_alone(page, tmp_path) -> None:
    at = page(None, write(tmp_path / "a", new(2.0)))
    text = shown(at)
    assert not at.warning and "Research use, not a medical device" in text
    assert "images seen: n = 192; minutes: 1.5; failed images: 3" in text
    assert [h.value for h in at.subheader] == [
        "masked: losses",
        "masked: learning rate and speed",
        "contrastive: losses",
        "contrastive: learning rate and speed",
    ]
    assert len(at.get("plotly_chart")) == 4
    assert all(chart.proto.alt for chart in at.get("plotly_chart"))


def test_page_the_log_of_the_runs_model(page, own_run, tmp_path) -> None:
    write(tmp_path / "mine", OLD)
    (tmp_path / "mine" / "open_clip_config.json").write_text("{}", encoding="utf-8")
    run = open_run(own_run)
    run.meta["model"]["name"] = str(tmp_path / "mine")
    run.save()
    text = shown(page(own_run))
    assert "**mine**: epochs: 2 contrastive; images seen: not logged; minutes: 2.0" in text
    assert "failed images: not logged" in text and "Against epochs: not every log" in text
    assert "hold neither learning rate nor images/s" in text
    assert "were logged without their weights" in text


def test_page_a_run_without_a_log_explains_it(page, whole_run, tmp_path) -> None:
    at = page(whole_run)
    assert "the run's model toy has no training log" in at.info[0].value
    assert "--log" in at.info[1].value and not at.get("plotly_chart")
    # And another log is shown all the same.
    at = page(whole_run, write(tmp_path / "a", new(2.0)))
    assert "has no training log" in at.info[0].value and len(at.get("plotly_chart")) == 4


def test_page_neither_run_nor_log_is_a_sentence(page) -> None:
    assert "no run was named" in page(None).warning[0].value


def test_page_a_run_that_is_gone_does_not_hide_the_logs(page, tmp_path) -> None:
    at = page(tmp_path / "nothing", write(tmp_path / "a", new(2.0)))
    assert "is not a run" in at.warning[0].value and len(at.get("plotly_chart")) == 4


def test_page_read_again_sees_what_was_written_since(page, tmp_path) -> None:
    path = write(tmp_path / ".a.training", new(2.0)[:2], "log.jsonl")
    with path.open("a", encoding="utf-8") as handle:
        handle.write('{"stage": "contr')
    at = page(None, tmp_path / "a")
    text = shown(at)
    assert "a (not finished)" in text and "n = 128" in text and "half written" in text
    write(tmp_path / ".a.training", new(2.0), "log.jsonl")
    at.button[0].click().run()
    assert "n = 192" in shown(at) and "half written" not in shown(at)
    path.unlink()
    at.button[0].click().run()
    assert not at.exception and "has not logged yet" in at.warning[0].value


def test_page_a_name_that_is_markup_stays_text(page, tmp_path) -> None:
    text = shown(page(None, write(tmp_path / "<b>_x_", new(2.0))))
    assert r"**\<b\>\_x\_**" in text and "<td><b>" not in text and "&lt;b&gt;_x_" in text


def test_app_with_logs_alone_opens_on_the_training(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DERMAUDIT_RUN", "")
    monkeypatch.setenv("DERMAUDIT_LOGS", json.dumps([str(write(tmp_path / "a", new(2.0)))]))
    at = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not at.exception and [title.value for title in at.title] == ["Training"]


# ---- exhibits


def test_losses_a_panel_for_each_part_and_a_colour_for_each_log(tmp_path) -> None:
    a, b = write(tmp_path / "a", new(2.0)), write(tmp_path / "b", new(1.0)[1:])
    logs, _ = read_logs([a, b])
    made = training.losses(logs, "contrastive")
    traces = made.figure["data"]
    titles = [note["text"] for note in made.figure["layout"]["annotations"]]
    assert titles == ["<b>loss (total)</b>", "<b>make</b>", "<b>alignment</b>"]
    assert [(t["name"], t["xaxis"]) for t in traces] == [
        (name, axis) for axis in ("x", "x2", "x3") for name in ("a", "b")
    ]
    assert traces[0]["x"] == [64, 128] and traces[0]["y"] == [2.5, 2.5] and traces[3]["y"] == [1, 1]
    colours = {(t["name"], t["line"]["color"], t["line"]["dash"]) for t in traces}
    assert len(colours) == 2 and sum(t["showlegend"] for t in traces) == 2
    # b has no stage 1; where it has one, it keeps its colour.
    (alone,) = training.losses(logs[::-1], "masked").figure["data"]
    assert (alone["name"], alone["line"]["color"]) == ("a", traces[1]["line"]["color"])
    assert made.table.rows[0] == ("a", 64, 2.5, 2.0, 0.5) and made.alt


def test_losses_with_an_older_log_are_drawn_against_epochs(tmp_path) -> None:
    logs, _ = read_logs([write(tmp_path / "a", new(2.0)), write(tmp_path / "b", OLD)])
    made = training.losses(logs, "contrastive")
    by_name = {t["name"]: t["x"] for t in made.figure["data"]}
    assert by_name == {"a": [0.25, 0.5], "b": [1, 2]}
    assert "Against epochs" in made.caption and "the parts of b do not add up" in made.notes[0]
    # clip is unknown of a, and so not drawn as 0.
    assert [t["name"] for t in made.figure["data"] if t["xaxis"] == "x4"] == ["b"]
    with pytest.raises(EvidenceError, match="neither learning rate"):
        training.pace(logs[1:], "contrastive")


# ---- the command


def test_explore_a_log_that_is_none(main, tmp_path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"event": "embed"}\n', encoding="utf-8")
    for path, text in (
        (tmp_path / "nothing", "there is no training log"),
        (tmp_path, "holds no training_log.jsonl"),
        (other, "line 1: no line of a training log"),
    ):
        done = main("explore", "--log", path, "--no-browser", "--json")
        assert done.rc == 2 and text in done.json()["error"]["message"]


def test_explore_a_log_needs_no_run_and_a_named_run_is_checked(main, tmp_path) -> None:
    log = write(tmp_path / "a", new(2.0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = ("--port", str(taken.getsockname()[1]), "--no-browser", "--json")
        # No run lies here: that it fails on the port says that none was asked for.
        done = main("explore", "--log", log, *port, cwd=tmp_path)
        assert done.rc == 2 and "cannot be used" in done.json()["error"]["message"]
        done = main("explore", "--log", log, "--run", tmp_path / "none", *port)
    assert done.rc == 2 and "is not a run" in done.json()["error"]["message"]


def test_explore_hands_on_run_and_logs(monkeypatch) -> None:
    from dermaudit.dashboards.commands import _environment
    from dermaudit.dashboards.pages.training import named_logs

    logs = [Path("a b:c.jsonl"), Path("d")]
    made = _environment({"DERMAUDIT_RUN": "old", "DERMAUDIT_LOGS": "old"}, None, logs)
    assert made["DERMAUDIT_RUN"] == ""
    monkeypatch.setitem(os.environ, "DERMAUDIT_LOGS", made["DERMAUDIT_LOGS"])
    assert named_logs() == logs


@pytest.mark.slow
def test_explore_ends_its_server_when_nobody_reads_its_words(tmp_path) -> None:
    """As in `dermaudit explore … | head`: the server's goodbye meets a closed pipe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = write(tmp_path / "a", new(2.0))
    command = ("-m", "dermaudit", "explore", "--log", log, "--port", str(port), "--no-browser")
    root = str(Path(dermaudit.__file__).parent.parent)
    command = subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with command:
        for _ in range(240):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.25)
        command.stderr.close()
        command.terminate()
        assert command.wait(timeout=60) == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
