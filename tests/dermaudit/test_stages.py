"""The stage registry: order, declarations, options, and the flags that are generated from them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dermaudit.audit.audit import AuditConfig, audit_stages
from dermaudit.errors import UserInputError
from dermaudit.files import write_text
from dermaudit.options import flags_of, option
from dermaudit.run.directory import Run
from dermaudit.run.stages import Record, Stage, StageOptions, stage_of, stages
from dermaudit.sae.training.options import FitOptions

RECORDS = [record for stage in stages() for record in stage.records]


@dataclass(frozen=True, kw_only=True)
class ToyOptions(StageOptions):
    size: int = option(3, "how large", minimum=1, maximum=9)
    kind: str = option("round", "which shape", choices=("round", "square"))
    site: tuple[str, ...] = option((), "which sites", "--site")
    grid: tuple[int, ...] = option(
        (), "numbers", parse=lambda text: tuple(map(int, text.split(",")))
    )


def test_every_record_is_made_by_one_stage_after_what_it_reads():
    names = [record.name for record in RECORDS]
    assert len(set(names)) == len(names)
    for i, record in enumerate(RECORDS):
        read = {pattern.partition(":")[0].rstrip("?") for pattern in record.reads} - {"*"}
        assert read <= set(names[:i]), record.name
        assert stage_of(record.key("key")) in stages()


def test_an_audit_gives_options_of_the_right_type_to_its_stages(tmp_path):
    config = AuditConfig(data=tmp_path, model="phantom-vit", run=tmp_path / "run", seed=7)
    given = config.stage_options()
    made = {stage.command: stage for stage in audit_stages()}
    assert given.keys() <= made.keys()
    assert all(type(options) is made[command].options for command, options in given.items())
    assert all(options.seed == 7 for command, options in given.items() if command != "report")
    assert "sae measure" not in made


def test_every_option_of_every_stage_is_a_flag_with_help(main, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    for stage in stages():
        shown = " ".join(main(*stage.command.split(), "--help").stdout.split())
        for field, flag in flags_of(stage.options):
            name = flag.name or f"--{field.name.replace('_', '-')}"
            assert flag.help, (stage.command, field.name)
            assert (field.name if flag.positional else name.split("/")[0]) in shown, stage.command


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "--size 0 is below 1"),
        ({"size": 10}, "--size 10 is above 9"),
        ({"kind": "rond"}, "unknown --kind 'rond': did you mean 'round'?"),
        ({"seed": -1}, "--seed -1 is below 0"),
    ],
)
def test_options_are_checked_also_without_the_command_line(options, message):
    with pytest.raises(UserInputError) as error:
        ToyOptions(**options)
    assert error.value.message == message


def test_flags_become_options(tmp_path):
    import typer
    from typer.testing import CliRunner

    from dermaudit.cli.stage_command import command_of

    seen = []

    def run(path, options):
        """Do nothing."""
        seen.append((path, options))
        return {}

    toy = Stage("toy", ToyOptions, (), run, "path", None, False)
    app = typer.Typer()
    app.command()(command_of(toy))
    assert CliRunner().invoke(app, []).exit_code == 0
    flags = ["--site", "a", "--site", "b", "--grid", "1,2", "--size", "4", "--force"]
    assert CliRunner().invoke(app, flags).exit_code == 0
    assert seen[0] == (None, ToyOptions())
    assert seen[1] == (None, ToyOptions(site=("a", "b"), grid=(1, 2), size=4, force=True))


def test_a_stage_that_writes_what_it_does_not_declare_is_a_fault(tmp_path):
    run = Run.create(tmp_path / "r")
    record = Record("toy", reads=(), writes=("toy/{key}.txt",))

    def make(name: str):
        write_text(run.file(name), "x")
        return [run.file(name)], {}

    run.perform(record, {}, lambda: make("toy/one.txt"), key="one")
    with pytest.raises(ValueError, match="wrote toy/two.txt, which it does not declare"):
        run.perform(record, {}, lambda: make("toy/two.txt"), key="one", force=True)


def test_what_a_record_reads_is_resolved_against_the_run(tmp_path):
    run = Run.create(tmp_path / "r")
    for name in ("images", "fit:a", "fit:b"):
        run.record(name, {}, [])
    record = Record("toy", reads=("images", "fit:*", "fit:{key}", "name?"), writes=())
    assert run.reads_of(record, "b") == ["images", "fit:a", "fit:b", "fit:b"]
    run.record("name", {}, [])
    assert run.reads_of(record, "b")[-1] == "name"
    assert [stage.command for stage in run.missing_stages()][:2] == ["sae measure", "annotate"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 9, "d_sae": 4}, "--k 9 is larger than --d-sae 4"),
        ({"resume": True, "force": True}, "contradict each other"),
        ({"arch": "topkk"}, "did you mean 'topk'"),
        ({"sweep": ({"no_such_setting": 1},)}, "no_such_setting"),
    ],
)
def test_fit_options_are_refused_before_anything_is_read(options, message):
    with pytest.raises(UserInputError) as error:
        FitOptions(**options)
    assert message in error.value.message
