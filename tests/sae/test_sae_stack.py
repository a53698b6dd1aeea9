"""SAEs that are trained together in one compiled call are those of the kernels one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sae_rows import planted

from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training import loop
from dermaudit.sae.training.kernels import stacked
from dermaudit.sae.training.loop import FitSession, fit_saes
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.stack import SAEStack, learners

TRAIN, HELD = planted(1500), planted(300, 1)


def recipes(architecture: str, **settings) -> list[SAERecipe]:
    """Two seeds at two widths, of which most latents are dead after a few steps: AuxK works."""
    base = {"batch": 128, "samples": 128 * 60, "k": 3.0, "dead_window": 500, "clip": 0.7}
    return [
        SAERecipe(architecture=architecture, d_sae=h, seed=seed, **{**base, **settings})
        for h in (16, 60)
        for seed in (0, 1)
    ]


def fitted(given: list[SAERecipe], dtype=torch.float64):
    rows = EmbeddingRows.of(TRAIN)
    return fit_saes(rows, HELD, given, site="", model_name="", session=FitSession(dtype=dtype))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "matryoshka"])
def test_stack_equals_the_kernels_one_by_one(architecture, monkeypatch):
    together = fitted(recipes(architecture))
    monkeypatch.setattr(loop, "learners", lambda models: models)
    apart = fitted(recipes(architecture))
    for one, other in zip(together, apart, strict=True):
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            ours, theirs = getattr(one.sae, name), getattr(other.sae, name)
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert one.log[-1].keys() == other.log[-1].keys()
        assert one.log[-1]["dead"] == other.log[-1]["dead"]
        for name in ("loss", "l0", "mse_loss", "auxiliary_reconstruction_loss", "held_fvu"):
            assert one.log[-1][name] == pytest.approx(other.log[-1][name], rel=1e-6)
    assert max(one.log[-1]["auxiliary_reconstruction_loss"] for one in together) > 0


def test_each_sae_is_the_same_alone_and_in_a_stack():
    """To the bit: a run's SAE does not depend on how many others are fitted beside it."""
    several = fitted(recipes("batchtopk"), torch.float32)
    for i, recipe in enumerate(recipes("batchtopk")):
        alone = fitted([recipe], torch.float32)[0]
        assert torch.equal(alone.sae.W_dec, several[i].sae.W_dec)
        assert alone.log == several[i].log


def test_sae_that_is_finished_leaves_the_stack():
    given = recipes("batchtopk")[:2]
    longer = given[1].replaced({"samples": 128 * 90})
    short, long = fitted([given[0], longer])
    assert short.summary["steps"] == 60 and long.summary["steps"] == 90
    assert torch.equal(fitted([longer])[0].sae.W_dec, long.sae.W_dec)


def test_only_saes_of_one_shape_and_kind_are_stacked(monkeypatch):
    seen: list[list[int]] = []

    def spy(models):
        found = learners(models)
        seen.append([len(one.models) if isinstance(one, SAEStack) else 0 for one in found])
        return found

    monkeypatch.setattr(loop, "learners", spy)
    short = {"batch": 128, "samples": 128 * 2}
    fitted(
        [SAERecipe(d_sae=16, k=k, **short) for k in (2.0, 3.0)]
        + [SAERecipe(d_sae=20, k=2.0, **short)]
    )
    assert seen == [[2, 1]]
    fitted([SAERecipe(architecture="jumprelu", d_sae=16, k=2.0, **short)])
    fitted([SAERecipe(d_sae=16, k=2.0, resample_every=200, **short)])
    assert seen[1:] == [[0], [0]]


def test_architecture_with_a_step_of_its_own_is_not_stacked(monkeypatch):
    from dermaudit.sae.training.architectures.batchtopk import BatchTopK
    from dermaudit.sae.training.architectures.registry import architectures

    class Counted(BatchTopK):
        name, steps = "batchtopk", 0

        def constrain_weights(self, sae):
            type(self).steps += 1

    monkeypatch.setitem(architectures(), "batchtopk", Counted())
    fitted([SAERecipe(d_sae=16, k=2.0, batch=128, samples=128 * 5)] * 2)
    assert Counted.steps == 10


def test_products_of_a_stack_have_one_thread(run_python):
    """Where the environment asks for two: their sums would depend on it."""
    code = """
import numpy as np
from threadpoolctl import threadpool_info
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.stack import SAEStack

learn, seen = SAEStack.learn, set()

def spied(self, rows):
    learn(self, rows)
    seen.update(one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas")

SAEStack.learn = spied
x = np.random.default_rng(0).normal(size=(300, 8)).astype("f4")
recipe = SAERecipe(d_sae=8, k=2.0, batch=100, samples=300)
fit_saes(EmbeddingRows.of(x), x, [recipe], site="", model_name="")
print("threads", seen)
"""
    done = run_python("-c", code, env={"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"})
    assert done.rc == 0, done.stderr
    assert "threads {1}" in done.stdout


@pytest.mark.slow
def test_bits_do_not_depend_on_who_compiled(run_python, tmp_path):
    """A process that compiles the step has the bits of one that reads it from the cache, and of one that called a part
    of it alone before.
    """
    code = """
import sys
import numpy as np
from dermaudit.files import sha256_bytes
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.kernels import loops
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.recipe import SAERecipe

if "parts" in sys.argv:
    loops.lengths(np.ones((5, 8), "f4"), np.ones(5, "f4"), 0, 5)
rng = np.random.default_rng(0)
x = (rng.normal(size=(2000, 30)) @ rng.normal(size=(30, 8)) + 3).astype("f4")
recipe = SAERecipe(d_sae=8, k=3.0, batch=200, samples=30_000, dead_window=2000)
sae = fit_saes(EmbeddingRows.of(x), x, [recipe], site="", model_name="")[0].sae
print(sha256_bytes(sae.W_enc.numpy().tobytes() + sae.W_dec.numpy().tobytes()))
"""

    def bits(cache: str, *argv: str) -> str:
        done = run_python(
            "-c", code, *argv, env={"NUMBA_CACHE_DIR": str(tmp_path / cache)}, timeout=300
        )
        assert done.rc == 0, done.stderr
        return done.stdout

    compiled = bits("one")
    assert any((tmp_path / "one").rglob("*.nbi"))
    assert bits("one") == compiled
    assert bits("one", "parts") == compiled


@pytest.mark.parametrize("n_kept", [0, 1, 7, 100, 10_000])
def test_selection_keeps_the_largest_positive_keys(n_kept):
    rng = np.random.default_rng(n_kept)
    pre = rng.normal(size=(40, 30))
    pre[3] = pre[2]  # equal entries
    bias, scale = rng.normal(size=30), 0.5 + rng.random(30)
    counts, latents, values = stacked.largest_of_batch(pre, bias, scale, n_kept)
    keys = (pre + bias) * scale
    wanted = np.sort(keys[keys > 0])[::-1][:n_kept]
    rows = np.repeat(np.arange(40), counts)
    np.testing.assert_allclose(np.sort(keys[rows, latents])[::-1], wanted)
    np.testing.assert_allclose(values, (pre + bias)[rows, latents])
