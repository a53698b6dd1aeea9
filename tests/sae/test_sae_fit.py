"""The command `fit`: its files, sweeps, seeds, resumption after a kill, and messages for bad input."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sae_run import PATCHES, POOLED, SHORT, TOKENS, write_run

from dermaudit.files import sha256_file
from dermaudit.run.directory import open_run
from dermaudit.sae import Codes
from dermaudit.sae.inference.model import WEIGHTS, load_sae
from dermaudit.sae.training.plan import memorising

ALONE = ("--seeds", "0", "--no-metrics")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with two sites; copy it before writing to it."""
    return write_run(tmp_path_factory.mktemp("made") / "run", sites=(POOLED, PATCHES)).path


@pytest.fixture
def run(made, tmp_path):
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def bad_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("bad") / "run", bad=(4, 31)).path


def test_fit_writes_sae_codes_metrics_and_log(main, run):
    done = main("fit", "--run", run, *SHORT, *ALONE, "--json")
    assert done.rc == 0, done.stderr
    assert not (run / ".training").exists()
    for site, tokens in ((POOLED, 1), (PATCHES, TOKENS)):
        said = done.json()["sae"][site]
        assert said == json.loads((run / "sae" / site / "metrics.json").read_text())
        assert said["architecture"] == "batchtopk" and said["d_sae"] == 16
        assert said["n_train"] == 420 * tokens and said["n_test_rows"] == 120 * tokens
        assert said["l0"] == pytest.approx(3, rel=0.2) and said["fvu"] < 0.8
        fvu = said["held_out"]["fvu"]
        assert (
            fvu["low"] < fvu["value"] == said["fvu"] < fvu["high"]
            and said["held_out"]["n_groups"] == 40
        )
        log = [
            json.loads(x) for x in (run / "sae" / site / "training.jsonl").read_text().splitlines()
        ]
        assert (
            log[-1]["step"] == said["steps"]
            and {"held_fvu", "loss", "l0", "dead", "lr"} <= log[-1].keys()
        )
        codes = Codes(run / "codes" / site).csr()
        assert codes.shape == (600, 16)
        sae = load_sae(run / "sae" / site)
        acts = torch.from_numpy(np.load(_acts(run, site)))
        z = sae.encode(acts)
        expected = z if tokens == 1 else z.amax(1)
        np.testing.assert_allclose(codes.toarray(), expected.numpy(), atol=1e-5)
        open_run(run).require(f"fit:{site}")
    # Nothing to do a second time; --force does it again, to the same bytes.
    before = sha256_file(run / "sae" / POOLED / WEIGHTS)
    log = (run / "log.jsonl").read_text()
    assert main("fit", "--run", run, *SHORT, *ALONE, "--json").json()["sae"] == done.json()["sae"]
    assert (run / "log.jsonl").read_text().count('"stage"') == log.count('"stage"')
    assert main("fit", "--run", run, *SHORT, *ALONE, "--force").rc == 0
    assert sha256_file(run / "sae" / POOLED / WEIGHTS) == before


def _acts(run, site):
    from dermaudit.sae import ActivationStore

    path = run / f"{site}.npy"
    np.save(path, ActivationStore.open(run / "embeddings" / site).read()[0])
    return path


def test_sweep_is_measured_on_val_and_does_not_change_the_run(main, run):
    done = main("fit", "--run", run, *SHORT[4:], "--sweep", "d_sae=8,16;k=2,3", "--json")
    assert done.rc == 0, done.stderr
    members = done.json()["sweep"][POOLED]["members"]
    names = ["d_sae=8,k=2", "d_sae=8,k=3", "d_sae=16,k=2", "d_sae=16,k=3"]
    assert [one["name"] for one in members] == names
    assert not (run / "sae").exists() and not (run / "codes").exists()
    for one in members:
        assert one["n_val_rows"] == 60 and "n_test_rows" not in one
        assert load_sae(run / "sweep" / POOLED / one["name"]).d_sae == one["d_sae"]
        assert one["name"] in done.stderr
    # One of them alone is the same SAE.
    assert main("fit", "--run", run, *SHORT, *ALONE).rc == 0
    same = [run / part / POOLED for part in ("sae", "sweep")]
    assert sha256_file(same[0] / WEIGHTS) == sha256_file(same[1] / names[3] / WEIGHTS)


