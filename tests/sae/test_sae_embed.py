"""The embed stage: interrupted between shards it goes on with the next; a damaged shard is made again;
new images are put into new shards."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from activation_stores import write_store
from PIL import Image
from sae_tower import BLOCK, SITES, Tower, write_pictures

from dermaudit.errors import ForeignArtifactError, NoSpaceError, UserInputError
from dermaudit.files import read_json, sha256_file, write_json, write_parquet
from dermaudit.run.directory import Run
from dermaudit.sae import ActivationStore
from dermaudit.sae.embed import embed
from dermaudit.sae.embed import shard as embed_shard_module
from dermaudit.sae.embed.embed import (
    EmbedSettings,
    default_sites,
    embed_into,
    embed_run,
    in_this_process,
    site_of,
)
from dermaudit.sae.embed.shard import (
    activations,
    batches_ahead,
    embed_shard,
    read_batch,
    shard_values,
)
from dermaudit.sae.store import shard_plan as parts
from dermaudit.sae.store.activation_store import group_number, write_shard_file
from dermaudit.sae.store.shard_plan import (
    ImageList,
    StoreTarget,
    finish_store,
    plan_shards,
    write_shard,
)


def images_of(paths: list[str], known: bool = True) -> ImageList:
    ids = [Path(path).stem for path in paths]
    hashes = [sha256_file(path) for path in paths] if known else None
    return ImageList(ids, [f"g{int(i) // 2}" for i in ids], paths, hashes)


def pixels_of(paths: list[str]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float32) / 255


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """4 images a shard, 3 a batch."""
    monkeypatch.setattr(embed, "SHARD", 4)
    monkeypatch.setattr(embed, "BATCH", 3)
    Tower.seen = 0


@pytest.fixture
def run(tmp_path):
    """A run of 10 images."""
    paths = write_pictures(tmp_path / "p", 10)
    run = Run.create(tmp_path / "run")
    write_parquet(run.file("images.parquet"), pa.table({"image": paths}))
    run.record("images", {}, [run.file("images.parquet")])

    def go(force=False, **options):
        order = EmbedSettings(SITES, **options)
        return embed_run(run, Tower(), images_of(paths), order, force=force)

    return run, paths, go


def test_embed_rows_are_those_of_the_images(run):
    run, paths, go = run
    go()
    pixels = pixels_of(paths)
    store = ActivationStore.open(run.file("embeddings", "visual.pooled"), check=True)
    acts, rows = store.read()
    mean = pixels.mean((1, 2))
    np.testing.assert_allclose(acts, mean / np.linalg.norm(mean, axis=1)[:, None], atol=1e-5)
    np.testing.assert_array_equal(rows, np.arange(10))
    assert store.image_ids() == [f"{i:02d}" for i in range(10)]
    assert store.image_groups().tolist() == [group_number(f"g{i // 2}") for i in range(10)]
    tokens, _ = ActivationStore.open(run.file("embeddings", BLOCK)).read()
    assert tokens.shape == (10, 4, 3) and tokens.dtype == np.float16  # the prefix token is dropped
    np.testing.assert_allclose(tokens[:, 1], pixels[:, :4, 4:].mean((1, 2)), atol=1e-3)
    assert [p.name for p in sorted(run.file("embeddings", BLOCK).iterdir())] == [
        "shard-000000.safetensors",
        "shard-000001.safetensors",
        "shard-000002.safetensors",
        "store.json",
    ]


def test_activations_the_same_numbers_as_the_store(run):
    run, paths, go = run
    go()
    found = activations(Tower(), list((pixels_of(paths[:3]) * 255).astype(np.uint8)), SITES)
    for site in SITES:
        acts = ActivationStore.open(run.file("embeddings", site)).read()[0][:3]
        np.testing.assert_array_equal(found[site].astype(acts.dtype), acts)


def test_cls_tokens_and_dtype(run):
    run, _, go = run
    go()
    go(tokens="cls", dtype="bfloat16")
    store = ActivationStore.open(run.file("embeddings", BLOCK), check=True)
    assert (store.meta["token_kind"], store.meta["tokens"], store.meta["grid"]) == ("cls", 1, None)
    np.testing.assert_array_equal(store.read()[0], np.full((10, 3), 9.0, np.float32))
    assert ActivationStore.open(run.file("embeddings", "visual.pooled")).meta["dtype"] == "bfloat16"
    run.require("embed")


def test_embed_done_is_not_done_again(run):
    _, _, go = run
    go()
    go()
    assert Tower.seen == 10


def test_embed_interrupted_goes_on_with_the_next_shard(run, monkeypatch):
    run, _, go = run
    visits = []

    def stop(name):
        visits.append(name)
        if len(visits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(embed, "hit", stop)
    with pytest.raises(KeyboardInterrupt):
        go()
    # The third went through the tower while the second was written, and is lost with the interrupt.
    assert Tower.seen == 10 and "embed" not in run.meta["stages"]
    assert len(list(run.file("embeddings", BLOCK).glob("*.safetensors"))) == 2
    with pytest.raises(UserInputError, match="there are no activations at"):
        ActivationStore.open(run.file("embeddings", BLOCK))  # half a store is none
    monkeypatch.setattr(embed, "hit", lambda name: None)
    go()
    assert Tower.seen == 12
    assert ActivationStore.open(run.file("embeddings", BLOCK), check=True).meta["n"] == 10


def test_embed_a_shard_altered_before_the_store_was_finished_is_made_again(run, monkeypatch):
    run, _, go = run
    monkeypatch.setattr(embed, "hit", lambda name: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        go()
    path = run.file("embeddings", BLOCK, "shard-000000.safetensors")
    good = path.read_bytes()
    path.write_bytes(good[:-4])
    monkeypatch.setattr(embed, "hit", lambda name: None)
    go()
    assert path.read_bytes() == good and Tower.seen == 8 + 10


def test_embed_an_altered_shard_is_made_again(run):
    run, _, go = run
    go()
    path = run.file("embeddings", "visual.pooled", "shard-000001.safetensors")
    good, store = path.read_bytes(), read_json(path.with_name("store.json"))
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    go()
    assert path.read_bytes() == good and Tower.seen == 14
    assert read_json(path.with_name("store.json")) == store
    run.require("embed")


def test_force_makes_everything_again(run):
    run, _, go = run
    go()
    before = {p.name: p.read_bytes() for p in run.file("embeddings", BLOCK).iterdir()}
    go(force=True)
    assert Tower.seen == 20
    assert {p.name: p.read_bytes() for p in run.file("embeddings", BLOCK).iterdir()} == before


def test_a_store_of_format_1_is_made_again(run):
    run, _, go = run
    folder = run.file("embeddings", "visual.pooled")
    old = write_store(folder, [], model_fingerprint="f" * 64)
    shard = folder / "shard-000007.safetensors"
    write_shard_file(shard, torch.ones(2, 3), np.arange(2), np.arange(2))
    listed = {"format_version": 1, "shards": {shard.name: sha256_file(shard)}}
    write_json(folder / "store.json", {**old.meta, **listed})
    go()
    assert not shard.exists()
    assert ActivationStore.open(folder, check=True).meta["n"] == 10


# ---- stores by content, and images that come and go


def make(root, paths, *, known=False, tower=None, **options):
    order = EmbedSettings(["visual.pooled"], **options)
    stores = embed_into(root, tower or Tower(), images_of(paths, known), order)
    assert stores is not None
    return stores[0]


def test_append_the_old_shards_stay_as_they_are(tmp_path):
    paths = write_pictures(tmp_path / "p", 6)
    store = make(tmp_path / "s", paths)
    before = {path.name: path.stat().st_ino for path in store.shard_paths()}
    more = write_pictures(tmp_path / "p", 5, first=6)
    grown = make(tmp_path / "s", paths + more)
    assert Tower.seen == 11 and grown.folder == store.folder
    assert {path.name: path.stat().st_ino for path in grown.shard_paths()[:2]} == before
    acts, rows = ActivationStore.open(grown.folder, check=True).read()
    np.testing.assert_array_equal(rows, np.arange(11))
    expected = make(tmp_path / "at once", paths + more).read()[0]
    np.testing.assert_allclose(acts, expected, atol=1e-6)


def test_append_in_the_midst_of_the_list_rows_are_numbered_anew(tmp_path):
    paths = write_pictures(tmp_path / "p", 11)
    make(tmp_path / "s", paths[::2])
    store = make(tmp_path / "s", paths)
    assert Tower.seen == 11
    store = ActivationStore.open(store.folder, check=True)
    assert store.image_rows().tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]
    assert store.image_ids()[6] == "01"
    acts, rows = store.read()
    mean = pixels_of(paths).mean((1, 2))
    np.testing.assert_array_equal(rows, np.arange(11))
    np.testing.assert_allclose(acts, mean / np.linalg.norm(mean, axis=1)[:, None], atol=1e-5)
    part = store.rows()
    np.testing.assert_array_equal(part.read(0, 11), acts[part.image_rows])
    (store.folder / "rows.npy").unlink()
    with pytest.raises(UserInputError, match=r"rows\.npy is missing or altered"):
        ActivationStore.open(store.folder)


def test_an_image_that_went_or_changed_takes_only_its_shard_along(tmp_path):
    paths = write_pictures(tmp_path / "p", 12)
    make(tmp_path / "s", paths, known=True)
    write_pictures(tmp_path / "q", 1, first=90)
    (tmp_path / "q" / "90.png").rename(paths[5])
    store = make(tmp_path / "s", paths[:11], known=True)
    assert Tower.seen == 12 + 4 + 3
    acts, rows = ActivationStore.open(store.folder, check=True).read()
    mean = pixels_of(paths[:11]).mean((1, 2))
    np.testing.assert_allclose(acts, mean / np.linalg.norm(mean, axis=1)[:, None], atol=1e-5)
    # Without known hashes the same names are taken for the same images.
    Tower.seen = 0
    make(tmp_path / "s", paths[:11])
    assert Tower.seen == 0


def test_other_content_is_another_folder(tmp_path):
    paths = write_pictures(tmp_path / "p", 3)
    tower = Tower()
    tower.preprocess_config = {"size": 9}
    folders = {
        make(tmp_path / "s", paths).folder,
        make(tmp_path / "s", paths, dtype="float16").folder,
        make(tmp_path / "s", paths, tower=tower).folder,
    }
    assert len(folders) == 3 and all(folder.name.startswith("visual.pooled-") for folder in folders)


def test_another_models_store_is_refused(run):
    run, paths, go = run
    go()
    other = Tower()
    other.fingerprint = "e" * 64
    with pytest.raises(ForeignArtifactError, match="holds activations of another model"):
        embed_run(run, other, images_of(paths), EmbedSettings(SITES))
    assert Tower.seen == 10
    run.require("embed")


# ---- bad input


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path):
    paths = write_pictures(tmp_path / "p", 9)
    Path(paths[1]).write_bytes(b"no image")
    for path in paths[4:8]:
        Path(path).unlink()
    store = make(tmp_path / "s", paths)
    assert store.meta["skipped"] == {
        "01": "not an image (jpg, png, webp, bmp, tif)",
        **{f"0{i}": "the file does not exist" for i in range(4, 8)},
    }
    assert store.read()[1].tolist() == [0, 2, 3, 8] and store.meta["n"] == 4
    assert len(store.meta["shards"]) == 2  # the second shard would have been empty
    write_pictures(tmp_path / "p", 4, first=4)  # they have come back
    Tower.seen = 0
    again = ActivationStore.open(make(tmp_path / "s", paths).folder, check=True)
    assert again.read()[1].tolist() == [0, 2, 3, 4, 5, 6, 7, 8] and Tower.seen == 4
    assert list(again.meta["skipped"]) == ["01"]


def test_strict_the_first_bad_image_ends_it(tmp_path):
    paths = write_pictures(tmp_path / "p", 5)
    Path(paths[3]).write_bytes(b"")
    engine = in_this_process(Tower(), strict=True)
    with pytest.raises(UserInputError, match=r"03\.png \(row 3\): the file is empty") as error:
        embed_into(
            tmp_path / "s", Tower(), images_of(paths, False), EmbedSettings(SITES), engine=engine
        )
    assert "--strict" in error.value.hint


def test_not_finite_counted_named_and_fatal_if_strict(run, capsys):
    run, paths, _ = run
    tower = Tower(scale=1e6)  # over what float16 holds wherever a quarter is bright
    done = embed_run(run, tower, images_of(paths), EmbedSettings(SITES))
    assert done["not_finite"] == {BLOCK: 10}
    assert (
        f"10 of 10 images have values at {BLOCK} that are not finite, the first: 00"
        in capsys.readouterr().err
    )
    assert not np.isfinite(ActivationStore.open(run.file("embeddings", BLOCK)).read()[0]).all()
    with pytest.raises(UserInputError, match="10 of 10 images have values") as error:
        embed_run(run, tower, images_of(paths), EmbedSettings(SITES, strict=True), force=True)
    assert "--dtype bfloat16" in error.value.hint
    fine = embed_run(
        run, tower, images_of(paths), EmbedSettings(SITES, dtype="bfloat16", strict=True)
    )
    assert fine["not_finite"] == {}


def test_the_disk_is_too_small_reported_before_any_work(tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "p", 5)
    monkeypatch.setattr(embed.shutil, "disk_usage", lambda path: SimpleNamespace(free=59, total=99))
    with pytest.raises(NoSpaceError, match="the activations need 0 MB, and .* has 0 MB free"):
        make(tmp_path / "s", paths)  # 5 images of 3 float32
    assert Tower.seen == 0
    monkeypatch.setattr(embed.shutil, "disk_usage", lambda path: SimpleNamespace(free=60, total=99))
    make(tmp_path / "s", paths)


def test_the_disk_is_full_at_a_shard_the_finished_ones_are_kept(tmp_path, monkeypatch):
    import safetensors.torch

    paths = write_pictures(tmp_path / "p", 10)
    save, calls = safetensors.torch.save_file, []

    def full(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            Path(args[1]).write_bytes(b"half a shard")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **options)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(NoSpaceError, match=r"no space left to write .*shard-000002\.safetensors$"):
        make(tmp_path / "s", paths)
    (folder,) = (tmp_path / "s").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 2 and not list(folder.glob(".*"))
    assert make(tmp_path / "s", paths).meta["n"] == 10
    assert Tower.seen == 12


def test_writing_goes_on_while_the_next_shard_is_computed_and_not_the_one_after(
    tmp_path, monkeypatch
):
    paths = write_pictures(tmp_path / "p", 12)
    at_work, seen = threading.Event(), []

    class Watched(Tower):
        def encode_image(self, x, normalize=True):
            found = super().encode_image(x, normalize)
            if Tower.seen == 8:  # the second shard of four went through
                at_work.set()
            return found

    def slow(*given):
        assert at_work.wait(20), "the tower waits for the file"
        write_shard_file(*given)
        seen.append(Tower.seen)

    monkeypatch.setattr(parts, "write_shard_file", slow)
    assert make(tmp_path / "s", paths, tower=Watched()).meta["n"] == 12
    assert seen[0] == 8 and seen[2] == 12


def test_two_rows_of_one_image_id():
    with pytest.raises(UserInputError, match="image_id 'a' is in more than one row"):
        ImageList(["a", "b", "a"], ["g"] * 3, ["p"] * 3)


def test_sites_that_cannot_be():
    tower = Tower()
    with pytest.raises(UserInputError, match="did you mean 'visual.pooled'"):
        site_of(tower, "visual.poled")
    with pytest.raises(UserInputError, match="not in the image tower"):
        site_of(tower, "text.pooled")
    tower.n_prefix_tokens = 0
    with pytest.raises(UserInputError, match="no class token"):
        site_of(tower, BLOCK, "cls")


def test_a_site_of_another_shape_is_refused(tmp_path):
    tower = Tower()
    tower.site_grid = lambda site: (3, 3)
    images = images_of(write_pictures(tmp_path / "p", 2))
    with pytest.raises(UserInputError, match=r"gives \(4, 3\) an image, not \(9, 3\)"):
        embed_into(tmp_path / "s", tower, images, EmbedSettings([BLOCK]))


# ---- the pieces


def test_embed_shard_reads_for_itself_what_the_loop_reads_ahead(tmp_path):
    paths = write_pictures(tmp_path / "p", 7)
    made = []
    for name, ahead in (("own", False), ("ahead", True)):
        identity, facts = site_of(Tower(), BLOCK)
        site = StoreTarget(tmp_path / name, identity, facts)
        plan = plan_shards(site, images_of(paths), 4)
        for part in plan.parts:
            if ahead:
                shard_values(
                    Tower(), part, [site], batches_ahead(Tower(), [part], 3, readers=2)
                ).write()
            else:
                embed_shard(Tower(), part, [site], batch=3)
        store = finish_store(site, images_of(paths), plan)
        made.append([path.read_bytes() for path in store.files()])
    assert made[0] == made[1]


def test_write_part_a_number_that_is_not_finite_is_seen_in_any_dtype(tmp_path):
    for dtype in ("float32", "float16", "bfloat16"):
        identity, facts = site_of(Tower(), BLOCK, dtype=dtype)
        site = StoreTarget(tmp_path / dtype, identity, facts)
        (part,) = plan_shards(site, ImageList(list("abcde"), list("abcde"), list("abcde")), 5).parts
        acts = torch.full(
            (5, 4, 3), torch.finfo(getattr(torch, dtype)).max, dtype=getattr(torch, dtype)
        )
        for row, wrong in ((0, "nan"), (2, "inf"), (4, "-inf")):
            acts[row, row % 4, 1] = float(wrong)
        note = write_shard(site, part, range(5), acts, ["0" * 64] * 5, {})
        assert note["not_finite"] == ["a", "c", "e"]


@pytest.mark.parametrize("readers", [1, 3])
def test_first_batch_read_by_all_threads_it_is_the_same(tmp_path, readers):
    paths = write_pictures(tmp_path / "p", 45)
    for bad in (0, 17, 44):
        Path(paths[bad]).write_bytes(b"no image")
    site = StoreTarget(tmp_path, *site_of(Tower(), BLOCK))
    (part,) = plan_shards(site, images_of(paths, False), 64).parts
    batch, after = batches_ahead(Tower(), [part], 40, readers=readers)
    alone = read_batch(Tower(), part, 0, 40)
    assert torch.equal(batch.x, alone.x) and len(after.kept) == 4
    assert (batch.kept, batch.sha256, batch.skipped) == (alone.kept, alone.sha256, alone.skipped)
    assert list(batch.skipped) == ["00", "17"]
    with pytest.raises(UserInputError, match=r"00\.png \(row 0\)"):  # of several the first
        next(batches_ahead(Tower(), [part], 40, strict=True, readers=readers))


def test_read_ahead_goes_on_while_the_tower_has_the_first_batch(tmp_path, monkeypatch):
    paths = write_pictures(tmp_path / "p", 40)
    (part,) = plan_shards(
        StoreTarget(tmp_path, *site_of(Tower(), BLOCK)), images_of(paths, False), 64
    ).parts
    begun, third = set(), threading.Event()

    def read(tower, part, at, size, strict=False):
        begun.add(at)
        if at == 12:
            third.set()
        return read_batch(tower, part, at, size, strict)

    monkeypatch.setattr(embed_shard_module, "read_batch", read)
    stream = batches_ahead(Tower(), [part], 4)
    next(stream)
    assert third.wait(20) and max(begun) == 12  # three batches in front, and no more
    assert sum(len(batch.kept) for batch in stream) == 36


def test_object_storage_a_uri_reads_the_same_bytes(tmp_path):
    paths = write_pictures(tmp_path / "p", 5)
    near = make(tmp_path / "near", paths)
    far = make(
        tmp_path / "far", [Path(path).as_uri() for path in paths[:4]] + ["file:///nowhere/04.png"]
    )
    assert [p.read_bytes() for p in far.shard_paths()] == [near.shard_paths()[0].read_bytes()]
    assert "cannot be fetched" in far.meta["skipped"]["04"]


def test_shards_of_many_tokens_hold_fewer_images(tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "BATCH", 1)
    monkeypatch.setattr(embed, "SHARD_BYTES", 3 * 4 * 3 * 2)  # three images of 4 tokens in float16
    paths = write_pictures(tmp_path / "p", 5)
    stores = embed_into(tmp_path / "s", Tower(), images_of(paths), EmbedSettings([BLOCK]))
    assert [len(s.meta["shards"]) for s in stores] == [3]  # 2, 2, 1: a power of two


@pytest.mark.parametrize(("pool", "block"), [("tok", 1), ("avg", 2)])
def test_default_sites_the_last_tokens_that_are_used(pool, block):
    tower = SimpleNamespace(
        n_blocks=3, family="native", model=SimpleNamespace(visual=SimpleNamespace(pool_type=pool))
    )
    assert default_sites(tower) == ["visual.pooled", f"visual.blocks.{block}.hook_resid_post"]
    tower.n_blocks = 0
    assert default_sites(tower) == ["visual.pooled"]
