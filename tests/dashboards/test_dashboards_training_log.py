"""Training logs: what is read of them, of half lines and of older ones, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dermaudit.dashboards.exhibits.training_log import (
    TrainingLog,
    find_logs,
    log_of_model,
    read_log,
    read_logs,
)
from dermaudit.errors import UserInputError
from dermaudit.towers.loading.names import bundled_folder


def line(stage: str, **fields: Any) -> str:
    return json.dumps({"stage": stage, **fields}) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read(folder: Path, *lines: str) -> TrainingLog:
    return read_log(write(folder / "model" / "training_log.jsonl", *lines))


def test_read_log_hand_made_lines(tmp_path) -> None:
    log = read(
        tmp_path,
        line("masked", step=2, epoch=1.0, images=64, seconds=3.5, lr=1e-4, images_per_s=18.3,
             failed=1, loss=0.9),
        line("contrastive", step=2, epoch=0.5, images=64, seconds=4.0, lr=2e-4, images_per_s=16.0,
             failed=0, loss=3.0, clip=2.0, aspect=1.0),
        line("contrastive", step=4, epoch=1.0, images=128, seconds=8.0, lr=1e-4, images_per_s=16.0,
             failed=2, loss=2.5, clip=1.6, aspect=0.9),
    )  # fmt: skip
    assert log.name == "model" and not log.cut
    masked, contrastive = log.stages
    assert (masked.name, masked.parts, masked.failed) == ("masked", [], 1)
    assert contrastive.parts == ["clip", "aspect"] and contrastive.sums_up
    assert contrastive.column("loss") == [3.0, 2.5] and contrastive.last("images") == 128
    # Each line counts the images that failed since the line before.
    assert contrastive.failed == 2 and contrastive.seconds == 8.0


@pytest.mark.parametrize("half", ['{"stage": "masked", "lo', '{"stage": "mé'])
def test_read_log_a_half_written_last_line_is_left_out(tmp_path, half) -> None:
    path = write(tmp_path / "log.jsonl", line("masked", loss=0.9))
    # Cut inside a letter of two bytes, too.
    path.write_bytes(path.read_bytes() + half.encode()[:-1])
    log = read_log(path)
    assert log.cut and log.stages[0].column("loss") == [0.9]
    # The same in the middle is no half line but a damaged file.
    path.write_bytes(path.read_bytes() + b"\n" + line("masked", loss=0.8).encode())
    with pytest.raises(UserInputError, match="line 2: not JSON"):
        read_log(path)


def test_read_log_a_whole_last_line_without_its_end_counts(tmp_path) -> None:
    log = read(tmp_path, line("masked", loss=0.9), line("masked", loss=0.8).rstrip("\n"))
    assert not log.cut and log.stages[0].column("loss") == [0.9, 0.8]


def test_read_log_older_lines_are_unknown_and_not_0(tmp_path) -> None:
    log = read(
        tmp_path,
        line("contrastive", epoch=1, seconds=60.1, loss=2.3931, clip=3.379, aspect=0.3471,
             local=0.3565),
    )  # fmt: skip
    (stage,) = log.stages
    assert stage.failed is None and stage.last("images") is None and not stage.knows("lr")
    # clip was logged without its weight of one half.
    assert not stage.sums_up


def test_read_log_a_loss_that_is_no_number_is_a_gap(tmp_path) -> None:
    log = read(tmp_path, '{"stage": "masked", "loss": NaN}\n', line("masked", loss=0.5))
    assert log.stages[0].column("loss") == [None, 0.5]


@pytest.mark.parametrize("second", [5.0, 11.0])
def test_seconds_parts_of_a_resumed_training_are_added(tmp_path, second) -> None:
    """The second part takes 5 or 11 s for the images 100 to 200: its clock began again at 0."""
    unbroken = read(
        tmp_path,
        line("masked", images=100, seconds=10.0, images_per_s=10.0, loss=1.0),
        line("masked", images=200, seconds=20.0, images_per_s=10.0, loss=1.0),
        line("masked", images=300, seconds=30.1, images_per_s=10.0, loss=1.0),
    )
    assert unbroken.stages[0].seconds == 30.1
    resumed = read(
        tmp_path,
        line("masked", images=100, seconds=10.0, images_per_s=10.0, loss=1.0),
        line("masked", images=200, seconds=second, images_per_s=round(100 / second, 1), loss=1.0),
        line(
            "masked", images=300, seconds=2 * second, images_per_s=round(100 / second, 1), loss=1.0
        ),
    )
    assert resumed.stages[0].seconds == 10.0 + 2 * second


def test_seconds_of_a_real_log_shipped_with_a_model() -> None:
    for path in sorted(bundled_folder().glob("*/training_log.jsonl")):
        log = read_log(path)
        names = [stage.name for stage in log.stages]
        assert names in (["masked", "contrastive"], ["contrastive"])
        assert all(stage.seconds > 0 and stage.knows("loss") for stage in log.stages)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b'{"stage": "mas', "has no whole line yet"),
        (b"image,label\na,b\n", "is not a training log"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "is not a training log"),
        (b'{\n "a": 1\n}\n', "line 1: not JSON"),
        (
            b'{"time": "t", "event": "embed"}\n',
            "line 1: no line of a training log, it names no stage",
        ),
        (b'{"stage": "masked"}\n', "line 1: no line of a training log, it has no loss"),
        (b'{"stage": "masked", "loss": "x"}\n', "line 1: loss is not a number"),
        (
            b'{"stage": "masked", "loss": 1}\n{"stage": "masked", "loss": 1, "lr": true}\n',
            "line 2: lr",
        ),
        (b'{"stage": "masked", "loss": 1}\n[1]\n', "line 2: not a JSON object"),
    ],
)
def test_read_log_what_is_no_log_is_a_sentence(tmp_path, content, message) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserInputError, match=message) as caught:
        read_log(path)
    assert str(path) in caught.value.message and caught.value.hint


def test_find_logs_by_file_folder_and_out_of_a_running_training(tmp_path) -> None:
    done = write(tmp_path / "mine" / "training_log.jsonl", line("masked", loss=1.0))
    assert find_logs(done) == find_logs(tmp_path / "mine") == [done]
    running = write(tmp_path / ".mine.training" / "log.jsonl", line("masked", loss=2.0))
    assert find_logs(running.parent) == [running]
    # Trained once more with --force: both are shown, and told apart.
    assert find_logs(tmp_path / "mine") == [done, running]
    logs, wrong = read_logs([tmp_path / "mine", done])
    assert [log.name for log in logs] == ["mine", "mine (not finished)"] and wrong == []
    done.unlink()
    done.parent.rmdir()
    assert find_logs(tmp_path / "mine") == [running]


def test_find_logs_what_has_none_is_a_sentence(tmp_path) -> None:
    with pytest.raises(UserInputError, match="there is no training log"):
        find_logs(tmp_path / "nothing")
    with pytest.raises(UserInputError, match=r"holds no training_log\.jsonl"):
        find_logs(tmp_path)
    (tmp_path / ".mine.training").mkdir()
    for name in ("mine", ".mine.training"):
        with pytest.raises(UserInputError, match="has not logged yet"):
            find_logs(tmp_path / name)


def test_read_logs_one_that_is_wrong_does_not_hide_the_others(tmp_path) -> None:
    good = write(tmp_path / "a" / "training_log.jsonl", line("masked", loss=1.0))
    same = write(tmp_path / "b" / "a" / "training_log.jsonl", line("masked", loss=2.0))
    logs, wrong = read_logs([good, tmp_path / "nothing", same])
    assert [log.path for log in logs] == [good, same] and len(wrong) == 1
    assert len({log.name for log in logs}) == 2


def test_log_of_model(tmp_path) -> None:
    mine = write(tmp_path / "mine" / "training_log.jsonl", line("masked", loss=1.0))
    write(tmp_path / "mine" / "open_clip_config.json", "{}")
    assert log_of_model(f"local-dir:{tmp_path / 'mine'}") == [mine]
    mine.unlink()
    for model in (str(tmp_path / "mine"), str(tmp_path / "gone"), "hf-hub:a/b", "toy"):
        with pytest.raises(UserInputError, match="has no training log: "):
            log_of_model(model)
