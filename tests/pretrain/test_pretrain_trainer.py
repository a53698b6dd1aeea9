"""Training end to end on phantoms: killed and resumed to the bit, and what the checkpoint folder says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file

from dermaudit.data import BadImage, Manifest, read_image
from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import sha256_file
from dermaudit.pretrain.build import build_and_train
from dermaudit.pretrain.probe import embed, measure
from dermaudit.pretrain.recipe import load_recipe
from dermaudit.towers import load_model


def train(recipe_path, data, out, *overrides, resume=False):
    work = out.with_name(f".{out.name}.training")
    return build_and_train(
        load_recipe(recipe_path, list(overrides)), Manifest.load(data), out, work,
        threads=1, resume=resume,
    )


@pytest.fixture(scope="module")
def unbroken(tiny_recipe, phantoms, tmp_path_factory):
    """(checkpoint folder, summary) of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("checkpoints") / "unbroken"
    return out, train(tiny_recipe, phantoms, out)


@pytest.fixture(scope="module")
def killed_twice(cli, tiny_recipe, phantoms, tmp_path_factory):
    """(return codes, checkpoint folder, state after the first kill): killed in stage 1 and in 2."""
    out = tmp_path_factory.mktemp("checkpoints") / "killed"
    argv = ["pretrain", tiny_recipe, "--data", phantoms, "--out", out, "--threads", "1"]
    codes, states = [], []
    for options, failpoint in (([], "pretrain:1"), (["--resume"], "pretrain:2")):
        done = cli(*argv, *options, env={"DERMAUDIT_FAILPOINT": failpoint}, timeout=300)
        codes.append(done.rc)
        states.append(out.with_name("states") / str(len(codes)))
        shutil.copytree(out.with_name(".killed.training"), states[-1])
    done = cli(*argv, "--resume", "--json", timeout=300)
    codes.append(done.rc)
    return codes, out, states, done


