"""A run on stores that were made before: the same rows, labels and splits as an embedding of its own."""

from __future__ import annotations

import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sae_tower import BLOCK, SITES, Tower, write_pictures

from dermaudit.data import Manifest
from dermaudit.data.splits import assign
from dermaudit.errors import ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.run.directory import Run
from dermaudit.sae import ActivationStore
from dermaudit.sae.embed.embed import POOLED, EmbedSettings, embed_into
from dermaudit.sae.embed.from_store import take_stores
from dermaudit.sae.store.activation_store import read_shard_header, write_shard_file
from dermaudit.sae.store.shard_plan import ImageList


class Known(Tower):
    """As a bundled model: it has a name, and knows the images it was trained on."""

    name = "toy"
    trained_on: frozenset[str] = frozenset()

    def training_hashes(self):
        return self.trained_on


def write_manifest(folder, n: int = 20, first: int = 0, group: str = "p"):
    write_pictures(folder / "images", n, first)
    rows = [
        f"images/{i:02d}.png,ISIC_{i:02d},{group}{i // 2},{'mel' if i % 3 else 'nv'}"
        for i in range(first, first + n)
    ]
    path = folder / "manifest.csv"
    path.write_text("\n".join(["image,image_id,group,label", *rows]) + "\n")
    return Manifest.load(path)


def store(manifest, root, order=None):
    images = ImageList(manifest.ids, manifest.groups, [str(path) for path in manifest.paths()])
    return embed_into(root, Known(), images, order or EmbedSettings(SITES, shard=6))


@pytest.fixture
def made(tmp_path):
    """(manifest of twenty images, the root of its stores)"""
    (tmp_path / "data").mkdir()
    manifest = write_manifest(tmp_path / "data")
    store(manifest, tmp_path / "stores")
    return manifest, tmp_path / "stores"


def test_run_has_the_rows_of_the_store_and_the_table_of_the_manifest(made, tmp_path):
    manifest, root = made
    run = Run.create(tmp_path / "run")
    seen = Tower.seen
    done = take_stores(run, Known(), manifest, root, EmbedSettings(SITES))
    assert Tower.seen == seen and (done["n"], done["n_skipped"]) == (20, 0)
    for site in SITES:
        (folder,) = root.glob(f"{site}-*")
        ours = ActivationStore.open(run.file("embeddings", site), check=True)
        theirs = ActivationStore.open(folder, check=True)
        np.testing.assert_array_equal(ours.read()[0], theirs.read()[0])
        for one, other in zip(ours.shard_paths(), theirs.shard_paths(), strict=True):
            assert one.samefile(other)  # not a second time on the disk
    table = pq.read_table(run.file("images.parquet"))
    assert table["split"].to_pylist() == assign(f"p{i // 2}" for i in range(20))
    assert table["label"].to_pylist() == manifest.labels and len(table["sha256"][0].as_py()) == 64
    assert run.meta["model"]["name"] == "toy" and run.require("embed")["summary"]["n"] == 20
    log = run.file("log.jsonl").read_text()
    take_stores(run, Known(), manifest, root, EmbedSettings(SITES))
    assert run.file("log.jsonl").read_text() == log  # done already
    # The run's own files are its own: making a shard again leaves the store's as it was.
    (folder,) = root.glob(f"{POOLED}-*")
    shard = run.file("embeddings", POOLED) / "shard-000000.safetensors"
    write_shard_file(shard, torch.zeros(6, 3), np.arange(6), np.arange(6))
    ActivationStore.open(folder, check=True)


def test_rows_are_numbered_by_the_run_where_images_are_missing_or_stand_otherwise(made, tmp_path):
    manifest, root = made
    (tmp_path / "data/images/03.png").write_bytes(b"no picture")
    store(manifest, tmp_path / "gap")
    larger = write_manifest(tmp_path / "data", 24)  # 03 is a picture again, and four are new
    run = Run.create(tmp_path / "run")
    order = np.random.default_rng(0).permutation(24).tolist()
    done = take_stores(run, Known(), larger.take(order), tmp_path / "gap", EmbedSettings(SITES))
    assert (done["n"], done["n_skipped"]) == (19, 5)
    ids = pq.read_table(run.file("images.parquet"))["image_id"].to_pylist()
    assert ids == [f"ISIC_{i:02d}" for i in order if i < 20 and i != 3]
    acts, rows = ActivationStore.open(run.file("embeddings", POOLED), check=True).read()
    assert rows.tolist() == list(range(19))
    (folder,) = root.glob(f"{POOLED}-*")
    whole, _ = ActivationStore.open(folder).read()
    np.testing.assert_allclose(acts, whole[[int(image[-2:]) for image in ids]], atol=1e-6)
    lost = pq.read_table(run.file("skipped.parquet")).to_pydict()
    why = dict(zip(lost["image"], lost["reason"], strict=True))
    assert why["images/21.png"] == "it is not in the store" and "not" in why["images/03.png"]


