"""The command line as a user meets it: exit codes, one JSON object, nothing heavy for --help."""

from __future__ import annotations

import json

import pytest

from dermaudit.cli.commands import all_commands

HEAVY = ("torch", "open_clip", "sae_lens", "transformer_lens", "streamlit", "sklearn", "pandas")
# Runs main on each argument list and prints the heavy modules that are loaded then.
PROBE = f"""
import contextlib, io, json, sys
if len(sys.argv) > 2:
    __import__(sys.argv[2])
from dermaudit.cli import main
codes = {{}}
for argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        codes[" ".join(argv)] = main(argv)
print(json.dumps([codes, [m for m in {HEAVY!r} if m in sys.modules]]))
"""
# A command for the test, to see what main does with each kind of end.
COMMAND = """
import sys
from dermaudit import cli, errors
from dermaudit.cli.commands import FUNCTIONS
def ends(how: str) -> dict:
    if how == "fault":
        raise RuntimeError("boom")
    if how == "evidence":
        raise errors.EvidenceError("too few images: 12 of 30", "add some", {"n": 12})
    if how == "input":
        raise errors.UserInputError("a.csv, line 3: no", "write yes")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "nan":
        return {"auroc": float("nan")}
    print("said to people", file=sys.stderr)
    return {"n": 1}
sys.modules["ends"] = sys.modules["__main__"]
FUNCTIONS["Results"]["ends"] = ("ends:ends", "")
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def ends(run_python, tmp_path_factory):
    script = tmp_path_factory.mktemp("ends") / "ends.py"
    script.write_text(COMMAND)
    return lambda *argv: run_python(script, "ends", *argv)


def probe(run_python, argvs, *loaded):
    done = run_python("-c", PROBE, json.dumps(argvs), *loaded)
    assert done.rc == 0, done.stderr
    return json.loads(done.stdout)


def test_help_loads_nothing_heavy(run_python):
    codes, heavy = probe(run_python, [["--help"], [], ["--version"]])
    assert set(codes.values()) == {0}
    assert heavy == []


def test_the_help_of_every_command_loads_nothing_heavy(run_python):
    codes, heavy = probe(run_python, [[*command.split(), "--help"] for command in all_commands()])
    assert [command for command, code in codes.items() if code] == []
    assert heavy == []


def test_the_probe_sees_what_is_loaded(run_python):
    assert "sklearn" in probe(run_python, [["--help"]], "sklearn")[1], "negative control"


def test_importing_the_package_loads_nothing_heavy(run_python):
    loaded = f"[m for m in {HEAVY!r} if m in sys.modules]"
    done = run_python("-c", f"import sys, dermaudit; dir(dermaudit); print({loaded})")
    assert done.stdout.strip() == "[]"


def test_help_lists_every_command(cli):
    shown = cli("--help").stdout
    assert all(f"  {command} " in shown for command in all_commands())


def test_help_of_a_group_lists_its_commands_only(cli):
    shown = cli("data", "--help")
    assert shown.rc == 0
    assert [c for c in all_commands() if f"  {c} " in shown.stdout] == [
        c for c in all_commands() if c.startswith("data ")
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["audti"], "unknown command 'audti': did you mean 'audit'?"),
        (["data", "convrt"], "unknown command of data 'convrt': did you mean 'convert'?"),
        (["xyzzy"], "unknown command 'xyzzy'"),
        (["data"], "'data' needs one of: convert, check"),
        (["data", "convert", "somewhere"], "Missing option '--out'"),
        (["data", "check", "a", "--no-such-flag"], "No such option: --no-such-flag"),
        (["data", "check"], "Missing argument 'path'"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(cli, argv, said):
    done = cli(*argv, "--json")
    assert done.rc == 2
    assert said in done.json()["error"]["message"]
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("how", "rc", "code", "message"),
    [
        ("input", 2, "bad_input", "a.csv, line 3: no"),
        ("evidence", 3, "no_evidence", "too few images: 12 of 30"),
        ("interrupt", 130, "interrupted", "interrupted: what was finished is kept"),
        ("fault", 1, "fault", "internal error: RuntimeError: boom"),
    ],
)
def test_every_kind_of_failure_has_its_exit_code_and_json(ends, how, rc, code, message):
    done = ends(how, "--json")
    assert done.rc == rc
    answer = done.json()
    assert set(answer) == {"schema_version", "error"}
    assert set(answer["error"]) >= {"code", "message", "hint"}
    assert (answer["error"]["code"], answer["error"]["message"]) == (code, message)
    assert ("Traceback" in done.stderr) == (rc == 1), "only an internal error has a traceback"
    without = ends(how)
    assert (without.rc, without.stdout) == (rc, "")


def test_json_is_one_object_and_words_go_to_stderr(ends):
    done = ends("well", "--json")
    assert (done.rc, done.json()) == (0, {"schema_version": 1, "n": 1})
    assert done.stderr == "said to people\n"
    assert ends("well").stdout == ""


def test_nan_never_reaches_the_json(ends):
    done = ends("nan", "--json")
    assert done.rc == 1
    assert done.json()["error"]["code"] == "fault"


def test_quiet_silences_what_is_reported(cli, image_folder):
    folder = image_folder("a.png", "b.png")
    assert cli("data", "check", folder).stderr
    done = cli("data", "check", folder, "--quiet", "--json")
    assert (done.rc, done.stderr) == (0, "")
    assert done.json()["n_usable"] == 2
