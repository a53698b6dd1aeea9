"""Bad input through the real command line: one sentence, exit code 2, nothing lost."""

from __future__ import annotations

import shutil

import pytest

from dermaudit.files import sha256_file


def one_sentence(done, *words: str) -> None:
    assert done.rc == 2, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_audit_of_a_missing_column(cli, tmp_path):
    (tmp_path / "manifest.csv").write_text("filename,label\na.png,mel\n")
    done = cli(
        "audit", tmp_path / "manifest.csv", "--model", "phantom-vit", "--run", tmp_path / "run"
    )
    one_sentence(done, "image")
    assert not (tmp_path / "run").exists()


def test_audit_of_an_empty_table(cli, tmp_path):
    (tmp_path / "manifest.csv").write_text("image,label\n")
    done = cli(
        "audit", tmp_path / "manifest.csv", "--model", "phantom-vit", "--run", tmp_path / "run"
    )
    one_sentence(done, "manifest.csv")


def test_a_path_outside_the_data_folder(cli, tmp_path):
    (tmp_path / "manifest.csv").write_text("image\n../secret.png\n")
    one_sentence(cli("audit", tmp_path / "manifest.csv", "--model", "phantom-vit"), "../secret.png")


def test_a_wrong_model_name_offers_the_nearest(cli, image_folder, tmp_path):
    done = cli(
        "audit",
        image_folder("a.png", "b.png"),
        "--model",
        "fantom-vit",
        "--run",
        tmp_path / "run",
        timeout=300,
    )
    one_sentence(done, "phantom-vit")
    assert not (tmp_path / "run").exists()


def test_too_few_images_is_a_lack_of_evidence(cli, image_folder, tmp_path):
    folder = image_folder(*(f"{i}.png" for i in range(6)))
    argv = ("audit", folder, "--model", "phantom-vit", "--run", tmp_path / "run", "--sae", "own")
    done = cli(*argv, timeout=300)
    assert done.rc == 3
    assert "6 images are too few" in done.stderr and "dermaudit bench zeroshot" in done.stderr
    assert not (tmp_path / "run").exists(), "the check comes before the embedding"


@pytest.mark.slow
def test_a_run_folder_that_is_something_else(cli, image_folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    done = cli(
        "embed",
        image_folder("a.png"),
        "--model",
        "phantom-vit",
        "--run",
        tmp_path / "mine",
        timeout=300,
    )
    one_sentence(done, "is not a run")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose me"


def test_reading_commands_without_a_run(cli, tmp_path):
    one_sentence(cli("fit", "--run", tmp_path / "none"), "is not a run")
    one_sentence(cli("concepts", cwd=tmp_path), "no run found")


@pytest.mark.slow
def test_k_larger_than_the_dictionary(cli, demo):
    one_sentence(cli("fit", "--run", demo.run, "--k", "20", "--d-sae", "10"), "--k 20")


@pytest.mark.slow
def test_an_altered_file_of_the_run_is_refused(cli, demo, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    with (run / "concepts.parquet").open("ab") as handle:
        handle.write(b"0")
    one_sentence(cli("concepts", "--run", run), "concepts.parquet", "altered")


@pytest.mark.slow
def test_a_stage_made_before_its_input_is_stale(cli, demo, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(demo.run, run)
    assert cli("fit", "--run", run, "--samples", "3000", "--threads", 1, timeout=300).rc == 0
    one_sentence(cli("concepts", "--run", run), "stale")


@pytest.mark.slow
def test_a_training_image_in_test_is_refused(demo, tmp_path):
    from dermaudit.data import Manifest
    from dermaudit.errors import UserInputError
    from dermaudit.run.directory import Run
    from dermaudit.run.images import ingest

    manifest = Manifest.load(demo.data).take(range(40))
    test = manifest.splits.index("test")

    class Tower:
        name, fingerprint, preprocess_config = "mine", "0" * 64, {}

        def training_hashes(self):
            return frozenset({sha256_file(manifest.paths()[test])[:16]})

    with pytest.raises(UserInputError, match="training images"):
        ingest(Run.create(tmp_path / "run"), manifest, Tower())


@pytest.mark.slow
def test_unlabelled_folder_gives_names_and_maps_only(cli, demo, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in sorted((demo.data / "images").iterdir())[:160]:
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_bytes(b"not an image")
    run = tmp_path / "run"
    done = cli(
        "audit",
        folder,
        "--model",
        "phantom-vit",
        "--run",
        run,
        "--threads",
        1,
        "--json",
        timeout=600,
    )
    assert done.rc == 0, done.stderr[-2000:]
    result = done.json()
    assert result["n_images"] == 160 and result["n_skipped"] == 1
    assert result["concepts"] == {} and result["concepts_reason"] == "no labels: not measured"
    assert result["bottleneck"]["reason"] == "no labels: not measured"
    assert "no labels: not measured" in done.stderr
    assert (run / "report" / "index.html").is_file()
