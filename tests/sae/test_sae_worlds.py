"""One process and two: the same losses, the same weights, the same dead latents."""

from __future__ import annotations

import json

import fit_world
import pytest
import torch
from safetensors.torch import load_file

from dermaudit.errors import UserInputError
from dermaudit.sae.model import WEIGHTS


@pytest.mark.slow
def test_two_processes__are_one(run_python, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = run_python(*launch, "tests/sae/fit_world.py", tmp_path, "float64", timeout=600)
    assert two.rc == 0, two.stderr[-3000:]
    for kind in fit_world.KINDS:
        said = json.loads((tmp_path / f"{kind}.json").read_text())
        fits = fit_world.fit(kind, None, dtype=torch.float64)
        for i, (one, log) in enumerate(zip(fits, said["log"], strict=True)):
            named = f"{kind} {one.recipe.architecture}"
            assert [line["dead"] for line in log] == [line["dead"] for line in one.log], named
            assert len(log) == len(one.log) >= 40
            for line, other in zip(log, one.log, strict=True):
                assert line == pytest.approx(other, abs=1e-6), named
            weights = load_file(tmp_path / f"{kind}-{i}" / WEIGHTS)
            for name in one.sae.tensors:
                # Written in float32: a last bit of numbers up to some tens is more than 1e-6.
                torch.testing.assert_close(
                    weights[name], getattr(one.sae, name), atol=1e-6, rtol=1e-6, msg=f"{named} {name}"
                )
        assert any(line["dead"] for one in fits for line in one.log)


def test_batch__that_processes_cannot_share():
    from dermaudit.distributed import World

    with pytest.raises(UserInputError, match="a batch of 64 cannot be shared equally by 3 processes"):
        fit_world.fit("penalties", None, world=World(1, 3))
