"""The embed stage: interrupted between shards it goes on with the next; a damaged shard is made again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dermaudit.files import write_parquet
from dermaudit.rundir import Run
from dermaudit.sae import ActivationStore, embed
from dermaudit.sae.embed import default_sites, embed_run

BLOCK = "visual.blocks.1.hook_resid_post"
SITES = ["visual.pooled", BLOCK]


class Tower:
    """Means of the image's quarters as tokens, behind one prefix token; counts the images it sees."""

    fingerprint, n_prefix_tokens, n_blocks = "f" * 64, 1, 3
    seen = 0

    def preprocess(self, images):
        Tower.seen += len(images)
        return torch.from_numpy(np.stack(images)).float().permute(0, 3, 1, 2) / 255

    def encode_image(self, x, normalize=True):
        return torch.nn.functional.normalize(x.mean((2, 3)), dim=1)

    def run_with_cache(self, x, names_filter):
        assert names_filter(BLOCK) and not names_filter("visual.blocks.0.hook_resid_post")
        cells = torch.nn.functional.avg_pool2d(x, x.shape[-1] // 2).flatten(2).transpose(1, 2)
        tokens = torch.cat([torch.full_like(cells[:, :1], 9.0), cells], 1)
        return self.encode_image(x), {BLOCK: tokens}

    def site_width(self, site):
        return 3

    def site_grid(self, site):
        return 2, 2


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 10 images, 4 a shard, 3 a batch."""
    monkeypatch.setattr(embed, "SHARD", 4)
    monkeypatch.setattr(embed, "BATCH", 3)
    rng = np.random.default_rng(0)
    paths = []
    for i in range(10):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(paths[-1])
    run = Run.create(tmp_path / "run")
    write_parquet(run.file("images.parquet"), pa.table({"image": [p.name for p in paths]}))
    run.record("images", {}, [run.file("images.parquet")])
    Tower.seen = 0

    def go(force=False):
        return embed_run(run, Tower(), paths, [f"g{i}" for i in range(10)], SITES, force=force)

    return run, paths, go


def test_embed__rows_are_those_of_the_images(run):
    run, paths, go = run
    go()
    pixels = np.stack([np.asarray(Image.open(p)) for p in paths]).astype(np.float32) / 255
    acts, rows = ActivationStore.open(run.file("embeddings", "visual.pooled"), check=True).read()
    mean = pixels.mean((1, 2))
    np.testing.assert_allclose(acts, mean / np.linalg.norm(mean, axis=1)[:, None], atol=1e-5)
    np.testing.assert_array_equal(rows, np.arange(10))
    tokens, _ = ActivationStore.open(run.file("embeddings", BLOCK)).read()
    assert tokens.shape == (10, 4, 3) and tokens.dtype == np.float16  # the prefix token is dropped
    np.testing.assert_allclose(tokens[:, 1], pixels[:, :4, 4:].mean((1, 2)), atol=1e-3)


def test_embed__done_is_not_done_again(run):
    _, _, go = run
    go()
    go()
    assert Tower.seen == 10


def test_embed__interrupted_goes_on_with_the_next_shard(run, monkeypatch):
    run, _, go = run
    visits = []

    def stop(name):
        visits.append(name)
        if len(visits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(embed, "hit", stop)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert Tower.seen == 8 and "embed" not in run.meta["stages"]
    monkeypatch.setattr(embed, "hit", lambda name: None)
    go()
    assert Tower.seen == 10
    broken = [run.file("embeddings", site).joinpath("shard-000002.safetensors") for site in SITES]
    assert all(path.is_file() for path in broken)
    assert ActivationStore.open(run.file("embeddings", BLOCK), check=True).meta["n"] == 10


@pytest.mark.parametrize("force", [False, True])
def test_embed__an_altered_shard_is_made_again(run, force):
    run, _, go = run
    go()
    path = run.file("embeddings", "visual.pooled", "shard-000001.safetensors")
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    go(force=force)
    assert path.read_bytes() == good and Tower.seen == 14
    run.require("embed", "embed")


@pytest.mark.parametrize(("pool", "block"), [("tok", 1), ("avg", 2)])
def test_default_sites__the_last_tokens_that_are_used(pool, block):
    tower = SimpleNamespace(
        n_blocks=3, family="native", model=SimpleNamespace(visual=SimpleNamespace(pool_type=pool))
    )
    assert default_sites(tower) == ["visual.pooled", f"visual.blocks.{block}.hook_resid_post"]
    tower.n_blocks = 0
    assert default_sites(tower) == ["visual.pooled"]
