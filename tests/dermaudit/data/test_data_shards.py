"""`data shard` and `Shards`: stock webdataset reads them, any kill gives the same bytes."""

from __future__ import annotations

import gc
import io
import json
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_files import contents
from PIL import Image

from dermaudit.data import BadImage, Manifest, Shards, read_image
from dermaudit.errors import UserInputError

N = 11


def picture(seed, side=48):
    """Smooth random colours: a photograph to a JPEG encoder."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def make_source(root, n=N, bad=()):
    """n pictures (JPEG, PNG and one BMP), a table with blanks, truth and captions."""
    root.mkdir()
    lines = ["image,group,split,label,caption,subcaption_1,artifact:ruler,age"]
    for i in range(n):
        suffix = "bmp" if i == 3 else "png" if i % 4 == 1 else "jpg"
        name = f"im.{i}.{suffix}"
        picture(i, 40 + i).save(root / name)
        if i in bad:
            (root / name).write_bytes(b"no image")
        split = ("train", "train", "val", "test")[i % 4]
        age = "" if i % 2 else 30 + i
        ruler = ("1", "0", "")[i % 3]
        lines.append(f'{name},g{i % 4},{split},nevus,"größe {i}, a ruler",a ruler,{ruler},{age}')
    (root / "manifest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / "source")


@pytest.fixture
def packed(main, source, tmp_path):
    out = tmp_path / "shards"
    done = main("data", "shard", source, "--out", out, "--per-shard", 4, "--json")
    assert done.rc == 0, done.stderr
    assert done.json()["n"] == N and done.json()["n_shards"] == 3
    return out


def test_shards_hold_the_table_and_the_bytes_of_the_source(packed, source):
    assert sorted(p.name for p in packed.iterdir()) == [
        "index.parquet",
        "shard-000000.tar",
        "shard-000001.tar",
        "shard-000002.tar",
        "shards.json",
    ]
    shards, manifest = Shards.load(packed), Manifest.load(source)
    assert len(shards) == N and shards.table.equals(manifest.table)
    assert shards.manifest.labels == manifest.labels
    truth = shards.manifest.truth()["ruler"][1]
    assert np.isnan(truth[2]) and list(truth[:2]) == [1, 0], "blank stays unknown"
    for row, path in enumerate(manifest.paths()):
        assert np.array_equal(shards.decode(row), read_image(path))
        assert np.array_equal(shards.decode(row, 24), read_image(path, 24))
        if path.suffix != ".bmp":
            assert shards.read(row) == path.read_bytes()
    assert shards.lost == []


def test_tar_headers_do_not_depend_on_the_machine(packed):
    with tarfile.open(packed / "shard-000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members][:4] == [
        "000000000.jpg",
        "000000000.json",
        "000000001.png",
        "000000001.json",
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_them(packed, source):
    """webdataset leaves its shards open, so they are collected here, where the warning is ignored."""
    wds = pytest.importorskip("webdataset")
    urls = sorted(str(p) for p in packed.glob("*.tar"))
    data = wds.WebDataset(urls, shardshuffle=False).decode("rgb8")
    samples = list(data)
    manifest = Manifest.load(source)
    assert [int(s["__key__"]) for s in samples] == list(range(N))
    for row, sample in enumerate(samples):
        picture_ = sample.get("jpg", sample.get("png"))
        assert np.array_equal(picture_, read_image(manifest.paths()[row]))
        assert sample["json"]["caption"] == manifest.column("caption")[row]
        assert sample["json"]["split"] == manifest.splits[row]
    assert [s["json"]["artifact:ruler"] for s in samples[:3]] == [1.0, 0.0, None]
    assert samples[1]["json"]["age"] is None, "blank is null, never 0"
    del data
    gc.collect()


@pytest.mark.parametrize("kill", ["shard_member:2", "shard:1", "shard_member:7", "shard:3"])
def test_killed_and_run_again_gives_the_same_bytes(cli, main, tmp_path, kill):
    source = make_source(tmp_path / "source", bad=(0, 4, 10))
    whole, out = tmp_path / "whole", tmp_path / "out"
    argv = ("data", "shard", source, "--per-shard", 3, "--out")
    assert main(*argv, whole).rc == 0
    assert cli(*argv, out, env={"DERMAUDIT_FAILPOINT": kill}).rc == 137
    with pytest.raises(UserInputError, match="unfinished"):
        Shards.load(out)
    assert main(*argv, out, "--threads", 3).rc == 0
    assert contents(out) == contents(whole)
    skipped = pq.ParquetFile(out / "skipped.parquet").read().to_pylist()
    assert [s["row"] for s in skipped] == [0, 4, 10]
    assert [s["image"] for s in skipped] == ["im.0.jpg", "im.4.jpg", "im.10.jpg"]
    shards = Shards.load(out)
    assert [s["n"] for s in shards.files] == [3, 3, 2]
    expected = [i for i in range(N) if i not in (0, 4, 10)]
    assert [c.split()[1] for c in shards.manifest.column("caption")] == [f"{i}," for i in expected]


def test_continues_only_with_the_same_command(cli, main, source, tmp_path):
    out = tmp_path / "out"
    argv = ("data", "shard", source, "--out", out, "--per-shard")
    cli(*argv, 3, env={"DERMAUDIT_FAILPOINT": "shard:1"})
    other = main(*argv, 4)
    assert other.rc == 2 and "with other options" in other.stderr
    assert main(*argv, 4, "--force").rc == 0
    again = main(*argv, 4)
    assert again.rc == 2 and "already holds shards" in again.stderr and "--force" in again.stderr
    (out / "mine.txt").write_text("x")
    assert main(*argv, 4, "--force").rc == 2, "a foreign file beside them is not swept away"
    assert (out / "mine.txt").exists()


def test_size_makes_smaller_only_and_keeps_png_lossless(main, tmp_path):
    root = tmp_path / "s"
    root.mkdir()
    picture(1, 96).resize((96, 64)).save(root / "a.jpg", quality=95)
    picture(2, 96).resize((60, 80)).save(root / "b.png")
    picture(3, 30).save(root / "c.jpg")
    turned = picture(4, 96).resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(root / "d.jpg", exif=exif)
    out = tmp_path / "out"
    assert main("data", "shard", root, "--out", out, "--size", 32, "--quality", 90).rc == 0
    shards = Shards.load(out)
    assert [shards.decode(i).shape[:2] for i in range(4)] == [
        (32, 48),
        (43, 32),
        (30, 30),
        (48, 32),
    ]
    assert shards.read(2) == (root / "c.jpg").read_bytes(), "what is small is left as it is"
    expected = read_image(root / "b.png", (43, 32))
    assert np.array_equal(shards.decode(1), expected)
    with Image.open(io.BytesIO(shards.read(0))) as image:
        assert image.format == "JPEG"
    error = shards.decode(0).astype(float) - read_image(root / "a.jpg", (32, 48))
    assert 0 < np.abs(error).mean() < 4


def test_order_is_a_permutation_near_in_the_files(main, tmp_path):
    source, out = make_source(tmp_path / "source", n=60), tmp_path / "out"
    assert main("data", "shard", source, "--out", out, "--per-shard", 6).rc == 0
    shards = Shards.load(out)
    order = shards.order(seed=3, epoch=1, window=2)
    assert sorted(order) == list(range(60)) and order.dtype == np.int64
    for start in range(0, 60, 12):
        assert len(set(order[start : start + 12] // 6)) == 2, "a window reads two shards only"
    assert np.array_equal(order, Shards.load(out).order(3, 1, window=2))
    for other in (shards.order(3, 2, window=2), shards.order(4, 1, window=2)):
        assert not np.array_equal(order, other)
    assert sorted(shards.order(3, 1, window=1000)) == list(range(60))
    train = [i for i, split in enumerate(shards.manifest.splits) if split == "train"]
    part = shards.order(3, 1, window=2, rows=train)
    assert list(part) == [row for row in order if row in train]
    with pytest.raises(UserInputError, match="window of 0"):
        shards.order(3, 1, window=0)


def test_a_shard_cut_off_is_named_or_counted(packed):
    tar = packed / "shard-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:-700])
    with pytest.raises(UserInputError, match=rf"shard-000001\.tar: cut off: 700 of {len(data)}"):
        Shards.load(packed)
    with pytest.raises(UserInputError) as caught:
        Shards.load(packed)
    assert "--skip-lost" in caught.value.hint
    part = Shards.load(packed, strict=False)
    assert len(part) == N - 4
    assert [(lost["file"], lost["n"]) for lost in part.lost] == [(tar.name, 4)]
    assert [c.split()[1] for c in part.manifest.column("caption")][4:] == ["8,", "9,", "10,"]
    assert part.decode(4, 16).shape == (16, 16, 3)
    assert sorted(part.order(0, 0)) == list(range(N - 4))
    tar.unlink()
    with pytest.raises(UserInputError, match="does not exist"):
        Shards.load(packed)
    for other in packed.glob("*.tar"):
        other.unlink()
    with pytest.raises(UserInputError, match="none of the 3 shards"):
        Shards.load(packed, strict=False)


def test_an_altered_sample_is_a_bad_image_and_an_altered_index_is_refused(packed):
    tar = packed / "shard-000002.tar"
    data = bytearray(tar.read_bytes())
    shards = Shards.load(packed)
    start = int(shards._offset[8])
    data[start + 2 : start + 40] = bytes(38)
    tar.write_bytes(data)
    shards = Shards.load(packed)
    with pytest.raises(BadImage, match=r"shard-000002\.tar \(im\.8"):
        shards.decode(8)
    tar.write_bytes(data[:1000])
    with pytest.raises(BadImage, match="cut off while it was open"):
        shards.decode(9)
    index = packed / "index.parquet"
    table = pq.ParquetFile(index).read()
    pq.write_table(table.slice(0, 5), index)
    with pytest.raises(UserInputError, match=r"index\.parquet is not the index"):
        Shards.load(packed)


def test_wrong_folders_are_described(main, packed, source, tmp_path):
    with pytest.raises(UserInputError, match="webdataset shards"):
        Manifest.load(packed)
    with pytest.raises(UserInputError, match=r"no shards\.json"):
        Shards.load(source)
    message = json.loads((packed / "shards.json").read_text())
    (packed / "shards.json").write_text(json.dumps({**message, "format_version": 9}))
    with pytest.raises(UserInputError, match="format_version 9"):
        Shards.load(packed)
    for flags in (("--per-shard", 0), ("--size", 3), ("--quality", 101)):
        done = main("data", "shard", source, "--out", tmp_path / "x", *flags)
        assert done.rc == 2 and flags[0] in done.stderr
    assert main("data", "shard", tmp_path / "none", "--out", tmp_path / "x").rc == 2


def test_none_readable_is_an_error_and_leaves_nothing(main, tmp_path):
    source = make_source(tmp_path / "source", n=2, bad=(0, 1))
    done = main("data", "shard", source, "--out", tmp_path / "out")
    assert done.rc == 2 and "none of the 2 images" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
    strict = main("data", "shard", source, "--out", tmp_path / "out", "--strict")
    assert strict.rc == 2 and "im.0.jpg" in strict.stderr


def test_a_full_disk_is_one_sentence_and_the_command_can_be_repeated(cli, source, tmp_path):
    out = tmp_path / "out"
    argv = ("data", "shard", source, "--out", out, "--per-shard", 4)
    full = cli(*argv, file_limit_kb=8)
    assert full.rc == 2 and "no space left" in full.stderr and "Traceback" not in full.stderr
    assert cli(*argv).rc == 0
    assert len(Shards.load(out)) == N
