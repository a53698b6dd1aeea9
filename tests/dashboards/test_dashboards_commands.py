"""The commands `explore` and `report` through the real command line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dermaudit.run.directory import Run


@pytest.mark.parametrize("command", [("explore", "--no-browser"), ("report",)])
def test_a_run_that_is_not_there(main, tmp_path, command) -> None:
    done = main(*command, "--run", tmp_path / "nothing", "--json")
    assert done.rc == 2 and "is not a run" in done.json()["error"]["message"]
    Run.create(tmp_path / "empty")
    done = main(*command, "--run", tmp_path / "empty", "--json")
    assert done.rc == 2 and "has no images stage yet" in done.json()["error"]["message"]
    assert "dermaudit audit" in done.json()["error"]["hint"]


def test_explore_on_a_port_in_use(main, whole_run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = main(
            "explore",
            "--run",
            whole_run,
            "--port",
            str(taken.getsockname()[1]),
            "--no-browser",
            "--json",
        )
    assert done.rc == 2 and "cannot be used" in done.json()["error"]["message"]


def test_report_by_the_command_line(cli, own_run) -> None:
    done = cli("report", "--run", own_run, "--json")
    assert done.rc == 0, done.stderr
    text = done.json()
    assert Path(text["report"]) == own_run / "report" / "index.html"
    assert Path(text["report"]).stat().st_size == text["bytes"]


def test_report_overwrites_only_by_force(main, own_run, tmp_path) -> None:
    out = tmp_path / "mine.html"
    out.write_text("precious")
    done = main("report", "--run", own_run, "--out", out, "--json")
    assert (
        done.rc == 2 and "--force" in done.json()["error"]["hint"] and out.read_text() == "precious"
    )
    assert main("report", "--run", own_run, "--out", out, "--force").rc == 0
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main("report", "--run", own_run, "--out", tmp_path).rc == 2


def test_a_full_disk_leaves_no_half_report(cli, own_run) -> None:
    done = cli("report", "--run", own_run, "--json", file_limit_kb=200)
    assert done.rc == 2 and done.json()["error"]["code"] == "no_space"
    assert list((own_run / "report").iterdir()) == []


def test_bare_import_is_refused(run_python) -> None:
    here = Path(__file__).resolve().parents[2]
    done = run_python("-c", "import dashboards", cwd=here)
    assert done.rc == 1 and "import dermaudit.dashboards, not the bare folder" in done.stderr