def test_sweep_by_stability_says_what_the_seeds_of_a_recipe_agree_on(main, run):
    argv = ("--sweep", "k=2,3", "--by", "stability", "--seeds", "0,1,2,3", "--json")
    done = main("fit", "--run", run, *(f for f in SHORT if f not in ("--k", "3")), *argv)
    assert done.rc == 0, done.stderr
    sweep = done.json()["sweep"][POOLED]
    assert len(sweep["members"]) == 8 and [one["name"] for one in sweep["agreement"]] == [
        "k=2",
        "k=3",
    ]
    for one, first in zip(sweep["agreement"], (0, 4), strict=True):
        own = [member["fvu"] for member in sweep["members"][first : first + 4]]
        assert one["fvu"] == pytest.approx(np.mean(own))
        assert 0 <= one["latents"] <= 16
    # The recipe on which more directions agree is printed first.
    best = max(sweep["agreement"], key=lambda one: (one["latents"], -one["fvu"]))["name"]
    printed = done.stderr.split("directions on which the seeds")[1]
    lines = [line.split()[1] for line in printed.splitlines() if line.strip().startswith(POOLED)]
    assert sorted(lines) == ["k=2", "k=3"] and lines[0] == best


def test_first_seed_is_the_sae_of_the_run_and_the_others_give_stability(main, run):
    done = main("fit", "--run", run, *SHORT, "--seeds", "3,1,2", "--no-metrics", "--json")
    assert done.rc == 0, done.stderr
    said = done.json()["sae"][POOLED]
    assert said["seed"] == 3 and said["stability"]["against"] == ["seed 1", "seed 2"]
    assert "live latents are found by every other seed" in done.stderr
    report = json.loads((run / "sae" / POOLED / "stability.json").read_text())
    assert len(report["per_latent"]["stable"]) == 16
    weights = {
        sha256_file(path / WEIGHTS)
        for path in (run / "sae" / POOLED, *(run / "seeds" / POOLED / f"seed-{i}" for i in (1, 2)))
    }
    assert len(weights) == 3


@pytest.mark.slow
def test_default_fit_has_three_seeds_and_every_figure(main, run):
    alone = main("fit", "--run", run, *SHORT, *ALONE)
    assert alone.rc == 0, alone.stderr
    record = open_run(run).meta["stages"][f"fit:{POOLED}"]
    done = main("fit", "--run", run, *SHORT, "--json")
    assert done.rc == 0, done.stderr
    # The run's own SAE is the same one: nothing that stands on it is stale.
    assert open_run(run).meta["stages"][f"fit:{POOLED}"] == record
    said, measured = done.json()["sae"][PATCHES], done.json()["measured"][PATCHES]
    assert said["stability"]["against"] == ["seed 1", "seed 2"] == measured["stability"]["against"]
    assert measured["reconstruction"]["fvu"]["value"] == pytest.approx(said["fvu"])
    assert measured["monosemanticity"]["lift"]["n"] == 40  # one image a group
    for line in (
        "FVU (around the mean)",
        "… above chance",
        "latents shared",
        "latents by the fraction of rows",
    ):
        assert line in done.stderr
    written = json.loads((run / "sae" / PATCHES / "measured.json").read_text())
    assert len(written["stability"]["per_latent"]["stable"]) == 16
    # Fitted anew, the old comparison is not shown.
    again = main("fit", "--run", run, *SHORT, "--set", "clip=2", "--seeds", "0", "--json")
    assert again.rc == 0 and "no stability: the other seeds are of an earlier fit" in again.stderr
    assert again.json()["measured"][PATCHES]["stability"].keys() == {"reason"}


@pytest.mark.parametrize("arch", ["topk", "matryoshka", "jumprelu", "relu_l1"])
def test_every_architecture_can_be_fitted(main, run, arch):
    flags = [flag for flag in SHORT if arch != "relu_l1" or flag not in ("--k", "3")]
    done = main("fit", "--run", run, *flags, *ALONE, "--arch", arch, "--json")
    assert done.rc == 0, done.stderr
    assert done.json()["sae"][PATCHES]["architecture"] == arch
    assert load_sae(run / "sae" / POOLED).metadata["training_architecture"] == arch


@pytest.mark.slow
def test_killed_fit_resumes_to_the_same_bytes(cli, main, run, tmp_path):
    shutil.copytree(run, tmp_path / "whole")
    assert main("fit", "--run", tmp_path / "whole", *SHORT, *ALONE).rc == 0
    killed = cli(
        "fit", "--run", run, *SHORT, *ALONE, env={"DERMAUDIT_FAILPOINT": "fit:3"}, timeout=600
    )
    assert killed.rc == 137 and not (run / "sae" / POOLED / WEIGHTS).exists()
    other = main("fit", "--run", run, *SHORT, *ALONE, "--set", "clip=2", "--resume", "--json")
    assert other.rc == 2
    assert "another fit: clip was 1.0, is 2.0" in other.json()["error"]["message"]
    done = main("fit", "--run", run, *SHORT, *ALONE, "--resume")
    assert done.rc == 0 and "continuing after step" in done.stderr
    for name in (WEIGHTS, "cfg.json", "metrics.json", "training.jsonl"):
        one, other = (place / "sae" / POOLED / name for place in (run, tmp_path / "whole"))
        assert sha256_file(one) == sha256_file(other), name


