"""Two processes give the same losses, weights and dead latents as one."""

from __future__ import annotations

import json

import fit_world
import pytest
import torch
from sae_run import POOLED, write_run
from safetensors.torch import load_file

from dermaudit.distributed import World
from dermaudit.errors import UserInputError
from dermaudit.sae.inference.model import WEIGHTS

LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(run_python, tmp_path):
    two = run_python(*LAUNCH, "tests/sae/fit_world.py", tmp_path, "float64", timeout=600)
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
                    weights[name],
                    getattr(one.sae, name),
                    atol=1e-6,
                    rtol=1e-6,
                    msg=f"{named} {name}",
                )
            if one.recipe.architecture in ("batchtopk", "matryoshka"):
                assert one.log[0]["auxiliary_reconstruction_loss"] == 0
                assert any(line["auxiliary_reconstruction_loss"] for line in one.log), (
                    "AuxK was not at work"
                )
        # Or resampling was not at work.
        assert any(line["dead"] for one in fits for line in one.log), kind
    # BatchTopK's choice, entry by entry; of equal ones the first, whoever holds them.
    alone = fit_world.chosen(World(), fit_world.encoder())
    shares = [load_file(tmp_path / f"chosen-{rank}.safetensors") for rank in (0, 1)]
    for name, whole in alone.items():
        both = torch.cat([share[name] for share in shares])
        assert torch.equal(both > 0, whole > 0), name
        torch.testing.assert_close(both, whole, rtol=1e-12, atol=0, msg=name)
    for name, (rows, n_kept) in fit_world.batches().items():
        pre = rows @ fit_world.encoder().t()
        took = {
            module: alone[f"dermaudit.sae.training.kernels.{module} {name}"]
            for module in ("cpu", "plain")
        }
        n = min(n_kept, int((pre > 0).sum()))
        first = pre.flatten().argsort(descending=True, stable=True)[:n]
        want = torch.zeros(pre.numel(), dtype=pre.dtype).scatter(0, first, pre.flatten()[first])
        for module, dense in took.items():
            torch.testing.assert_close(dense, want.view_as(pre), msg=f"{module} {name}")


def test_batch_that_processes_cannot_divide_is_refused():
    with pytest.raises(
        UserInputError, match="a batch of 64 cannot be shared equally by 3 processes"
    ):
        fit_world.fit("penalties", None, world=World(1, 3))


@pytest.mark.slow
def test_fit_under_torchrun_writes_one_run(run_python, main, tmp_path):
    """It is killed and resumed, gives the figures of one process up to float32, and is done once."""
    run = write_run(tmp_path / "run").path
    flags = ["--d-sae", "16", "--k", "3", "--samples", "10000", "--set", "batch=128"]
    # Without the -- torchrun takes --run for a short form of its own --run-path.
    command = [*LAUNCH, "-m", "dermaudit", "--", "fit", "--run", run, *flags]
    killed = run_python(*command, env={"DERMAUDIT_FAILPOINT": "fit:2"}, timeout=600)
    assert killed.rc != 0
    alone = main("fit", "--run", run, *flags, "--resume", "--json")
    assert alone.rc == 2 and "processes was 2, is 1" in alone.json()["error"]["message"]
    done = run_python(*command, timeout=600)
    assert done.rc == 0, done.stderr[-3000:]
    assert done.stderr.count("continuing after step") == 1  # one process speaks for both
    two = json.loads((run / "sae" / POOLED / "metrics.json").read_text())
    assert json.loads((run / "run.json").read_text())["stages"].keys() == {
        "images",
        "embed",
        *(f"{stage}:{POOLED}" for stage in ("fit", "seeds", "measure")),
    }
    again = run_python(*command, timeout=600)
    assert again.rc == 0 and "SAE" not in again.stderr.split("sparse autoencoders")[0]
    one = main(
        "fit", "--run", write_run(tmp_path / "one").path, *flags, "--seeds", "0", "--json"
    ).json()["sae"][POOLED]
    assert two["steps"] == one["steps"] and two["fvu"] == pytest.approx(one["fvu"], abs=1e-3)
