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
from dermaudit.distributed import World
from dermaudit.errors import EvidenceError, ForeignArtifactError, UserInputError
from dermaudit.files import sha256_file
from dermaudit.pretrain.recipe import load_recipe
from dermaudit.pretrain.training.build import TrainingJob, build_and_train
from dermaudit.pretrain.training.card import licence_of
from dermaudit.pretrain.training.probe import embed, measure
from dermaudit.towers import load_model


def train(recipe_path, data, out, *overrides, resume=False, **options):
    data = data if isinstance(data, Manifest) else Manifest.load(data)
    work = out.with_name(f".{out.name}.training")
    recipe = load_recipe(recipe_path, list(overrides))
    return build_and_train(TrainingJob(recipe, data, out, work, resume=resume, **options))


def weights_of(folder):
    return load_file(folder / "open_clip_model.safetensors")


def assert_equal_weights(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def log_of(folder):
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def unbroken(tiny_recipe, phantoms, tmp_path_factory):
    """(checkpoint folder, summary) of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("checkpoints") / "unbroken"
    return out, train(tiny_recipe, phantoms, out)


@pytest.fixture(scope="module")
def killed_thrice(cli, tiny_recipe, phantoms, tmp_path_factory):
    """(return codes, checkpoint folder, states after the kills, the last run): killed in stage 1 after a
    state was saved, in stage 2 in the middle of an epoch with nothing saved since, and at its end.

    States are saved every 3 steps (4 an epoch), so that a run goes on inside an epoch too."""
    out = tmp_path_factory.mktemp("checkpoints") / "killed"
    argv = [
        "pretrain",
        tiny_recipe,
        "--data",
        phantoms,
        "--out",
        out,
        "--threads",
        "1",
        "--set",
        "checkpoint_every=3",
    ]
    codes, states = [], []
    kills = (([], "pretrain:1"), (["--resume"], "pretrain-step:10"), (["--resume"], "pretrain:2"))
    for options, failpoint in kills:
        done = cli(*argv, *options, env={"DERMAUDIT_FAILPOINT": failpoint}, timeout=300)
        codes.append(done.rc)
        states.append(out.with_name("states") / str(len(codes)))
        shutil.copytree(out.with_name(".killed.training"), states[-1])
    done = cli(*argv, "--resume", "--json", timeout=300)
    codes.append(done.rc)
    return codes, out, states, done


@pytest.mark.slow
def test_killed_and_resumed_the_same_weights_bit_for_bit(unbroken, killed_thrice):
    codes, out, states, done = killed_thrice
    assert codes == [137, 137, 137, 0], done.stderr
    progress = [json.loads(_metadata(s / "state.safetensors")["progress"]) for s in states]
    # The second was killed at step 13 of both stages' 16, five steps into stage 2.
    assert [(p["stage"], p["step"]) for p in progress] == [
        ("masked", 3),
        ("contrastive", 4),
        ("contrastive", 8),
    ]
    assert_equal_weights(weights_of(unbroken[0]), weights_of(out))
    marks = [(e["stage"], e["step"]) for e in log_of(out)]
    assert marks == [(stage, step) for stage in ("masked", "contrastive") for step in (3, 4, 6, 8)]
    assert not out.with_name(".killed.training").exists()
    assert done.json()["n_skipped"] == 1


def test_the_log_has_the_fields_of_the_plots(unbroken, killed_thrice):
    whole = log_of(unbroken[0])
    assert [(e["stage"], e["epoch"], e["images"]) for e in whole] == [
        (stage, epoch, 64 * epoch) for stage in ("masked", "contrastive") for epoch in (1, 2)
    ]
    for entry in whole:
        assert entry["images_per_s"] > 0 and entry["lr"] >= 0 and entry["failed"] == 0
    # The parts of an epoch have the epoch's mean.
    cut = {(e["stage"], e["step"]): e["loss"] for e in log_of(killed_thrice[1])}
    for stage, first in (("masked", whole[0]), ("contrastive", whole[2])):
        assert (3 * cut[stage, 3] + cut[stage, 4]) / 4 == pytest.approx(first["loss"], abs=1e-6)


def _metadata(path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        return handle.metadata()


@pytest.mark.parametrize("override", ["seed=6", "contrastive.keep=0.5", "masked.mask=0.4"])
def test_resume_another_recipe_is_refused(killed_thrice, tiny_recipe, phantoms, tmp_path, override):
    shutil.copytree(killed_thrice[2][0], tmp_path / ".out.training")
    name = override.split("=")[0]
    with pytest.raises(
        ForeignArtifactError, match=f"belongs to another recipe or other images: {name} was .*, is "
    ) as no:
        train(tiny_recipe, phantoms, tmp_path / "out", override, resume=True)
    assert "--force without --resume" in no.value.hint and not (tmp_path / "out").exists()


def test_resume_with_a_lower_learning_rate(killed_thrice, tiny_recipe, phantoms, tmp_path):
    shutil.copytree(killed_thrice[2][1], tmp_path / ".out.training")
    train(
        tiny_recipe, phantoms, tmp_path / "out", "contrastive.lr=1e-5", "clip_norm=0.5", resume=True
    )
    assert log_of(tmp_path / "out")[-1]["lr"] < 1e-5


def test_resume_drops_a_truncated_log_line(killed_thrice, tiny_recipe, phantoms, tmp_path):
    shutil.copytree(killed_thrice[2][1], tmp_path / ".out.training")
    with (tmp_path / ".out.training" / "log.jsonl").open("a") as log:
        log.write('{"stage": "contrastive", "st')
    train(tiny_recipe, phantoms, tmp_path / "out", resume=True)
    assert [e["step"] for e in log_of(tmp_path / "out")][-2:] == [4, 8]


def test_resume_another_number_of_processes_is_refused(
    killed_thrice, tiny_recipe, phantoms, tmp_path
):
    shutil.copytree(killed_thrice[2][0], tmp_path / ".out.training")
    with pytest.raises(ForeignArtifactError, match="by 1 processes, this is a run of 2") as no:
        train(tiny_recipe, phantoms, tmp_path / "out", resume=True, world=World(0, 2))
    assert "torchrun --nproc-per-node 1" in no.value.hint


def test_resume_refuses_a_truncated_state(killed_thrice, tiny_recipe, phantoms, tmp_path):
    shutil.copytree(killed_thrice[2][0], tmp_path / ".out.training")
    state = tmp_path / ".out.training" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ForeignArtifactError, match=r"state\.safetensors cannot be read") as no:
        train(tiny_recipe, phantoms, tmp_path / "out", resume=True)
    assert "without --resume" in no.value.hint


def test_batch_that_cannot_be_shared(tiny_recipe, phantoms, tmp_path):
    with pytest.raises(
        UserInputError, match="part of a batch of 16 cannot be shared equally by 3 processes"
    ):
        train(tiny_recipe, phantoms, tmp_path / "out", world=World(0, 3))


# ---- other ways to read


def test_streamed_the_same_weights_where_every_image_can_be_read(tiny_recipe, sound, tmp_path):
    one, other = tmp_path / "memory", tmp_path / "stream"
    train(tiny_recipe, sound, one, "masked.epochs=0")
    train(tiny_recipe, sound, other, "masked.epochs=0", "data=stream")
    assert_equal_weights(weights_of(one), weights_of(other))


def test_streamed_a_broken_image_is_counted_not_fatal(tiny_recipe, phantoms, tmp_path):
    summary = train(tiny_recipe, phantoms, tmp_path / "o", "masked.epochs=0", "data=stream")
    assert summary["n_train"] == 74
    # Two epochs of 64 of 74 images: it came up at least once.
    assert summary["n_failed"] == sum(entry["failed"] for entry in log_of(tmp_path / "o")) >= 1


@pytest.mark.slow
def test_shards_train_and_a_lost_one_is_left_out(cli, tiny_recipe, sound, tmp_path):
    shards = tmp_path / "shards"
    assert cli("data", "shard", sound, "--out", shards, "--per-shard", "20").rc == 0
    argv = [
        "pretrain",
        tiny_recipe,
        "--data",
        shards,
        "--threads",
        "2",
        "--json",
        "--set",
        "masked.epochs=0",
        "--set",
        "contrastive.epochs=1",
    ]
    done = cli(*argv, "--out", tmp_path / "a", "--test", sound, timeout=300)
    assert done.rc == 0, done.stderr
    assert done.json()["n_train"] == 74
    hashes = json.loads((tmp_path / "a" / "training_images.json").read_text())["sha256"]
    manifest = Manifest.load(sound)
    train_paths = [
        p for p, s in zip(manifest.paths(), manifest.splits, strict=True) if s == "train"
    ]
    assert set(hashes) == {sha256_file(path)[: len(hashes[0])] for path in train_paths}
    tar = shards / "shard-000002.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    cut = cli(*argv, "--out", tmp_path / "b", timeout=300)
    assert cut.rc == 2 and "shard-000002.tar: cut off" in cut.json()["error"]["message"]
    done = cli(*argv, "--out", tmp_path / "b", "--skip-lost", timeout=300)
    assert done.rc == 0 and 50 < done.json()["n_train"] < 74
    assert "20 images are left out" in done.stderr and done.json()["test"] is None
    assert "Not measured." in (tmp_path / "b" / "README.md").read_text()


def test_starts_from_a_model_with_its_tokenizer_and_a_frozen_teacher(
    unbroken, tiny_recipe, sound, tmp_path
):
    text = tiny_recipe.read_text()
    head, tail = text.split("[model]")
    recipe = tmp_path / "next.toml"
    recipe.write_text(
        head.replace('"tiny"', '"next"')
        + f'[model]\ninit = "local-dir:{unbroken[0]}"\n[masked]'
        + tail.split("[masked]")[1]
    )
    teacher = f"masked.teacher='local-dir:{unbroken[0]}'"
    train(recipe, sound, tmp_path / "o", teacher, "contrastive.epochs=1")
    tower = load_model(f"local-dir:{tmp_path / 'o'}")
    assert (
        tower.tokenize(["a ruler"]).tolist()
        == load_model(f"local-dir:{unbroken[0]}").tokenize(["a ruler"]).tolist()
    )
    assert not torch.equal(
        weights_of(tmp_path / "o")["visual.conv1.weight"],
        weights_of(unbroken[0])["visual.conv1.weight"],
    )
    assert "Started from local-dir" in (tmp_path / "o" / "README.md").read_text()


def test_stage_1_alone_and_stage_2_from_its_image_tower(tiny_recipe, sound, tmp_path):
    manifest = Manifest.load(sound)
    bare = manifest.table.select(
        ["image", "image_id", "group", "split"]
    )  # no column describes them
    one = tmp_path / "one"
    train(tiny_recipe, Manifest(bare, manifest.root, manifest.path), one, "contrastive.epochs=0")
    assert [e["stage"] for e in log_of(one)] == ["masked", "masked"]
    assert "The text tower was not trained" in (one / "README.md").read_text()
    weights = f"model.vision_init='{one}/open_clip_model.safetensors'"
    # A learning rate of nothing shows what stage 2 started from.
    train(
        tiny_recipe,
        sound,
        tmp_path / "two",
        weights,
        "masked.epochs=0",
        "contrastive.lr=1e-12",
        "weight_decay=0",
    )
    first, second = weights_of(one), weights_of(tmp_path / "two")
    visual = [name for name in first if name.startswith("visual.")]
    assert all(torch.allclose(first[n].float(), second[n].float(), atol=1e-3) for n in visual)
    assert not torch.allclose(first["token_embedding.weight"].float().std(), torch.zeros(()))
    fresh = tmp_path / "fresh"
    train(tiny_recipe, sound, fresh, "masked.epochs=0", "contrastive.lr=1e-12", "weight_decay=0")
    assert not torch.allclose(
        weights_of(fresh)[visual[0]].float(), first[visual[0]].float(), atol=1e-3
    )


def test_stage_1_sees_images_without_a_caption_too(tiny_recipe, sound, tmp_path, capsys):
    manifest = Manifest.load(sound)
    captions = [c if i % 2 else None for i, c in enumerate(manifest.column("caption"))]
    place = manifest.table.column_names.index("caption")
    half = Manifest(
        manifest.table.set_column(place, "caption", [captions]), manifest.root, manifest.path
    )
    overrides = ["contrastive.captions=columns", "contrastive.local_weight=0"]
    train(tiny_recipe, half, tmp_path / "o", *overrides)
    steps = {e["stage"]: e["step"] for e in log_of(tmp_path / "o")}
    assert steps["masked"] == 8 and steps["contrastive"] < 6  # 74 images, and about half of them
    assert "have no caption: stage 2 leaves them out" in capsys.readouterr().err


def test_captions_of_the_manifest_with_make_and_soft_targets(tiny_recipe, sound, tmp_path):
    tree = {"Melanocytic": {"Melanoma, mel": {}, "nv": {}}, "Keratinocytic": {"bkl": {}, "bcc": {}}}
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    summary = train(
        tiny_recipe,
        sound,
        tmp_path / "o",
        "masked.epochs=0",
        "contrastive.loss=make",
        "contrastive.captions=columns",
        "contrastive.make.subcaptions=3",
        "contrastive.knowledge.soft=0.5",
        f"contrastive.knowledge.ontology='{tmp_path}/tree.json'",
        "contrastive.local_weight=0",
        "contrastive.aspect_weight=0",
    )
    assert summary["n_train"] == 74
    log = log_of(tmp_path / "o")
    assert log[-1]["make"] < log[0]["make"] and {"make", "alignment"} <= log[0].keys()


def test_the_knowledge_encoder_changes_the_weights_and_must_have_their_width(
    unbroken, tiny_recipe, sound, tmp_path
):
    encoder = f"contrastive.knowledge.encoder='local-dir:{unbroken[0]}'"
    train(tiny_recipe, sound, tmp_path / "o", "masked.epochs=0", "contrastive.epochs=1", encoder)
    assert log_of(tmp_path / "o")[0]["knowledge"] > 0
    with pytest.raises(UserInputError, match="has 16 dimensions, the recipe's embedding 24"):
        train(tiny_recipe, sound, tmp_path / "p", "model.embed_dim=24", encoder)


def test_another_seed_other_weights(unbroken, tiny_recipe, phantoms, tmp_path):
    train(
        tiny_recipe, phantoms, tmp_path / "o", "seed=6", "masked.epochs=0", "contrastive.epochs=1"
    )
    one, other = (
        load_file(f / "open_clip_model.safetensors") for f in (unbroken[0], tmp_path / "o")
    )
    assert not torch.equal(one["visual.conv1.weight"], other["visual.conv1.weight"])


# ---- what is written


def test_training_images_exactly_the_readable_train_images(unbroken, phantoms):
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


def test_stock_open_clip_opens_it(unbroken, phantoms):
    out, _ = unbroken
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    tower = load_model(f"local-dir:{out}")
    texts = ["a dermoscopic image of melanoma", "no ruler"]
    with torch.no_grad():
        ours, theirs = (
            tower.encode_text(texts),
            model.eval().encode_text(tokenize(texts), normalize=True),
        )
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
        manifest = Manifest.load(phantoms)
        from PIL import Image

        path = manifest.paths()[50]
        stock = model.encode_image(transform(Image.open(path).convert("RGB"))[None], normalize=True)
        mine = tower.encode_image(tower.preprocess([read_image(path)]), normalize=True)
    torch.testing.assert_close(stock, mine, atol=1e-4, rtol=0)


def test_weights_half_on_disk_and_finite(unbroken):
    tensors = load_file(unbroken[0] / "open_clip_model.safetensors")
    assert tensors["visual.conv1.weight"].dtype == torch.float16
    assert all(torch.isfinite(t.float()).all() for t in tensors.values())


def test_card_names_the_recipe_and_how_to_reproduce(unbroken):
    card = (unbroken[0] / "README.md").read_text()
    assert "- Recipe `tiny`, seed 5" in card and "dermaudit pretrain tiny" in card
    assert f"Trained on {unbroken[1]['n_train']} images" in card


def test_the_card_lists_overrides(tiny_recipe, sound, tmp_path):
    given = ["tiny.toml", "--set", "model.mean=[0.5, 0.5, 0.5]"]
    train(
        tiny_recipe,
        sound,
        tmp_path / "o",
        "masked.epochs=0",
        "contrastive.epochs=0.3",
        command=given,
    )
    card = (tmp_path / "o" / "README.md").read_text()
    assert "pretrain tiny.toml --set 'model.mean=[0.5, 0.5, 0.5]' --data DATA" in card
    assert "No label has enough test images" in card


@pytest.mark.parametrize(
    ("images", "weights"),
    [
        (["CC0-1.0"], "apache-2.0"),
        (["cc-by-nc-4.0", "CC0-1.0"], "cc-by-nc-4.0"),
        (["CC-BY-4.0", "CC BY-NC-ND 4.0"], "cc-by-nc-nd-4.0"),
        (["CC-BY-NC"], "cc-by-nc-4.0"),
        (["CC0-1.0", "unknown"], "other"),
        ([], "other"),
        (["CC-BY-SA-4.0"], "cc-by-sa-4.0"),
    ],
)
def test_card_the_strictest_licence(images, weights):
    assert licence_of(images) == weights


def test_siglip_is_saved_with_its_bias_and_opens_again(tiny_recipe, sound, tmp_path):
    train(tiny_recipe, sound, tmp_path / "o", "masked.epochs=0", "contrastive.loss=siglip")
    bias = load_model(f"local-dir:{tmp_path / 'o'}").model.logit_bias
    assert float(bias.detach()) != 0 and abs(float(bias.detach()) + 10) < 1
    open_clip.create_model(f"local-dir:{tmp_path / 'o'}")


def test_leak_is_refused_before_training(tiny_recipe, sound, tmp_path):
    manifest = Manifest.load(sound)
    root = tmp_path / "leaky"
    shutil.copytree(sound, root)
    first = {s: manifest.splits.index(s) for s in ("train", "test")}
    names = manifest.column("image")
    shutil.copy(sound / names[first["train"]], root / names[first["test"]])
    with pytest.raises(
        UserInputError, match="in the test split, and a train image of .* is the same file"
    ):
        train(tiny_recipe, root, tmp_path / "o")
    assert not (tmp_path / ".o.training" / "state.safetensors").exists()


@pytest.mark.slow
def test_an_unfinished_training_is_not_deleted(cli, killed_thrice, tiny_recipe, phantoms, tmp_path):
    shutil.copytree(killed_thrice[2][0], tmp_path / ".out.training")
    argv = ["pretrain", tiny_recipe, "--data", phantoms, "--out", tmp_path / "out", "--json"]
    done = cli(*argv)
    assert done.rc == 2 and "holds an unfinished training" in done.json()["error"]["message"]
    assert (tmp_path / ".out.training" / "state.safetensors").is_file()
    # Begun again by force, but with a batch that cannot be: what was there is still there.
    assert cli(*argv, "--force", "--set", "batch=900").rc == 3
    assert (tmp_path / ".out.training" / "state.safetensors").is_file()


def test_out_replaces_nothing_but_a_checkpoint(main, tiny_recipe, sound, tmp_path):
    folder, file = tmp_path / "mine", tmp_path / "file"
    folder.mkdir()
    (folder / "notes.txt").write_text("precious")
    file.write_text("x")
    argv = ["pretrain", tiny_recipe, "--data", sound]
    for options in ([], ["--force"]):
        done = main(*argv, "--out", folder, *options)
        assert done.rc == 2 and "no checkpoint (notes.txt)" in done.stderr
        done = main(*argv, "--out", file, *options)
        assert done.rc == 2 and "is a file" in done.stderr
    assert (folder / "notes.txt").read_text() == "precious"


def test_a_finished_training_cannot_be_resumed(main, unbroken, tiny_recipe, phantoms):
    argv = ["pretrain", tiny_recipe, "--data", phantoms, "--out", unbroken[0]]
    assert "is finished: there is nothing to resume" in main(*argv, "--resume").stderr
    assert "use --force to replace it" in main(*argv).stderr


def test_dry_run_describes_the_training(main, tiny_recipe, sound, tmp_path):
    done = main("pretrain", tiny_recipe, "--data", sound, "--out", tmp_path / "o", "--dry-run")
    assert done.rc == 0 and "on 74 images" in done.stderr and "2 epochs masked" in done.stderr
    assert not (tmp_path / ".o.training").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--threads", "0"], "--threads"),
        (["--device", "banana"], "--device banana is no device"),
        (["--out", "/proc/x/y"], "cannot be made"),
        (["--set", "contrastive.lr=-1"], "contrastive.lr"),
        (["--set", "seed=1000000000000000000000000"], "seed"),
        (["--set", "contrastive.epochs=inf"], "contrastive.epochs"),
        (["--set", "model.std=[0,0,0]"], "std must be above 0"),
    ],
)
def test_bad_options_are_reported_in_one_sentence(
    main, tiny_recipe, sound, tmp_path, options, sentence
):
    done = main("pretrain", tiny_recipe, "--data", sound, "--out", tmp_path / "o", *options)
    assert done.rc == 2 and sentence in done.stderr and "Traceback" not in done.stderr


# ---- scoring


def test_measure_training_images_are_refused(unbroken, phantoms):
    tower, manifest = load_model(f"local-dir:{unbroken[0]}"), Manifest.load(phantoms)
    measure(tower, manifest)  # its own split: fine
    swapped = ["test" if s == "train" else "train" for s in manifest.splits]
    table = manifest.table.set_column(
        manifest.table.column_names.index("split"), "split", [swapped]
    )
    with pytest.raises(UserInputError, match="training images of"):
        measure(tower, Manifest(table, manifest.root, manifest.path))


def test_embed_a_broken_file_does_not_stop_it(unbroken, phantoms):
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
    with pytest.raises(EvidenceError, match="has no facts about its images"):
        train(tiny_recipe, silent, tmp_path / "o")


def test_loss_that_is_not_finite(tiny_recipe, phantoms, tmp_path, monkeypatch):
    from dermaudit.pretrain.training import stages

    monkeypatch.setattr(stages, "caption_loss", lambda kind, a, b, m, g: (a * np.nan).sum())
    with pytest.raises(EvidenceError, match="contrastive: the loss is not finite at step 0"):
        train(tiny_recipe, phantoms, tmp_path / "o", "masked.epochs=0")
