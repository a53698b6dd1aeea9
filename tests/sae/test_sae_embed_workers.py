"""One worker, several, and Ray: the same bytes. A worker that is killed costs its unfinished shard only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sae_tower import SITES, Tower, write_pictures

from dermaudit.errors import UserInputError
from dermaudit.files import read_json
from dermaudit.run.directory import open_run
from dermaudit.sae import ActivationStore
from dermaudit.sae.embed import embed
from dermaudit.sae.embed.embed import EmbedSettings, embed_into, embed_sites
from dermaudit.sae.embed.ray_engine import ShardMaker, _as_text, _from_text
from dermaudit.sae.store.shard_plan import (
    ImageList,
    StoreTarget,
    finish_store,
    plan_shards,
    read_shard_note,
)
from dermaudit.sae.store.worker_rank import WorkerRank

N = 11
SMALL = ("--model", "phantom-vit", "--shard", 3, "--batch", 2)


def content(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def images(tmp_path):
    paths = write_pictures(tmp_path / "p", N)
    return ImageList([Path(p).stem for p in paths], [f"g{i}" for i in range(N)], paths)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(embed, "SHARD", 2)
    monkeypatch.setattr(embed, "BATCH", 2)
    Tower.seen = 0


# ---- who does what


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "2", "WORLD_SIZE": "4"}, 2, 4),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, 1, 3),
        ({"RANK": "0", "WORLD_SIZE": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}, 0, 2),
        ({"RANK": "1"}, 0, 1),
        # srun within a larger job; and an sbatch script, which is one process.
        (
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "8",
             "SLURM_STEP_NUM_TASKS": "2"},
            1, 2,
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0, 1),
    ],
)  # fmt: skip
def test_share_from_the_environment(environment, rank, size):
    assert WorkerRank.of(environment) == WorkerRank(rank, size)


@pytest.mark.parametrize(
    ("rank", "size"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "0"), ("", "")]
)
def test_share_numbers_that_name_no_worker(rank, size):
    with pytest.raises(
        UserInputError, match=f"RANK={rank} and WORLD_SIZE={size} do not name a worker"
    ):
        WorkerRank.of({"RANK": rank, "WORLD_SIZE": size})


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("backwards", [False, True])
def test_any_number_of_workers_in_any_order_gives_the_bytes_of_one(
    images, tmp_path, size, backwards
):
    alone = tmp_path / "alone"
    assert embed_into(alone, Tower(), images, EmbedSettings(SITES)) is not None
    assert Tower.seen == N
    together, Tower.seen = tmp_path / "together", 0
    ranks = list(range(size))[:: -1 if backwards else 1]
    ends = [
        embed_into(together, Tower(), images, EmbedSettings(SITES, share=WorkerRank(rank, size)))
        for rank in ranks
    ]
    assert Tower.seen == N  # no image went through the tower twice
    # 6 shards: whoever made the last one ended the store, and those without a share found it so.
    last = max(i for i, rank in enumerate(ranks) if rank < 6)
    assert [end is not None for end in ends] == [i >= last for i in range(size)]
    assert content(together) == content(alone)


def test_a_late_worker_finds_the_store_finished(images, tmp_path):
    """Its plan is of the time before; what it makes again are the same bytes."""
    order = EmbedSettings(["visual.pooled"])
    identity, facts = order.site(Tower(), "visual.pooled")
    site = StoreTarget(tmp_path / "s", identity, facts)
    plan = plan_shards(site, images, 2)
    assert finish_store(site, images, plan) is None
    assert embed_sites([site], images, order, order.engine(Tower())) is not None
    before = content(tmp_path / "s")
    store = finish_store(site, images, plan)
    assert store is not None and store.meta["n"] == N
    order.engine(Tower())([(plan.parts[1], [site])])
    assert read_shard_note(site, plan.parts[1]) is not None
    assert finish_store(site, images, plan) is not None
    assert embed_sites([site], images, order, order.engine(Tower())) is not None
    assert content(tmp_path / "s") == before


def test_finish_not_with_another_workers_shard_altered(images, tmp_path):
    order = EmbedSettings(["visual.pooled"])
    identity, facts = order.site(Tower(), "visual.pooled")
    site = StoreTarget(tmp_path / "s", identity, facts)
    assert embed_sites([site], images, order, order.engine(Tower())) is not None
    old_plan = plan_shards(StoreTarget(tmp_path / "nowhere", identity, facts), images, 2)
    path = site.folder / "shard-000003.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert finish_store(site, images, old_plan) is None


def test_a_job_survives_its_way_through_ray(images, tmp_path, monkeypatch):
    order = EmbedSettings(SITES)
    sites = [StoreTarget(tmp_path / name, *order.site(Tower(), name)) for name in SITES]
    part = plan_shards(sites[0], images, 4).parts[1]
    again, places = _from_text(_as_text((part, sites)))
    assert again == part and places == sites and again.digest() == part.digest()


def test_an_actor_of_ray_an_error_comes_back_as_data(images, tmp_path):
    maker = ShardMaker("phantom-vit", threads=1, device="cpu", batch=2, strict=True)
    site = StoreTarget(tmp_path / "s", *EmbedSettings([]).site(maker.tower, "visual.pooled"))
    parts = plan_shards(site, images, 4).parts
    Path(images.paths[5]).unlink()
    assert maker({"job": _as_text((parts[0], [site]))}) == {"made": 4, "error": "", "hint": ""}
    failed = maker({"job": _as_text((parts[1], [site]))})
    assert failed["made"] == 0 and "05.png (row 5): the file does not exist" in failed["error"]
    assert read_shard_note(site, parts[0]) is not None and read_shard_note(site, parts[1]) is None


# ---- the command


def test_workers_of_a_cluster_one_after_the_other(main, image_folder, tmp_path):
    data = image_folder(*(f"{i:02d}.png" for i in range(N)), side=16)
    command = ("embed", data, *SMALL, "--tokens", "pooled", "--json")
    assert main(*command, "--store", tmp_path / "alone").rc == 0
    first = main(*command, "--store", tmp_path / "two", env={"RANK": "1", "WORLD_SIZE": "2"})
    assert first.rc == 0 and first.stdout == ""  # one process speaks for all
    assert not list((tmp_path / "two").rglob("store.json"))
    with pytest.raises(UserInputError, match="there are no activations"):
        ActivationStore.open(next((tmp_path / "two").iterdir()))
    last = main(
        *command, "--store", tmp_path / "two", env={"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}
    )
    assert last.json()["n_images"] == N
    assert content(tmp_path / "two") == content(tmp_path / "alone")
    (store,) = (tmp_path / "two").iterdir()
    assert len(read_json(store / "store.json")["shards"]) == 4


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        (
            ("--store", "s", "--force"),
            {"RANK": "1", "WORLD_SIZE": "2"},
            "--force by one of 2 workers",
        ),
        (
            ("--store", "s", "--workers", "2"),
            {"RANK": "1", "WORLD_SIZE": "2"},
            "worker 1 of 2 already",
        ),
        (("--store", "s"), {"RANK": "9", "WORLD_SIZE": "2"}, "do not name a worker"),
        ((), {}, "embed writes to a run or to a folder of stores"),
        (("--store", "s", "--run", "r"), {}, "embed writes to a run or to a folder of stores"),
        (("--run", "r", "--images-at", "s3://bucket"), {}, "--images-at goes with --store"),
        (("--store", "s", "--tokens", "patches"), {}, "did you mean 'patch'"),
        (("--store", "s", "--dtype", "fp16"), {}, "unknown --dtype 'fp16'"),
        (("--store", "s", "--engine", "spark"), {}, "unknown --engine 'spark'"),
        (("--store", "s", "--workers", "0"), {}, "--workers"),
    ],
)
def test_command_what_cannot_be(main, image_folder, tmp_path, options, environment, said):
    done = main(
        "embed",
        image_folder("a.png"),
        "--model",
        "phantom-vit",
        *options,
        cwd=tmp_path,
        env=environment,
    )
    assert done.rc == 2 and said in done.stderr, done.stderr
    assert not (tmp_path / "s").exists() and not (tmp_path / "r").exists()


def test_dry_run_sizes_and_nothing_written(main, image_folder, tmp_path):
    data = image_folder("a.png", "b.png", "c.png")
    done = main(
        "embed", data, "--model", "phantom-vit", "--run", tmp_path / "r", "--dry-run", "--json"
    )
    found = done.json()
    assert found["sites"]["visual.pooled"] == {
        "tokens": 1,
        "d": 192,
        "dtype": "float32",
        "bytes": 3 * 192 * 4,
    }
    assert found["bytes"] == 3 * 192 * 4 + 3 * 36 * 128 * 2
    assert not (tmp_path / "r").exists()
    assert "activations of 3 images" in done.stderr


def test_no_image_can_be_read(main, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.png").write_bytes(b"nothing")
    done = main("embed", tmp_path / "d", *SMALL, "--store", tmp_path / "s")
    assert done.rc == 2 and "none of the 1 images" in done.stderr and "not an image" in done.stderr


@pytest.mark.slow
def test_workers_killed_and_resumed_the_bytes_of_one(cli, main, image_folder, tmp_path):
    """Each of two workers is killed after its first shard; the same command goes on with the others."""
    data = image_folder(*(f"{i:02d}.png" for i in range(N)), side=16)
    assert main("embed", data, *SMALL, "--run", tmp_path / "alone").rc == 0
    command = ("embed", data, *SMALL, "--run", tmp_path / "two", "--workers", 2, "--json")
    killed = cli(*command, env={"DERMAUDIT_FAILPOINT": "embed"}, timeout=300)
    assert killed.rc == 2, killed.stderr
    said = killed.json()["error"]["message"]
    assert re.fullmatch(r"worker [01] of 2 ended with 137 before its shards were done", said)
    run = open_run(tmp_path / "two")
    with pytest.raises(UserInputError, match="has no embed stage yet"):
        run.require("embed")
    done = cli(*command, timeout=300)
    assert done.rc == 0, done.stderr
    assert done.json()["n_images"] == N and "unfinished" not in done.json()
    open_run(tmp_path / "two").require("embed")
    # Nothing is left over, not even by the worker that was stopped in the midst of a file.
    assert content(tmp_path / "two" / "embeddings") == content(tmp_path / "alone" / "embeddings")


@pytest.mark.slow
def test_ray_the_bytes_of_one_worker(cli, main, image_folder, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (extra: cluster)")
    data = image_folder(*(f"{i:02d}.png" for i in range(N)), side=16)
    (data / "05.png").write_bytes(b"broken")
    assert main("embed", data, *SMALL, "--store", tmp_path / "alone").rc == 0
    options = ("--store", tmp_path / "ray", "--engine", "ray", "--images-at", data.as_uri())
    done = cli("embed", data, *SMALL, *options, "--json", timeout=300)
    assert done.rc == 0, done.stderr
    assert (done.json()["n_images"], done.json()["n_skipped"]) == (N - 1, 1)
    assert content(tmp_path / "ray") == content(tmp_path / "alone")
