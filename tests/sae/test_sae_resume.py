"""A fit that is killed and resumed equals an uninterrupted one bit by bit, also in chunks."""

from __future__ import annotations

import dataclasses
import json

import fit_world
import pytest
import torch
from safetensors.torch import load_file

from dermaudit.errors import ForeignArtifactError
from dermaudit.sae.inference.model import WEIGHTS
from dermaudit.sae.training.loop import LOG_FILE, SAERecipe
from dermaudit.sae.training.state import STATE_FILE


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Return {kind: fits}, made without interruption and without a checkpoint."""
    torch.set_num_threads(1)
    return {kind: fit_world.fit(kind, None) for kind in fit_world.KINDS}


def lines(folder):
    return [json.loads(line) for line in (folder / LOG_FILE).read_text().splitlines()]


@pytest.mark.slow
def test_fit_killed_between_checkpoints_resumes_bit_by_bit(run_python, unbroken, tmp_path):
    """Two kinds (five architectures) one after the other, each killed in a step without a check."""
    argv = ["tests/sae/fit_world.py", tmp_path, "float32"]
    # The second goes on after step 20 of the first kind: 30 steps there, then 25 of the other.
    for visits, kind in ((27, "family"), (55, "penalties")):
        killed = run_python(*argv, env={"DERMAUDIT_FAILPOINT": f"fit-step:{visits}"}, timeout=600)
        assert killed.rc == 137
        assert (tmp_path / kind / STATE_FILE).is_file()
        assert not (tmp_path / f"{kind}.json").exists()
        (tmp_path / kind / LOG_FILE).write_text(
            (tmp_path / kind / LOG_FILE).read_text() + '{"cut o'
        )
    done = run_python(*argv, timeout=600)
    assert done.rc == 0, done.stderr[-2000:]
    assert done.stderr.count("continuing after step") == 2
    for kind, fits in unbroken.items():
        said = json.loads((tmp_path / f"{kind}.json").read_text())
        assert said["log"] == [one.log for one in fits]
        assert said["summary"] == [one.summary for one in fits]
        for i, one in enumerate(fits):
            again = load_file(tmp_path / f"{kind}-{i}" / WEIGHTS)
            for name in one.sae.tensors:
                assert torch.equal(again[name], getattr(one.sae, name)), (kind, i, name)
        told = [line["step"] for line in lines(tmp_path / kind) if line["sae"] == 0]
        assert told == [entry["step"] for entry in fits[0].log]  # none twice, none lost


def test_saes_fitted_in_one_pass_equal_those_fitted_alone(unbroken):
    """One of them stops early."""
    assert unbroken["family"][2].summary["steps"] <= unbroken["family"][0].summary["steps"]
    for kind, fits in unbroken.items():
        for recipe, one in zip(fit_world.recipes(kind), fits, strict=True):
            alone = fit_world.fit(kind, None, only=recipe)[0]
            assert alone.log == one.log
            for name in one.sae.tensors:
                assert torch.equal(getattr(alone.sae, name), getattr(one.sae, name)), (kind, name)


def test_finished_fit_is_not_repeated_and_its_checkpoint_is_complete(unbroken, tmp_path, capsys):
    first = fit_world.fit("penalties", tmp_path)
    again = fit_world.fit("penalties", tmp_path)
    assert "continuing after step 50" in capsys.readouterr().err
    for one, other, never in zip(first, again, unbroken["penalties"], strict=True):
        assert torch.equal(one.sae.W_enc, other.sae.W_enc)
        assert torch.equal(
            one.sae.W_enc, never.sae.W_enc
        )  # that it is kept on disk changes nothing


def test_checkpoint_of_another_fit_is_replaced_or_refused(tmp_path, capsys):
    short = SAERecipe(**{**fit_world.COMMON, "samples": 640})
    fit_world.fit("penalties", tmp_path, only=short)
    other = dataclasses.replace(short, lr=1e-4)
    with pytest.raises(ForeignArtifactError, match="another fit: lr was 0.003, is 0.0001"):
        fit_world.fit("penalties", tmp_path, only=other, resume=True)
    fresh = fit_world.fit("penalties", tmp_path, only=other)[0]
    assert "the fit starts again" in capsys.readouterr().err
    assert torch.equal(fresh.sae.W_enc, fit_world.fit("penalties", None, only=other)[0].sae.W_enc)
    with pytest.raises(ForeignArtifactError, match="another fit: store was a, is b"):
        fit_world.fit("penalties", tmp_path / "2", only=short, facts={"store": "a"})
        fit_world.fit("penalties", tmp_path / "2", only=short, facts={"store": "b"}, resume=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_unreadable_checkpoint_is_refused(tmp_path, damage, capsys):
    short = SAERecipe(**{**fit_world.COMMON, "samples": 640})
    fit_world.fit("penalties", tmp_path, only=short)
    path = tmp_path / STATE_FILE
    path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "text": b"x" * 300}[damage])
    with pytest.raises(ForeignArtifactError, match=r"state\.safetensors cannot be read") as refused:
        fit_world.fit("penalties", tmp_path, only=short, resume=True)
    assert "without --resume" in refused.value.hint
    assert fit_world.fit("penalties", tmp_path, only=short)[0].summary["steps"] == 10