def test_killed_and_resumed__the_same_weights_bit_for_bit(unbroken, killed_twice):
    codes, out, states, done = killed_twice
    assert codes == [137, 137, 0], done.stderr
    progress = [json.loads(_metadata(s / "state.safetensors")["progress"]) for s in states]
    assert [(p["stage"], p["epoch"]) for p in progress] == [("masked", 1), ("contrastive", 1)]
    one, other = (load_file(f / "open_clip_model.safetensors") for f in (unbroken[0], out))
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name
    log = [json.loads(line) for line in (out / "training_log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["epoch"]) for e in log] == [
        ("masked", 1), ("masked", 2), ("contrastive", 1), ("contrastive", 2)
    ]
    whole = [json.loads(x) for x in (unbroken[0] / "training_log.jsonl").read_text().splitlines()]
    assert [e["loss"] for e in log] == [e["loss"] for e in whole]
    assert not out.with_name(".killed.training").exists()
    assert done.json()["n_skipped"] == 1


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return handle.metadata()


@pytest.mark.parametrize("override", ["seed=6", "contrastive.lr=0.5", "masked.mask=0.4"])
def test_resume__another_recipe_is_refused(killed_twice, tiny_recipe, phantoms, tmp_path, override):
    shutil.copytree(killed_twice[2][0], tmp_path / ".out.training")
    with pytest.raises(ForeignArtifactError, match="belongs to another recipe or other images") as no:
        train(tiny_recipe, phantoms, tmp_path / "out", override, resume=True)
    assert "--force" in no.value.hint and not (tmp_path / "out").exists()


def test_another_seed__other_weights(unbroken, tiny_recipe, phantoms, tmp_path):
    train(tiny_recipe, phantoms, tmp_path / "o", "seed=6", "masked.epochs=0", "contrastive.epochs=1")
    one, other = (
        load_file(f / "open_clip_model.safetensors") for f in (unbroken[0], tmp_path / "o")
    )
    assert not torch.equal(one["visual.conv1.weight"], other["visual.conv1.weight"])


# ---- what is written


def test_training_images__exactly_the_readable_train_images(unbroken, phantoms):
    manifest = Manifest.load(phantoms)
    listed = json.loads((unbroken[0] / "training_images.json").read_text())["sha256"]
    assert len(set(listed)) == len(listed)
    digits = len(listed[0])
    expected = set()
    for path, split in zip(manifest.paths(), manifest.splits, strict=True):
        try:
            read_image(path)
        except BadImage:
            continue
        if split == "train":
            expected.add(sha256_file(path)[:digits])
    assert set(listed) == expected and unbroken[1]["n_train"] == len(expected)
    assert unbroken[1]["n_skipped"] == 1


def test_stock_open_clip__opens_it(unbroken, phantoms):
    out, _ = unbroken
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    tower = load_model(f"local-dir:{out}")
    texts = ["a dermoscopic image of melanoma", "no ruler"]
    with torch.no_grad():
        ours, theirs = tower.encode_text(texts), model.eval().encode_text(tokenize(texts), normalize=True)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        manifest = Manifest.load(phantoms)
        from PIL import Image

        path = manifest.paths()[50]
        stock = model.encode_image(transform(Image.open(path).convert("RGB"))[None], normalize=True)
        mine = tower.encode_image(tower.preprocess([read_image(path)]), normalize=True)
    torch.testing.assert_close(stock, mine, atol=1e-4, rtol=0)


def test_weights__half_on_disk_and_finite(unbroken):
    tensors = load_file(unbroken[0] / "open_clip_model.safetensors")
    assert tensors["visual.conv1.weight"].dtype == torch.float16
    assert all(torch.isfinite(t.float()).all() for t in tensors.values())


def test_card__names_the_recipe_and_how_to_reproduce(unbroken):
    card = (unbroken[0] / "README.md").read_text()
    assert "Recipe `tiny`, seed 5" in card and "dermaudit pretrain tiny" in card
    assert f"Trained on {unbroken[1]['n_train']} images" in card


# ---- scoring


def test_measure__training_images_are_refused(unbroken, phantoms):
    tower, manifest = load_model(f"local-dir:{unbroken[0]}"), Manifest.load(phantoms)
    measure(tower, manifest)  # its own split: fine
    swapped = ["test" if s == "train" else "train" for s in manifest.splits]
    table = manifest.table.set_column(
        manifest.table.column_names.index("split"), "split", [swapped]
    )
    with pytest.raises(UserInputError, match="training images of"):
        measure(tower, Manifest(table, manifest.root, manifest.path))


def test_embed__a_broken_file_does_not_stop_it(unbroken, phantoms):
    tower, manifest = load_model(f"local-dir:{unbroken[0]}"), Manifest.load(phantoms)
    x = embed(tower, [*manifest.paths()[:70], phantoms / "absent.png"])
    broken = np.isnan(x).any(1)
    assert 2 <= broken.sum() <= 3 and broken[-1]
    np.testing.assert_allclose(np.linalg.norm(x[~broken], axis=1), 1, atol=1e-5)


# ---- too little


def test_fewer_images_than_a_batch(tiny_recipe, phantoms, tmp_path):
    with pytest.raises(EvidenceError, match="fewer than one batch of 500") as refused:
        train(tiny_recipe, phantoms, tmp_path / "o", "batch=500")
    assert refused.value.numbers["batch"] == 500


def test_no_captions(tiny_recipe, phantoms, tmp_path):
    manifest = Manifest.load(phantoms)
    bare = [c for c in manifest.table.column_names if c in ("image", "image_id", "group", "split")]
    silent = Manifest(manifest.table.select(bare), manifest.root, manifest.path)
    with pytest.raises(EvidenceError, match="says nothing about its images"):
        build_and_train(load_recipe(tiny_recipe), silent, tmp_path / "o", tmp_path / "w", threads=1, resume=False)


def test_loss_that_is_not_finite(tiny_recipe, phantoms, tmp_path, monkeypatch):
    from dermaudit.pretrain import trainer

    monkeypatch.setattr(trainer, "caption_loss", lambda kind, a, b, m: (a * np.nan).sum())
    with pytest.raises(EvidenceError, match="contrastive: the loss is not finite at epoch 0, step 0"):
        train(tiny_recipe, phantoms, tmp_path / "o", "masked.epochs=0")
