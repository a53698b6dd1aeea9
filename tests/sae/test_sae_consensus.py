"""Consensus dictionaries: what fits agree on, the SAE fitted to it, and two halves that share nothing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from sae_rows import planted, random_sae
from sae_run import PATCHES, POOLED, SHORT, write_run

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.files import sha256_file
from dermaudit.sae import Codes
from dermaudit.sae.evaluation.halves import between_halves, first_latents, halves_report
from dermaudit.sae.evaluation.stability import unit
from dermaudit.sae.inference.model import WEIGHTS, load_sae
from dermaudit.sae.run_data import RunData
from dermaudit.sae.store.rows import EmbeddingRows
from dermaudit.sae.training.consensus import METHODS, consensus
from dermaudit.sae.training.decoder_start import DecoderStart
from dermaudit.sae.training.dictionary import disjoint_halves
from dermaudit.sae.training.loop import fit_saes
from dermaudit.sae.training.plan import FitPlan
from dermaudit.sae.training.recipe import SAERecipe
from dermaudit.sae.training.site_rows import SiteRows

RNG = np.random.default_rng(0)
SHARED = unit(RNG.normal(size=(5, 40)))
GIVEN = (*SHORT, "--consensus", "--seeds", "4", "--no-metrics")


def fits(
    n: int = 8, found_in: dict[int, int] | None = None, noise: float = 0.02
) -> list[np.ndarray]:
    """Decoders that hold the shared directions with noise, and six of their own, in any order.

    `found_in` {direction: in how many of the fits it is}.
    """
    rng = np.random.default_rng(1)
    sets = []
    for i in range(n):
        own = [j for j in range(len(SHARED)) if i < (found_in or {}).get(j, n)]
        noisy = SHARED[own] + noise * rng.normal(size=(len(own), 40))
        sets.append(rng.permutation(np.concatenate([noisy, rng.normal(size=(6, 40))])))
    return sets


@pytest.mark.parametrize("method", METHODS)
def test_shared_directions_are_found_and_own_ones_are_not(method):
    found = consensus(fits(), method=method)
    assert len(found) == 5
    cosine = found.directions @ SHARED.T
    assert sorted(cosine.argmax(1).tolist()) == [0, 1, 2, 3, 4]
    assert cosine.max(1).min() > 0.99  # the mean of eight noisy copies
    assert (found.agreement > 0.98).all() and (found.share == 1).all()
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, atol=1e-6)


def test_direction_of_few_fits_is_left_out():
    found = consensus(fits(found_in={2: 4}))
    assert len(found) == 4 and (found.directions @ SHARED[2]).max() < 0.5
    more = consensus(fits(found_in={2: 4}), keep=0.5)
    assert len(more) == 5 and more.share[-1] == pytest.approx(0.5)
    assert (np.diff(more.agreement) <= 0).all()


def test_consensus_does_not_depend_on_the_order_of_the_fits():
    sets = fits(noise=0.05)
    one, other = consensus(sets), consensus(sets[::-1])
    cosine = one.directions @ other.directions.T
    np.testing.assert_allclose(np.sort(cosine.max(1)), 1, atol=1e-5)


def test_nothing_shared_gives_no_direction():
    rng = np.random.default_rng(2)
    found = consensus([rng.normal(size=(9, 40)) for _ in range(5)])
    assert len(found) == 0 and found.directions.shape == (0, 40)


# ---- starts of a decoder


@pytest.mark.parametrize("within", [1.0, 0.9, -1.0])
def test_latents_stay_within_the_cone_of_their_start(within):
    x = planted(1200)
    directions = unit(RNG.normal(size=(4, 24))).astype(np.float32)
    recipe = SAERecipe(d_sae=16, k=3.0, samples=30_000, batch=128, lr=5e-3)
    fitted = fit_saes(
        EmbeddingRows.of(x), planted(200, 1), [recipe], site="", model_name="",
        starts=[DecoderStart(directions, within)],
    )[0]  # fmt: skip
    cosine = (fitted.sae.W_dec.numpy()[:4] * directions).sum(1)
    assert cosine.min() >= within - 1e-5
    # Random directions are pulled away as far as they may go.
    assert cosine.min() < within + 0.01 if within > -1 else cosine.min() < 0.8


def test_archetypal_directions_stay_near_positive_sums_of_points():
    from scipy.optimize import nnls

    x = planted(3000)
    rng = np.random.default_rng(6)
    points = unit(np.abs(rng.normal(size=(12, x.shape[1])))).astype(np.float32)
    recipe = SAERecipe(d_sae=16, k=3.0, samples=30_000, batch=128, lr=5e-3)
    free, held = fit_saes(
        EmbeddingRows.of(x), planted(200, 1), [recipe, recipe], site="", model_name="",
        starts=[DecoderStart(points[:10]), DecoderStart(points[:10], 0.95, points)],
    )  # fmt: skip

    def cosines(sae):
        rows = unit(sae.W_dec.numpy()[:10].astype(float))
        sums = [points.T @ nnls(points.T.astype(float), row)[0] for row in rows]
        return np.array(
            [row @ s / max(np.linalg.norm(s), 1e-9) for row, s in zip(rows, sums, strict=True)]
        )

    # The sums follow the rows step by step, and are a little behind the nearest ones.
    assert cosines(held.sae).min() > 0.94
    assert cosines(free.sae).min() < 0.9
    assert (cosines(held.sae) < 0.97).any()  # they use the freedom that they have


# ---- two halves


def shuffled(sae, seed: int = 0):
    order = torch.randperm(sae.d_sae, generator=torch.Generator().manual_seed(seed))
    return type(sae)(
        sae.W_enc[:, order], sae.W_dec[order], sae.b_enc[order], sae.b_dec, sae.threshold[order], {}
    )


def test_the_same_dictionary_in_another_order_agrees_completely():
    sae, rows = random_sae(24, 12), planted(300)
    found = between_halves(sae, shuffled(sae), rows, np.arange(300))
    for name in ("pw_mcc", "share_above_0.9", "subspace", "rank_correlation"):
        assert found[name]["value"] == pytest.approx(1.0, abs=1e-5), name
        assert found[name]["n"] > 0
    assert found["pw_mcc"]["control"] < 0.6
    assert found["latents"] == [12, 12]


def test_unrelated_dictionaries_agree_as_by_chance():
    rows = planted(300)
    found = between_halves(random_sae(24, 10), random_sae(24, 14, seed=5), rows, np.arange(300))
    assert found["pw_mcc"]["value"] == pytest.approx(found["pw_mcc"]["control"], abs=0.12)
    assert found["share_above_0.9"]["value"] == 0
    assert found["pw_mcc"]["low"] < found["pw_mcc"]["value"] < found["pw_mcc"]["high"]
    assert found["pw_mcc"]["n"] == 10  # the smaller set


def test_subspace_by_hand():
    def of(rows):
        d = torch.tensor(rows, dtype=torch.float32)
        zeros = torch.zeros(len(rows))
        return type(random_sae())(d.T, d, zeros, torch.zeros(d.shape[1]), zeros, {})

    x = np.abs(np.random.default_rng(0).normal(size=(50, 4))).astype(np.float32)
    one, other = of([[1.0, 0, 0, 0], [0, 1, 0, 0]]), of([[0, 1.0, 0, 0], [0, 0, 1, 0]])
    # The planes share one axis: cosines of the principal angles are 1 and 0.
    assert between_halves(one, other, x, np.arange(50))["subspace"]["value"] == pytest.approx(0.5)


def test_activations_of_an_image_are_the_largest_of_its_rows():
    sae = random_sae(24, 8)
    rows = planted(200)
    images = np.repeat(np.arange(50), 4)
    found = between_halves(sae, shuffled(sae), rows, images)
    assert found["rank_correlation"]["value"] == pytest.approx(1.0, abs=1e-5)


def test_residual_latents_are_not_compared():
    sae = random_sae(24, 12)
    sae.metadata["consensus_latents"] = 5
    assert first_latents(sae).d_sae == 5
    rows = planted(300)
    report = halves_report(sae, [sae_of_first(sae, 1), sae_of_first(sae, 2)], rows, np.arange(300))
    assert report["pw_mcc"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert len(report["per_latent"]["stable"]) == 12
    assert report["per_latent"]["stable"][5:] == [None] * 7
    sae.metadata["consensus_latents"] = 0
    with pytest.raises(EvidenceError, match="agree on no direction"):
        halves_report(sae, [sae, sae], rows, np.arange(300))


def sae_of_first(sae, seed: int):
    """The first five latents again, and residual latents of another fit."""
    other = random_sae(24, 12, seed=seed)
    for name in ("W_dec", "b_enc", "threshold"):
        getattr(other, name)[:5] = getattr(sae, name)[:5]
    other.W_enc[:, :5] = sae.W_enc[:, :5]
    other.W_dec[:5] += 1e-4 * seed  # the same weights would be refused
    other.b_dec = sae.b_dec
    other.metadata["consensus_latents"] = 5
    return other


# ---- the command


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("made") / "run", sites=(POOLED, PATCHES)).path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def test_command_writes_a_dictionary_and_compares_halves(main, run):
    done = main("fit", "--run", run, *GIVEN, "--json")
    assert done.rc == 0, done.stderr
    for site in (POOLED, PATCHES):
        said = done.json()["sae"][site]
        written = json.loads((run / "sae" / site / "consensus.json").read_text())
        kept = written["kept"]
        assert 0 < kept == len(written["agreement"]) == said["consensus"]["latents"] <= 16
        assert min(written["agreement"]) >= written["keep"] and written["seeds"] == [0, 1, 2, 3]
        sae = load_sae(run / "sae" / site)
        assert sae.metadata["consensus_latents"] == kept and sae.d_sae == 16
        assert said["l0"] == pytest.approx(3, rel=0.2)
        assert Codes(run / "codes" / site).shape == (600, 16)
        stability = said["stability"]
        assert 0 < stability["pw_mcc"]["value"] <= 1 and stability["against"] == [
            "half 1",
            "half 2",
        ]
        halves = [load_sae(run / "seeds" / site / f"half-{i}") for i in (1, 2)]
        assert not torch.equal(halves[0].W_dec, halves[1].W_dec)
    assert "fits agree on" in done.stderr and "two halves of the groups agree" in done.stderr
    assert not (run / ".training").exists()
    # Nothing to do a second time, and the same bytes when it is done again.
    before = sha256_file(run / "sae" / POOLED / WEIGHTS)
    assert main("fit", "--run", run, *GIVEN, "--json").json()["sae"] == done.json()["sae"]
    again = main("fit", "--run", run, *GIVEN, "--halves", "none", "--force")
    assert again.rc == 0 and sha256_file(run / "sae" / POOLED / WEIGHTS) == before
    measured = main("sae", "measure", "--run", run, "--no-controls", "--draws", 30, "--json")
    assert measured.rc == 0, measured.stderr
    stability = measured.json()["sites"][POOLED]["stability"]
    low, high = stability["ci"]
    assert low <= stability["pw_mcc"] <= high and 0 <= stability["share_above_0.9"] <= 1
    # Of another dictionary the old comparison is not shown.
    other = main("fit", "--run", run, *GIVEN, "--set", "clip=2", "--halves", "none")
    assert other.rc == 0
    measured = main("sae", "measure", "--run", run, "--no-controls", "--draws", 30, "--json")
    assert measured.json()["sites"][POOLED]["stability"].keys() == {"reason"}


def test_default_chooses_k_by_what_the_fits_agree_on(main, run):
    given = [flag for flag in GIVEN if flag not in ("--k", "3")]
    done = main("fit", "--run", run, *given, "--halves", "none", "--json")
    assert done.rc == 0, done.stderr
    pooled, patches = (done.json()["sae"][site] for site in (POOLED, PATCHES))
    counts = pooled["consensus"]["agreed_at_k"]
    assert set(counts) == {"4", "8"} and counts[f"{pooled['k']:g}"] == max(counts.values())
    assert set(patches["consensus"]["agreed_at_k"]) == {"12"}
    assert "stability" not in pooled


@pytest.mark.slow
def test_killed_between_the_fits_resumes_to_the_same_bytes(cli, main, run, tmp_path):
    given = (*GIVEN, "--halves", "pooled")
    shutil.copytree(run, tmp_path / "whole")
    assert main("fit", "--run", tmp_path / "whole", *given).rc == 0
    killed = cli("fit", "--run", run, *given, env={"DERMAUDIT_FAILPOINT": "fit:12"}, timeout=600)
    assert killed.rc == 137
    done = main("fit", "--run", run, *given, "--resume")
    assert done.rc == 0 and "continuing after step" in done.stderr
    for file in sorted((tmp_path / "whole" / "sae").rglob("*.*")):
        if file.is_file():
            other = run / "sae" / file.relative_to(tmp_path / "whole" / "sae")
            assert sha256_file(file) == sha256_file(other), file.name


def test_halves_share_no_group_and_one_group_is_not_halved(tmp_path):
    run = write_run(tmp_path / "run")
    data = SiteRows.open(run, POOLED, RunData(run).splits)
    first, second = disjoint_halves(data, 0)
    groups = data.rows.image_groups
    assert not set(groups[first.train.index]) & set(groups[second.train.index])
    assert abs(first.train.n - second.train.n) <= 3
    data.rows.image_groups[:] = 7
    with pytest.raises(UserInputError, match="are of one group, and cannot be divided"):
        disjoint_halves(data, 0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--consensus", "--seeds", "1"), "--consensus needs at least 2 fits"),
        (("--consensus", "--sweep", "k=2,3"), "--consensus and --sweep"),
        (("--consensus", "--arch", "relu_l1"), "needs an architecture with k"),
        (("--consensus", "--d-sae", "500"), "give --d-sae 105 or fewer"),
        (("--consensus", "--d-sae", "400", "--seeds", "2000000"), "fit at once"),
        (("--halves", "some"), "unknown --halves 'some'"),
    ],
)
def test_what_cannot_be_a_consensus_is_refused(main, made, flags, said):
    done = main("fit", "--run", made, *flags, "--json")
    assert done.rc == 2, done.stderr
    error = done.json()["error"]
    assert said in error["message"] + (error["hint"] or ""), error


def test_consensus_at_the_pooled_site_alone_where_it_has_rows_enough():
    plan = FitPlan(seed=3, seeds=(3, 4, 5), consensus=True, consensus_at="pooled", halves="none")
    assert plan.at(POOLED, 64) is plan
    for site, n_train in ((POOLED, 63), ("visual.blocks.0.hook_resid_post", 1000)):
        one = plan.at(site, n_train)
        assert not one.consensus and one.seeds == (3,) and not one.compares(site)
        assert one.inputs("fit", site) == FitPlan(seed=3, seeds=(3,)).inputs("fit", site)
    everywhere = replace(plan, consensus_at="all")
    assert everywhere.at("visual.blocks.0.hook_resid_post", 8) is everywhere