@pytest.mark.slow
def test_fit_killed_among_the_other_seeds_resumes_to_the_same_bytes(cli, main, run, tmp_path):
    given = (*SHORT, "--seeds", "0,1,2", "--no-metrics")
    shutil.copytree(run, tmp_path / "whole")
    whole = main("fit", "--run", tmp_path / "whole", *given)
    assert whole.rc == 0
    # The run's own SAE is looked at eight times, so that the tenth look is at the others.
    killed = cli("fit", "--run", run, *given, env={"DERMAUDIT_FAILPOINT": "fit:10"}, timeout=600)
    assert killed.rc == 137
    stages = open_run(run).meta["stages"]
    assert f"fit:{POOLED}" in stages and f"seeds:{POOLED}" not in stages
    done = main("fit", "--run", run, *given, "--resume")
    assert done.rc == 0 and "continuing after step" in done.stderr
    assert not (run / ".training").exists()
    for name in ("sae", "seeds"):
        for file in sorted((tmp_path / "whole" / name).rglob("*.*")):
            if file.is_file():
                other = run / name / file.relative_to(tmp_path / "whole" / name)
                assert sha256_file(file) == sha256_file(other), file.name


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--k", "20", "--d-sae", "10"], "--k 20 is larger than --d-sae 10"),
        (["--set", "k=20", "--d-sae", "10"], "k = 20 is larger than d_sae = 10"),
        (["--sweep", "d_sae=10;k=8,20"], "k = 20 is larger than d_sae = 10"),
        (["--arch", "topk", "--k", "2.5"], "topk keeps a whole number"),
        (["--arch", "topp"], "did you mean 'topk'"),
        (["--arch", "relu_l1", "--k", "4"], "has no effect on relu_l1"),
        (["--samples", "10", "--epochs", "2"], "--samples and --epochs"),
        (["--epochs", "-1"], "epochs = -1 must be above 0"),
        (["--set", "d_sae=4", "--d-sae", "8"], "d_sae is given twice"),
        (["--seeds", "1,1"], "one seed twice"),
        (["--preset", "dermfm"], "did you mean 'dermfm-zero'"),
        (["--bad-rows", "keep"], "unknown --bad-rows 'keep'"),
        (["--resume", "--force"], "contradict"),
        (["--by", "stability"], "compares the recipes of a sweep"),
        (["--device", "gpu"], "--device gpu is no device"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(main, made, flags, said):
    done = main("fit", "--run", made, *flags, "--json")
    assert done.rc == 2
    error = done.json()["error"]
    assert said in error["message"] + (error["hint"] or ""), error


def test_rows_that_are_not_finite_are_named_by_image(main, bad_run, tmp_path):
    shutil.copytree(bad_run, tmp_path / "run")
    fatal = main("fit", "--run", tmp_path / "run", *SHORT, *ALONE, "--bad-rows", "fatal", "--json")
    assert fatal.rc == 2
    message = fatal.json()["error"]["message"]
    assert "2 of 420 rows at visual.pooled are not finite (2 images: ISIC_4, ISIC_31)" in message
    done = main("fit", "--run", tmp_path / "run", *SHORT, *ALONE, "--json")
    assert done.rc == 0 and "ISIC_31): left out" in done.stderr
    said = done.json()["sae"][POOLED]
    assert said["n_train"] == 418 and said["n_not_finite"] == 2
    codes = Codes(tmp_path / "run" / "codes" / POOLED).csr()
    assert np.isfinite(codes.data).all()


def test_store_that_is_cut_off_is_refused(main, run):
    shard = run / "embeddings" / POOLED / "shard-000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    done = main("fit", "--run", run, *SHORT, "--json")
    assert done.rc == 2 and "shard-000001.safetensors" in done.json()["error"]["message"]


def test_too_few_rows_give_a_warning(main, run):
    done = main(
        "fit", "--run", run, "--d-sae", "500", "--k", "3", "--samples", "1000", *ALONE, "--json"
    )
    assert done.rc == 0
    assert "500 latents are fitted on 420 rows (fewer rows than latents" in done.stderr
    assert "--d-sae 21 or fewer" in done.stderr
    assert "represent single rows" in done.json()["sae"][POOLED]["warning"]
    assert memorising(10_000, 500) is None and "19.0 rows for each latent" in memorising(9500, 500)


def test_preset_uses_the_published_recipe_at_this_width(main, run):
    flags = ["--preset", "dermfm-zero", "--epochs", "2", "--d-sae", "32"]
    done = main("fit", "--run", run, *flags, *ALONE, "--json")
    assert done.rc == 0, done.stderr
    said = done.json()["sae"][POOLED]
    assert said["architecture"] == "relu_l1" and said["scale"] == 1.0 and said["steps"] == 2
    assert load_sae(run / "sae" / POOLED).metadata["l1_coefficient"] == pytest.approx(3e-5 * 24)
