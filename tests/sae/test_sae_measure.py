"""`measure` and the command `sae measure`: the parts there is data for, on disk as in the answer."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from activation_stores import write_store
from sae_rows import planted, random_sae
from scipy.sparse import csr_matrix

from dermaudit.files import write_parquet
from dermaudit.run.directory import Run, open_run
from dermaudit.sae import ActivationStore
from dermaudit.sae.evaluation import EvaluationImages, MeasurementData, measure, metrics_table
from dermaudit.sae.evaluation.measured import summary
from dermaudit.sae.inference.codes import write_codes

SITE = "visual.pooled"


def make_run(folder, sae, n: int = 300, broken: int | None = None, order=None, labels="ab") -> Run:
    """A run as embed and fit leave it; images of one group lie side by side. "ruler" is latent 5.
    `order`: in which the images are stored."""
    acts = planted(n, 7)
    if broken is not None:
        acts[broken] = np.nan
    run = Run.create(folder)
    run.meta.update(model={"name": "toy", "fingerprint": "f" * 64}, data={"root": str(folder)})
    groups = [f"g{i // 2}" for i in range(n)]
    splits = ["test" if i // 2 % 2 else "train" for i in range(n)]
    ruler = (sae.encode(torch.from_numpy(acts))[:, 5] > 0).double().tolist()
    table = pa.table(
        {
            "image": [f"{i}.png" for i in range(n)],
            "split": splits,
            "group": groups,
            "label": [labels[0] if i % 4 < 2 else labels[1] for i in range(n)],
            "artifact:ruler": pa.array([None, *ruler[1:]], pa.float64()),
        }
    )
    write_parquet(run.files.images, table)
    run.record("images", {}, [run.files.images])
    order = np.arange(n) if order is None else order
    shards = [(acts[order], order, order // 2)]
    store = write_store(folder / "embeddings" / SITE, shards, site=SITE)
    run.record("embed", {}, store.files(), summary={"sites": [SITE]})
    add_sae(run, sae, acts)
    return run


def add_sae(run: Run, sae, acts) -> None:
    files = sae.save(run.file("sae", SITE))
    files += write_codes(run.file("codes", SITE), sae, acts, SITE)
    run.record(f"fit:{SITE}", {}, files, upstream=["embed"])


def test_measure_the_parts_there_is_data_for():
    sae, x = random_sae(24, 40, threshold=0.3), planted(400)
    groups = np.arange(400) // 2
    alone = measure(sae, MeasurementData(x, groups), n_draws=50)
    assert "monosemanticity" not in alone and "stability" not in alone
    assert alone["reconstruction"]["fvu"]["control"] is None
    codes = csr_matrix(sae.encode(torch.from_numpy(x)).numpy())
    truth = {"ruler": (codes[:, [3]].toarray().ravel() > 0).astype(float), "rare": np.zeros(400)}
    side = EvaluationImages(codes, groups, truth, x)
    data = MeasurementData(
        x,
        groups,
        train=planted(500, 3),
        images=side,
        fitted=side,
        embeddings=x,
        others=[random_sae(24, 40, seed=1, threshold=0.3)],
    )
    full = measure(sae, data, n_draws=50)
    assert full["reconstruction"]["l0"] == alone["reconstruction"]["l0"]
    assert full["reconstruction"]["fvu"]["control_is"].startswith("PCA of train rows, ")
    assert full["monosemanticity"]["mean"]["n"] == 200  # one image a group
    assert full["stability"]["shared"]["n"] <= 40
    assert full["probes"]["labels"]["ruler"]["k=1"]["latents"] == [3]
    assert "reason" in full["probes"]["labels"]["rare"]
    assert full["truth"]["SAE"]["matched_f1"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert {"pca", "ica", "k-means", "random directions", "linear probes"} < set(full["truth"])
    # JSON as it is, and nothing that is not a number in it.
    assert json.loads(json.dumps(full, allow_nan=False)) == full
    json.dumps(summary(full), allow_nan=False)


def test_measure_what_lacks_evidence_names_why(capsys):
    sae, x = random_sae(24, 40), planted(60)
    silent = random_sae(24, 40, seed=1, threshold=1e6)
    side = EvaluationImages(
        csr_matrix(sae.encode(torch.from_numpy(x)).numpy()), np.arange(60), {"few": np.zeros(60)}
    )
    data = MeasurementData(x, np.arange(60), images=side, fitted=side, others=[silent])
    found = measure(sae, data, n_draws=20)
    assert "no latent of SAE 1 fires" in found["stability"]["reason"]
    assert "no label is present" in found["truth"]["reason"]
    metrics_table(found)
    said = capsys.readouterr().err
    assert "no stability: no latent of SAE 1 fires" in said and "FVU" in said


def test_command_prints_writes_and_is_not_done_twice(main, tmp_path):
    sae = random_sae(24, 40, threshold=0.3)
    run = make_run(tmp_path / "run", sae)
    other = random_sae(24, 40, seed=1, threshold=0.3)
    other.save(tmp_path / "other")
    argv = (
        "sae",
        "measure",
        "--run",
        run.path,
        "--draws",
        30,
        "--against",
        tmp_path / "other",
        "--json",
    )
    done = main(*argv)
    assert done.rc == 0, done.stderr
    figures = done.json()["sites"][SITE]
    written = json.loads(run.file("sae", SITE, "measured.json").read_text())
    assert figures["reconstruction"]["fvu"] == written["reconstruction"]["fvu"]
    assert figures["reconstruction"]["fvu"]["n"] == 150  # test rows alone
    assert len(written["stability"]["per_latent"]["stable"]) == 40
    assert written["probes"]["labels"]["ruler"]["k=1"]["latents"] == [5]
    assert "zero_shot" not in written  # no names are known for these labels
    assert "FVU (around the mean)" in done.stderr and "circular" in done.stderr
    assert str(tmp_path) not in run.file("sae", SITE, "measured.json").read_text()
    first = run.file("sae", SITE, "measured.json").stat().st_mtime_ns
    assert main(*argv).json()["sites"] == done.json()["sites"]
    assert run.file("sae", SITE, "measured.json").stat().st_mtime_ns == first
    # Another SAE in the same folder is measured anew.
    random_sae(24, 40, seed=2, threshold=0.3).save(tmp_path / "other")
    assert main(*argv).json()["sites"] != done.json()["sites"]
    # The run's SAE was fitted again: the old figures go with the old weights.
    acts = ActivationStore.open(run.file("embeddings", SITE)).read()[0]
    add_sae(open_run(run.path), random_sae(24, 40, seed=3, threshold=0.3), acts)
    again = main(*argv).json()["sites"][SITE]
    assert again["reconstruction"]["fvu"] != figures["reconstruction"]["fvu"]


def test_command_the_order_of_storage_changes_nothing(main, tmp_path):
    sae = random_sae(24, 40, threshold=0.3)
    found = []
    for name, order in (("a", None), ("b", np.random.default_rng(0).permutation(300))):
        run = make_run(tmp_path / name, sae, order=order)
        assert main("sae", "measure", "--run", run.path, "--draws", 20).rc == 0
        found.append(json.loads(run.file("sae", SITE, "measured.json").read_text()))
    for part in ("monosemanticity", "probes", "truth"):
        assert found[0][part] == found[1][part]
    figures, others = (one["reconstruction"] for one in found)
    for name in ("fvu", "l0", "cosine"):
        for end in ("value", "low", "high"):
            assert figures[name][end] == pytest.approx(others[name][end], abs=2e-6)


def test_command_an_independent_model_judges(main, tmp_path):
    from PIL import Image

    run = make_run(tmp_path / "run", random_sae(24, 40, threshold=0.3), n=120)
    argv = ("sae", "measure", "--run", run.path, "--draws", 20, "--embeddings-of", "phantom-vit")
    done = main(*argv)
    assert done.rc == 2 and "does not exist" in done.stderr and "data locate" in done.stderr
    assert "2.png of the run" in done.stderr  # the first test image
    rng = np.random.default_rng(0)
    for i in range(120):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(run.path / f"{i}.png")
    done = main(*argv)
    assert done.rc == 0 and "circular" not in done.stderr, done.stderr
    found = json.loads(run.file("sae", SITE, "measured.json").read_text())["monosemanticity"]
    assert found["same_model"] is False and found["mean"]["n"] == 30
    # Noise is alike to it, and no latent is above chance by more than noise.
    assert abs(found["lift"]["value"]) < 0.05 < found["mean"]["control"]


def test_command_a_model_that_cannot_be_opened_costs_the_zero_shot_figures_alone(main, tmp_path):
    run = make_run(tmp_path / "run", random_sae(24, 40, threshold=0.3), n=120, labels=("mel", "nv"))
    done = main("sae", "measure", "--run", run.path, "--draws", 20, "--json")
    assert done.rc == 0 and "no zero-shot: unknown model 'toy'" in done.stderr.replace("\n", " ")
    assert done.json()["sites"][SITE]["probes"]["mean"]["k=1"]["n"] == 1  # the ruler
    run.meta["model"] = {"name": "phantom-vit", "fingerprint": "f" * 64}
    run.save()
    again = main("sae", "measure", "--run", run.path, "--draws", 20, "--force")
    assert again.rc == 0 and "was made with another model" in again.stderr.replace("\n", " ")


def test_command_nan_rows_are_reported_and_left_out_of_every_part(main, tmp_path):
    sae = random_sae(24, 40, threshold=0.3)
    run = make_run(tmp_path / "run", sae, broken=2)  # a test image, the first of its group
    done = main("sae", "measure", "--run", run.path, "--draws", 20, "--json")
    assert done.rc == 0, done.stderr
    assert "1 held-out rows are not finite and were left out" in done.stderr
    found = json.loads(run.file("sae", SITE, "measured.json").read_text())
    assert found["reconstruction"]["fvu"]["n"] == 149
    assert found["monosemanticity"]["mean"]["n"] == 75  # the other image of that group stands in
    assert found["probes"]["labels"]["ruler"]["n"] == 149


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--site", "visual.poled"], "did you mean 'visual.pooled'"),
        (["--against", "nowhere"], "--against nowhere is not a folder"),
        (["--against", "."], "there is no sparse autoencoder at --against"),
        (["--against", "same"], "hold the same weights"),
        (["--against", "elsewhere"], "is an SAE of visual.blocks.3"),
        (["--against", "wide"], "rows 8 wide"),
        (["--draws", "3"], "draws"),
    ],
)
def test_command_refusals(main, tmp_path, flags, said):
    sae = random_sae(24, 40, threshold=0.3)
    run = make_run(tmp_path / "run", sae, n=120)
    sae.save(tmp_path / "same")
    elsewhere = random_sae(24, 40, seed=1)
    elsewhere.metadata = {"hook_name": "visual.blocks.3.hook_resid_post"}
    elsewhere.save(tmp_path / "elsewhere")
    random_sae(8, 40).save(tmp_path / "wide")
    done = main("sae", "measure", "--run", run.path, *flags, cwd=tmp_path)
    assert done.rc == 2 and said in done.stderr.replace("\n", " "), done.stderr
    assert not run.file("sae", SITE, "measured.json").exists()


def test_command_nothing_fitted_and_nothing_to_test(main, tmp_path):
    empty = Run.create(tmp_path / "empty")
    done = main("sae", "measure", "--run", empty.path)
    assert done.rc == 2 and "has no fit stage yet" in done.stderr
    run = make_run(tmp_path / "run", random_sae(24, 40, threshold=0.3), n=120)
    table = pq.read_table(run.file("images.parquet"))
    at = table.column_names.index("split")
    write_parquet(run.files.images, table.set_column(at, "split", [["train"] * 120]))
    run.record("images", {}, [run.files.images])
    done = main("sae", "measure", "--run", run.path)
    assert done.rc == 3 and "has no test images" in done.stderr