def test_another_disk_the_shards_are_copied(made, tmp_path, monkeypatch):
    manifest, root = made

    def link(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    run = Run.create(tmp_path / "run")
    take_stores(run, Known(), manifest, root, EmbedSettings(SITES))
    ours = ActivationStore.open(run.file("embeddings", BLOCK), check=True)
    (folder,) = root.glob(f"{BLOCK}-*")
    assert not ours.shard_paths()[0].samefile(folder / ours.shard_paths()[0].name)


def test_unsuitable_saes_are_refused(made, tmp_path):
    manifest, root = made
    run = Run.create(tmp_path / "run")

    def fails(error, match, manifest=manifest, tower=None, order=None):
        with pytest.raises(error, match=match):
            take_stores(run, tower or Known(), manifest, root, order or EmbedSettings(SITES))

    with pytest.raises(UserInputError, match="has no store of visual.pooled made with this model"):
        take_stores(run, Known(), manifest, tmp_path, EmbedSettings(SITES))
    fails(UserInputError, "no store of visual.blocks.1", order=EmbedSettings(SITES, tokens="cls"))
    other = Known()
    other.fingerprint = "e" * 64
    fails(UserInputError, "made with this model", tower=other)
    fails(
        UserInputError,
        r"holds 2 images that .*manifest.csv has not, the first: ISIC_18",
        manifest.take(range(18)),
    )
    (tmp_path / "moved").mkdir()
    fails(
        ForeignArtifactError,
        "has ISIC_00 in another group",
        write_manifest(tmp_path / "moved", group="q"),
    )
    test = manifest.splits.index("test")
    knows = Known()
    (folder,) = root.glob(f"{POOLED}-*")
    hashes = [
        h
        for path in ActivationStore.open(folder).shard_paths()
        for h in read_shard_header(path).sha256
    ]
    knows.trained_on = frozenset({hashes[test][:16]})
    fails(UserInputError, "1 test images .* were training images of toy", tower=knows)
    store(manifest.take(range(12)), root, order=EmbedSettings([BLOCK], shard=6))
    fails(UserInputError, "do not hold the same images")
    shard = folder / "shard-000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\1")
    fails(StaleArtifactError, "its checksum", order=EmbedSettings([POOLED]))
    assert not run.file("embeddings").exists() and "embed" not in run.meta["stages"]


def test_command_embed_store_then_a_run_of_it(main, tmp_path):
    (tmp_path / "data").mkdir()
    write_manifest(tmp_path / "data", 12)
    given = (
        "embed",
        tmp_path / "data/manifest.csv",
        "--model",
        "phantom-vit",
        "--tokens",
        "pooled",
    )
    assert main(*given, "--store", tmp_path / "stores").rc == 0
    for path in (tmp_path / "data/images").iterdir():
        path.unlink()  # they lie on the cluster
    done = main(*given, "--run", tmp_path / "run", "--from-store", tmp_path / "stores", "--json")
    assert done.rc == 0, done.stderr
    assert done.json()["n_images"] == 12 and done.json()["sites"] == [POOLED]
    for flags, said in (
        (("--from-store", tmp_path / "stores"), "one of --run RUN, --store FOLDER"),
        (("--store", "s", "--from-store", tmp_path / "stores"), "--from-store goes with --run"),
        (
            ("--run", tmp_path / "run", "--from-store", "nowhere"),
            "--from-store nowhere is not a folder",
        ),
        (
            ("--run", tmp_path / "other", "--from-store", tmp_path / "data"),
            "it has none; name the --model",
        ),
    ):
        refused = main(*given, *flags, "--json")
        error = refused.json()["error"]
        assert refused.rc == 2 and said in error["message"] + (error["hint"] or ""), error
