"""`data dedup`: planted copies are found, unrelated images are not, at any block size."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dermaudit.data.duplicates import embeddings as dedup
from dermaudit.data.duplicates.embeddings import Features
from dermaudit.data.duplicates.hashes import (
    near_pairs,
    nearest_hash,
    pack_hashes,
    perceptual_hash,
    turns,
)
from dermaudit.errors import EvidenceError, UserInputError


def picture(seed, side=96):
    """Random colours at several scales: two seeds are never near duplicates."""
    rng = np.random.default_rng(seed)
    pixels = np.full((side, side, 3), 128.0)
    for grid in (3, 6, 12):
        coarse = rng.integers(0, 256, (grid, grid, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        pixels += (np.asarray(fine) - 128.0) * 2 / grid
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def folder(root, seeds, change=lambda image: image):
    root.mkdir()
    for seed in seeds:
        change(picture(seed)).save(root / f"{seed:03d}.png")
    return root


def smaller(image):
    return image.resize((60, 60))


def random_hashes(rng, n):
    return pack_hashes(rng.integers(0, 2, (n, 256)).astype(bool))


def flip_bits(rng, packed, n):
    bits = np.unpackbits(packed.view(np.uint8))
    bits[rng.permutation(256)[:n]] ^= 1
    return np.packbits(bits).view(np.uint64)


# ---- the cosine --------------------------------------------------------------------------------


def test_top1_by_hand():
    base = np.array([[1, 0], [0, 2], [-1, 0]], dtype=np.float64)
    query = np.array([[3, 3.1], [-1, 0.1], [1, 1]], dtype=np.float32)
    row, cosine = dedup.top1(query, base)
    assert row.tolist() == [1, 2, 0], "the first of two that are as near"
    assert cosine == pytest.approx([3.1 / np.hypot(3, 3.1), 1 / np.hypot(1, 0.1), np.sqrt(0.5)])
    row, cosine = dedup.top1(query, base, np.array([1, 2, 3]), np.array([0, 1, 2]))
    assert row.tolist() == [0, 1, 0], "one's own group does not count"
    row, cosine = dedup.top1(query[:1], base, np.array([7]), np.array([7, 7, 7]))
    assert row.tolist() == [-1] and np.isneginf(cosine[0])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 40), (33, 16), (64, 129)])
def test_top1_does_not_depend_on_the_blocks(monkeypatch, n, m, tmp_path):
    monkeypatch.setattr(dedup, "_QUERY", 16)
    monkeypatch.setattr(dedup, "_BASE", 32)
    rng = np.random.default_rng(n)
    base = rng.standard_normal((m, 5)).astype(np.float16)
    query = rng.standard_normal((n, 5)).astype(np.float32)
    own, groups = rng.integers(0, 4, n), rng.integers(0, 4, m)
    np.save(tmp_path / "base.npy", base)
    mapped = np.load(tmp_path / "base.npy", mmap_mode="r")
    row, cosine = dedup.top1(query, mapped, own, groups)
    whole = dedup.unit_rows(query).astype(float) @ dedup.unit_rows(base).astype(float).T
    whole[own[:, None] == groups[None]] = -np.inf
    assert cosine == pytest.approx(whole.max(1), abs=1e-6)
    some = np.isfinite(whole.max(1))
    assert np.array_equal(row[some], whole.argmax(1)[some]) and (row[~some] == -1).all()


def test_embeddings_that_cannot_be_compared_are_refused():
    good = np.ones((3, 4), dtype=np.float32)
    with pytest.raises(UserInputError, match=r"\(3, 4\) and \(3, 5\) cannot be compared"):
        dedup.top1(good, np.ones((3, 5)))
    for bad in (0.0, np.nan):
        broken = good.copy()
        broken[1] = bad
        with pytest.raises(UserInputError, match="row 1 is zero or not finite"):
            dedup.top1(good, broken)


def test_calibrate_passes_the_share_it_promises_to_new_unrelated_images():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((1500, 8)).astype(np.float32)
    groups = np.arange(1500) // 3
    base[1::3] = base[::3] + 0.01  # pictures of one lesion: near, and not unrelated
    found = dedup.calibrate(base, groups, 0.05)
    fresh = rng.standard_normal((2000, 8)).astype(np.float32)
    passed = (dedup.top1(fresh, base)[1] >= found.threshold).mean()
    assert 0.03 < passed < 0.075
    assert found.n == 1500 and found.threshold < 0.9999
    assert (
        found.quantiles["0.5"] < found.quantiles["0.95"] == pytest.approx(found.threshold, abs=1e-6)
    )
    assert dedup.calibrate(base, groups, 0.05) == found


def test_calibrate_too_few_images_are_no_evidence():
    base = np.eye(40, 8, dtype=np.float32) + 1
    with pytest.raises(EvidenceError, match="500 are needed") as caught:
        dedup.calibrate(base, np.arange(40), 0.01)
    assert caught.value.numbers == {"n": 40, "needed": 500, "n_groups": 40}
    with pytest.raises(EvidenceError, match="in 1 groups"):
        dedup.calibrate(base, np.zeros(40, dtype=int), 0.5)


# ---- the hash ----------------------------------------------------------------------------------


def test_nearest_hash_agrees_with_all_pairs():
    rng = np.random.default_rng(1)
    base = random_hashes(rng, 300)
    near = np.stack(
        [flip_bits(rng, base[i], k) for i, k in zip(range(0, 60, 2), range(30), strict=True)]
    )
    query = np.concatenate([near, random_hashes(rng, 20), base[5:6]])
    row, bits = nearest_hash(query, base)
    distances = np.bitwise_count(query[:, None] ^ base[None]).sum(-1, dtype=np.int64)
    least = distances.min(1)
    assert np.array_equal(bits, np.where(least <= 24, least, -1))
    assert np.array_equal(row, np.where(least <= 24, distances.argmin(1), -1))
    assert (row[:25] == np.arange(0, 50, 2)).all() and (row[25:50] == -1).all() and row[50] == 5


def test_nearest_hash_within_one_set_agrees_with_near_pairs():
    rng = np.random.default_rng(2)
    base = random_hashes(rng, 60)
    near = np.stack(
        [flip_bits(rng, base[i], k) for i, k in ((0, 3), (0, 9), (7, 24), (8, 25), (9, 0))]
    )
    hashes = np.concatenate([base, near, base[9:10], base[9:10]])
    row, bits = nearest_hash(hashes, hashes, own=np.arange(len(hashes)))
    pairs = list(near_pairs(np.unpackbits(hashes.view(np.uint8), axis=1).astype(bool)))
    for i in range(len(hashes)):
        mine = [(d, a if b == i else b) for a, b, d in pairs if i in (a, b)]
        assert (bits[i], row[i]) == (min(mine) if mine else (-1, -1))
    assert row[9] == 64 and row[64] == row[65] == row[66] == 9, "equal hashes, never oneself"


def test_nearest_hash_many_equal_frames_are_compared_once(monkeypatch):
    """A hundred thousand black frames: all pairs would be 10^10."""
    counted = []
    stock = np.bitwise_count
    monkeypatch.setattr(np, "bitwise_count", lambda x: (counted.append(x.size), stock(x))[1])
    frames = np.zeros((100_000, 4), dtype=np.uint64)
    row, bits = nearest_hash(frames, frames, own=np.arange(100_000))
    assert row[0] == 1 and (row[1:] == 0).all() and (bits == 0).all()
    assert sum(counted) < 2 * 10**7
    assert [x.tolist() for x in nearest_hash(frames[:0], frames)] == [[], []]
    assert nearest_hash(frames[:2], frames[:0])[0].tolist() == [-1, -1]
    assert nearest_hash(frames[:1], frames[:1], own=np.arange(1))[0].tolist() == [-1]


def test_turns_are_the_seven_other_ways_and_their_hashes_find_each_other():
    pixels = np.asarray(picture(0))
    ways = [pixels, *turns(pixels)]
    assert len({way.tobytes() for way in ways}) == 8
    assert all(np.array_equal(np.sort(way, axis=None), np.sort(pixels, axis=None)) for way in ways)
    known = [
        Features(None, pack_hashes(np.stack([perceptual_hash(np.asarray(i)) for i in images])))
        for images in ([picture(1), picture(0), picture(2)], [Image.fromarray(ways[6])])
    ]
    assert not len(dedup.find_pairs(*known, np.inf).a)
    turned = pack_hashes(np.stack([perceptual_hash(way) for way in turns(ways[6])]))
    found = dedup.find_pairs(known[0], known[1]._replace(turned=turned[None]), np.inf)
    assert (found.a.tolist(), found.b.tolist()) == ([1], [0]) and found.bits[0] <= 8
    # An image that is its own mirror image is no duplicate of itself.
    even = (pixels.astype(int) + pixels[:, ::-1]) // 2
    own = [
        pack_hashes(perceptual_hash(w)[None])
        for w in (even.astype(np.uint8), *turns(even.astype(np.uint8)))
    ]
    alone = Features(None, own[0], np.stack(own[1:], axis=1))
    assert not len(dedup.find_pairs(alone, None, np.inf).a)


# ---- both, and the command --------------------------------------------------------------------------


def test_find_pairs_keeps_both_scores_and_which_criterion_found_them():
    rng = np.random.default_rng(3)
    a, hashes_a = rng.standard_normal((50, 16)), random_hashes(rng, 50)
    b, hashes_b = rng.standard_normal((4, 16)), random_hashes(rng, 4)
    b[0], hashes_b[1] = a[7] * 2, flip_bits(rng, hashes_a[9], 5)
    b[2], hashes_b[2] = a[11], hashes_a[11]
    pairs = dedup.find_pairs(Features(a, hashes_a), Features(b, hashes_b), 0.99)
    assert list(zip(pairs.a, pairs.b, strict=True)) == [(11, 2), (9, 1), (7, 0)], "nearest first"
    assert pairs.by_cosine.tolist() == [True, False, True]
    assert pairs.by_hash.tolist() == [True, True, False]
    assert pairs.cosine[[0, 2]] == pytest.approx(1) and pairs.bits[:2].tolist() == [0, 5]
    assert pairs.cosine[1] < 0.9 and pairs.bits[2] > 60
    both = np.concatenate([a, a[3:4]])
    within = dedup.find_pairs(Features(both), None, 0.999)
    assert (within.a.tolist(), within.b.tolist(), within.bits.tolist()) == ([3], [50], [-1])


def test_share_by_hand_and_with_an_interval_over_groups():
    groups = [str(i // 2) for i in range(200)]
    found = dedup.share(np.array([0, 1, 1, 7]), groups)
    assert (found["n"], found["share"]) == (3, 0.015)
    assert 0 <= found["low"] < 0.015 < found["high"] < 0.06
    none, every = dedup.share(np.array([], dtype=int), groups), dedup.share(np.arange(200), groups)
    assert (none["share"], none["low"]) == (0, 0) and none["high"] == pytest.approx(1 - 0.025**0.01)
    assert every["high"] == 1 and every["low"] == pytest.approx(0.025**0.01), (
        "no claim of certainty"
    )
    wide = dedup.share(np.arange(100), [str(i // 50) for i in range(200)])
    assert wide["high"] - wide["low"] > 0.5, "four groups say little, whatever their size"


def test_copies_are_found_and_others_are_not(main, tmp_path):
    a = folder(tmp_path / "a", range(12))
    b = folder(tmp_path / "b", [3, 5, 40, 41, 42], smaller)
    (b / "bad.png").write_bytes(b"no")
    out = tmp_path / "out"
    done = main("data", "dedup", a, b, "--by", "hash", "--out", out, "--html", "--json")
    assert done.rc == 0, done.stderr
    answer = done.json()
    assert sorted((p["a_image"], p["b_image"]) for p in answer["pairs"]) == [
        ("003.png", "003.png"),
        ("005.png", "005.png"),
    ]
    assert (answer["n_a"], answer["n_b"], answer["n_skipped"], answer["n_same_group"]) == (
        12,
        5,
        1,
        0,
    )
    assert answer["duplicates"]["hash"]["share"] == 0.4
    assert 0 <= answer["duplicates"]["hash"]["low"] < 0.4 < answer["duplicates"]["hash"]["high"]
    listed = pq.ParquetFile(out / "pairs.parquet").read().to_pylist()
    with (out / "pairs.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert (
        [r["a_image"] for r in rows]
        == [r["a_image"] for r in listed]
        == [p["a_image"] for p in answer["pairs"]]
    )
    assert json.loads((out / "dedup.json").read_text())["n_pairs"] == 2
    page = (out / "pairs.html").read_text()
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert (
        len(images) == 4 and "<script" not in page and "http" not in page.replace("http-equiv", "")
    )
    with Image.open(io.BytesIO(base64.b64decode(images[0]))) as image:
        assert image.size == (160, 160)
    again = main("data", "dedup", a, b, "--by", "hash", "--out", out)
    assert again.rc == 2 and "--force" in again.stderr


def test_within_one_set_pairs_across_splits_are_counted(main, tmp_path):
    root = folder(tmp_path / "a", range(6))
    smaller(picture(2)).save(root / "copy.png")
    lines = [f"{i:03d}.png,train,g{i}" for i in range(6)] + ["copy.png,test,g9"]
    (root / "manifest.csv").write_text("image,split,group\n" + "\n".join(lines) + "\n")
    done = main("data", "dedup", root, "--by", "hash", "--json")
    answer = done.json()
    assert [(p["a_image"], p["b_image"], p["a_split"], p["b_split"]) for p in answer["pairs"]] == [
        ("002.png", "copy.png", "train", "test")
    ]
    assert (answer["n_across_splits"], answer["duplicates"]["either"]["n"]) == (1, 2)
    assert "1 across splits" in done.stderr
    assert answer["n_same_group"] == 0
    (root / "manifest.csv").write_text("image,group\n002.png,g2\ncopy.png,g2\n")
    within = main("data", "dedup", root, "--by", "hash", "--json").json()
    across = main("data", "dedup", root, root, "--by", "hash", "--json").json()
    assert (within["n_same_group"], within["n_pairs"]) == (1, 1)
    assert across["n_same_group"] == 0, "groups of two tables are not compared"


def test_a_mirrored_copy_is_found_unless_it_is_not_asked_for(main, tmp_path):
    a = folder(tmp_path / "a", range(8))
    b = folder(tmp_path / "b", [3], lambda i: i.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    argv = ("data", "dedup", a, b, "--by", "hash", "--json")
    assert [p["a_image"] for p in main(*argv).json()["pairs"]] == ["003.png"]
    assert main(*argv, "--no-turned").json()["pairs"] == []


def test_embeddings_of_a_file_in_the_order_of_their_ids(main, tmp_path):
    rng = np.random.default_rng(4)
    a, b = folder(tmp_path / "a", range(8)), folder(tmp_path / "b", range(20, 23))
    vectors = rng.standard_normal((8, 6)).astype(np.float32)
    np.save(tmp_path / "a.npy", vectors[::-1])
    ids = tmp_path / "a.txt"
    names = main("data", "check", a, "--json")
    assert names.rc == 0
    from dermaudit.data import Manifest

    ids.write_text("\n".join(Manifest.load(a).ids[::-1]) + "\n")
    from safetensors.numpy import save_file

    other = rng.standard_normal((3, 6)).astype(np.float32)
    other[1] = vectors[5] * 3
    save_file({"embeddings": other}, tmp_path / "b.safetensors")
    files = ("--embeddings-a", tmp_path / "a.npy", "--embeddings-b", tmp_path / "b.safetensors")
    argv = ("data", "dedup", a, b, "--by", "cosine", *files, "--json")
    answer = main(*argv, "--ids-a", ids, "--threshold", 0.999).json()
    assert [(p["a_image"], p["b_image"]) for p in answer["pairs"]] == [("005.png", "021.png")]
    assert (
        answer["pairs"][0]["cosine"] == pytest.approx(1) and answer["pairs"][0]["hash_bits"] is None
    )
    few = main(*argv, "--ids-a", ids)
    assert few.rc == 3 and few.json()["error"]["numbers"]["n"] == 8
    ids.write_text("nobody\n" * 8)
    wrong = main(*argv, "--ids-a", ids, "--threshold", 0.9)
    assert wrong.rc == 2 and "line 1: 'nobody' is no image_id" in wrong.stderr
    np.save(tmp_path / "a.npy", vectors[:5])
    short = main(*argv, "--threshold", 0.9)
    assert short.rc == 2 and "has 5 rows" in short.stderr and "--ids-a" in short.stderr
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY")
    broken = main(*argv, "--threshold", 0.9)
    assert broken.rc == 2 and "a.npy cannot be read as npy" in broken.stderr


def test_shards_are_a_set_like_any_other(main, tmp_path):
    a, b = folder(tmp_path / "a", range(9)), folder(tmp_path / "b", [4, 30], smaller)
    assert main("data", "shard", a, "--out", tmp_path / "s", "--per-shard", 4).rc == 0
    plain = main("data", "dedup", a, b, "--by", "hash", "--json").json()
    packed = main("data", "dedup", tmp_path / "s", b, "--by", "hash", "--json").json()
    assert packed["pairs"] == plain["pairs"] and len(plain["pairs"]) == 1


def test_a_lost_shard_is_refused_or_left_out(main, tmp_path):
    a, b = folder(tmp_path / "a", range(9)), folder(tmp_path / "b", [0, 8], smaller)
    assert main("data", "shard", a, "--out", tmp_path / "s", "--per-shard", 4).rc == 0
    (tmp_path / "s" / "shard-000000.tar").unlink()
    argv = ("data", "dedup", tmp_path / "s", b, "--by", "hash", "--json")
    refused = main(*argv)
    assert refused.rc == 2 and "--skip-lost" in refused.json()["error"]["hint"]
    done = main(*argv, "--skip-lost")
    assert [p["a_image"] for p in done.json()["pairs"]] == ["008.png"] and done.json()["n_a"] == 5
    assert "shard-000000.tar: the file does not exist; its 4 images are left out" in done.stderr


def test_a_criterion_that_was_not_used_is_not_reported(main, tmp_path):
    a = folder(tmp_path / "a", range(4))
    done = main("data", "dedup", a, "--by", "hash", "--json")
    assert set(done.json()["duplicates"]) == {"either", "hash"}
    rows = [line.split()[0] for line in done.stderr.splitlines() if "interval" in line]
    assert rows == ["hash"]


def test_too_few_for_a_threshold_only_the_hash_is_reported(main, tmp_path):
    a, b = folder(tmp_path / "a", range(8)), folder(tmp_path / "b", [3, 30], smaller)
    done = main("data", "dedup", a, b, "--json")
    answer = done.json()
    assert done.rc == 0 and [p["a_image"] for p in answer["pairs"]] == ["003.png"]
    assert "500 are needed" in answer["cosine_refused"] and "no cosine: 8 images" in done.stderr
    assert (answer["model"], answer["threshold"]) == (None, None)
    assert set(answer["duplicates"]) == {"either", "hash"} and answer["pairs"][0]["cosine"] is None
    alone = main("data", "dedup", a, b, "--by", "cosine", "--json")
    assert alone.rc == 3 and "500 are needed" in alone.json()["error"]["message"]


def test_wrong_names_and_shapes_come_before_too_few_images(main, tmp_path):
    a, b = folder(tmp_path / "a", range(4)), folder(tmp_path / "b", range(20, 23))
    done = main("data", "dedup", a, b, "--model", "dermoscopy-smal")
    assert done.rc == 2 and "did you mean 'dermoscopy-small'" in done.stderr
    np.save(tmp_path / "a.npy", np.ones((4, 6), np.float32))
    for shape, message in (((3, 5), "of 6 numbers"), ((2, 6), "has 2 rows")):
        np.save(tmp_path / "b.npy", np.ones(shape, np.float32))
        files = ("--embeddings-a", tmp_path / "a.npy", "--embeddings-b", tmp_path / "b.npy")
        done = main("data", "dedup", a, b, *files)
        assert done.rc == 2 and message in done.stderr
    missing = main("data", "dedup", a, "--embeddings-a", tmp_path / "aa.npy")
    assert missing.rc == 2 and f"did you mean {tmp_path / 'a.npy'}?" in missing.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--by", "cosin"), "did you mean 'cosine'"),
        (("--threshold", 2), "--threshold 2.0 is not a cosine"),
        (("--false-share", 0), "--false-share 0.0"),
        (("--bits", 100), "--bits 100"),
        (("--html",), "give --out"),
        (("--embeddings-b", "x.npy"), "one set only"),
        (("--ids-a", "x.txt"), "--ids-a belongs to a file"),
    ],
)
def test_flags_that_cannot_be_used_are_named(main, tmp_path, flags, message):
    done = main("data", "dedup", tmp_path, tmp_path, *flags)
    assert done.rc == 2 and message in done.stderr


@pytest.mark.data
def test_real_copies_resized_and_saved_again_are_found(main, tmp_path, data_dir):
    sources = sorted((data_dir / "dermoscopy" / "images").iterdir())[:40]
    for name, chosen in (("a", sources), ("b", sources[30:])):
        (tmp_path / name).mkdir()
        for path in chosen:
            image = Image.open(path).convert("RGB")
            if name == "b":
                image = image.resize((image.width // 2, image.height // 2))
            image.save(tmp_path / name / f"{path.stem}.jpg", quality=60 if name == "b" else 95)
    answer = main("data", "dedup", tmp_path / "a", tmp_path / "b", "--by", "hash", "--json").json()
    assert answer["duplicates"]["hash"]["n"] == 10
    assert all(p["a_image"] == p["b_image"] for p in answer["pairs"])
