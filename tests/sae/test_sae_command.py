"""`sae show` and `sae import` as they are typed."""

from __future__ import annotations

import json

import pytest
import torch
from sae_checkpoints import (
    Bomb,
    Weights,
    header,
    linear,
    overcomplete_state,
    write_dictionary,
    write_saev,
)  # fmt: skip
from sae_rows import random_relu, random_sae, random_topk

from dermaudit.sae.inference.model import TopKSAE, load_sae


@pytest.fixture
def dictionary(tmp_path):
    w = Weights()
    state = linear(w, b_dec=w.bd, k=torch.tensor(4), threshold=torch.tensor(1.0))
    return write_dictionary(tmp_path / "trained", "AutoEncoderTopK", state)


def test_show_our_own_with_its_metrics(main, tmp_path):
    sae = random_sae()
    sae.metadata |= {"k": 3.5, "training_architecture": "batchtopk", "seed": 7}
    sae.save(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"fvu": 0.25, "n_test_rows": 100}))
    done = main("sae", "show", tmp_path, "--json")
    found = done.json()
    assert done.rc == 0
    assert found["family"] == "sae-lens" and found["architecture"] == "jumprelu"
    assert (found["d_in"], found["d_sae"], found["k"]) == (8, 12, 3.5)
    assert found["training_architecture"] == "batchtopk" and found["hook_name"] == "visual.pooled"
    assert found["threshold"] == pytest.approx(0.1) and found["decoder_norm"] == pytest.approx(1)
    assert found["metrics"] == {"fvu": 0.25, "n_test_rows": 100} and found["metadata"]["seed"] == 7
    assert "threshold: 0.1" in done.stderr and "metrics.fvu: 0.25" in done.stderr
    # The file itself may be given.
    again = main("sae", "show", tmp_path / "cfg.json", "--json").json()
    assert again == found


def test_show_a_topk_names_its_k_and_a_range_of_norms(main, tmp_path):
    random_topk(k=3).save(tmp_path)
    found = main("sae", "show", tmp_path, "--json").json()
    assert found["architecture"] == "topk" and found["k"] == 3 and "threshold" not in found
    assert found["decoder_norm_range"] == pytest.approx([0.5, 2.0])


def test_show_a_relu_has_neither_threshold_nor_k(main, tmp_path):
    random_relu().save(tmp_path)
    found = main("sae", "show", tmp_path, "--json").json()
    assert found["architecture"] == found["training_architecture"] == "standard"
    assert found["k"] is None and "threshold" not in found


def test_import_is_what_was_read_and_names_where_it_came_from(main, tmp_path, dictionary):
    import hashlib

    from dermaudit.sae.formats import read_foreign

    out = tmp_path / "ours"
    done = main(
        "sae",
        "import",
        dictionary,
        "--out",
        out,
        "--site",
        "visual.pooled",
        "--model",
        "toy",
        "--json",
    )
    found, sae = done.json(), load_sae(out)
    assert done.rc == 0 and isinstance(sae, TopKSAE) and sae.k == 4
    assert sorted(file.name for file in out.iterdir()) == ["cfg.json", "sae_weights.safetensors"]
    x = torch.randn(50, 8)
    assert torch.equal(sae.encode(x), read_foreign(dictionary).encode(x))
    assert sae.hook_name == "visual.pooled" and sae.metadata["model_name"] == "toy"
    assert sae.metadata["imported_from"] == found["imported_from"] == "dictionary_learning"
    source = hashlib.sha256((dictionary / "ae.pt").read_bytes()).hexdigest()
    assert sae.metadata["source_sha256"] == source and sae.metadata["source_file"] == "ae.pt"
    assert str(tmp_path) not in (out / "cfg.json").read_text()
    # The same source gives the same bytes.
    first = [file.read_bytes() for file in sorted(out.iterdir())]
    refused = main("sae", "import", dictionary, "--out", out)
    assert refused.rc == 2 and "--force" in refused.stderr
    assert (
        main(
            "sae",
            "import",
            dictionary / "ae.pt",
            "--out",
            out,
            "--site",
            "visual.pooled",
            "--model",
            "toy",
            "--force",
        ).rc
        == 0
    )
    assert [file.read_bytes() for file in sorted(out.iterdir())] == first


def test_import_without_a_site_it_names_so(main, tmp_path, dictionary):
    done = main("sae", "import", dictionary, "--out", tmp_path / "ours")
    assert done.rc == 0 and "--site" in done.stderr


def test_import_k_that_the_file_does_not_say(main, tmp_path):
    torch.save(overcomplete_state(Weights(unit=True)), tmp_path / "sae.pt")
    refused = main("sae", "import", tmp_path / "sae.pt", "--out", tmp_path / "ours", "--json")
    assert refused.rc == 2 and "nor its k" in refused.json()["error"]["message"]
    assert not (tmp_path / "ours").exists()
    assert main("sae", "import", tmp_path / "sae.pt", "--out", tmp_path / "ours", "--k", 5).rc == 0
    assert load_sae(tmp_path / "ours").k == 5


def test_show_notes_of_an_import_are_reported(main, tmp_path):
    write_saev(tmp_path / "sae.pt", Weights(), header("TopK", top_k=4))
    done = main("sae", "show", tmp_path)
    assert done.rc == 0 and "note: saev keeps negative" in done.stderr


def test_pickled_code_exit_code_2_one_sentence_and_nothing_run(cli, tmp_path):
    torch.save({"model": Bomb(tmp_path / "ran")}, tmp_path / "sae.pt")
    done = cli("sae", "import", tmp_path / "sae.pt", "--out", tmp_path / "ours", "--json")
    error = done.json()["error"]
    assert done.rc == 2 and error["code"] == "foreign" and "pickled code" in error["message"]
    assert "sae.pt" in error["message"] and "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("command", ["show", "import"])
def test_absent_is_reported_before_anything_heavy_is_imported(run_python, tmp_path, command):
    code = (
        "import sys; from dermaudit.cli import main; "
        f"rc = main(['sae', {command!r}, 'none.pt', *{['--out', 'o'] if command == 'import' else []!r}]); "
        "print(rc, 'torch' in sys.modules)"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.stdout.split() == ["2", "False"] and "none.pt does not exist" in done.stderr


@pytest.mark.parametrize("command", ["show", "import"])
def test_help_loads_no_torch(run_python, command):
    code = (
        "import sys; from dermaudit.cli import main; "
        f"main(['sae', {command!r}, '--help']); print('torch' in sys.modules, file=sys.stderr)"
    )
    done = run_python("-c", code)
    assert done.stderr.split()[-1] == "False" and "checkpoint" in done.stdout.lower()


def test_out_a_file_or_a_full_disk(cli, main, tmp_path, dictionary):
    (tmp_path / "file").write_text("x")
    refused = main("sae", "import", dictionary, "--out", tmp_path / "file")
    assert refused.rc == 2 and "is a file" in refused.stderr
    full = cli("sae", "import", dictionary, "--out", tmp_path / "ours", "--json", file_limit_kb=1)
    assert full.rc == 2 and full.json()["error"]["code"] == "no_space"
    assert not list((tmp_path / "ours").iterdir())
