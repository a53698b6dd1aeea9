"""What training reads: text views from facts or columns, and images from memory, files or shards."""

from __future__ import annotations

import math
import random
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from dermaudit.data import BadImage, Manifest
from dermaudit.errors import UserInputError
from dermaudit.pretrain.data.facts import Fact, corpus
from dermaudit.pretrain.data.source import (
    ImageFiles,
    ImagesFromShards,
    ImagesInMemory,
    ImageSource,
    batches,
)
from dermaudit.pretrain.data.text_views import ColumnTexts, FactTexts

# ---- views


def facts(values=(1.0, 0.0, 1.0, 1.0)) -> list[Fact]:
    words = (("ruler", "artifact"), ("streaks", "concept"), ("globules", "concept"))
    found = [
        Fact(name, np.array([v], dtype=np.float32), (name,), (f"no {name}",), kind)
        for (name, kind), v in zip(words, values, strict=False)
    ]
    label = np.array([values[3]], dtype=np.float32)
    return [*found, Fact("label=mel", label, ("melanoma",), (), "label", "malignant lesion")]


def test_fact_views_have_the_content_of_their_kind():
    texts = FactTexts(facts(), keep=1.0, deny=0.0)
    raw, ontology, concept, *subs = texts.views(0, random.Random(0), 4)
    assert "ruler" in raw and "melanoma" in raw and "streaks" not in raw
    assert ontology == "a lesion diagnosed as malignant lesion, melanoma"
    assert concept == "a lesion that shows globules"
    assert sorted(s for s in subs if s) == ["globules", "ruler"] and subs[2:] == [None, None]
    assert len(texts.views(0, random.Random(0), 1)) == 4
    assert texts.views(0, random.Random(3), 4) == texts.views(0, random.Random(3), 4)


def test_fact_views_leave_out_unknown_and_absent_facts():
    texts = FactTexts(facts((math.nan, 0.0, 0.0, math.nan)), keep=1.0, deny=0.0)
    raw, *rest = texts.views(0, random.Random(0), 3)
    assert "skin" in raw and rest == [None] * 5


def test_fact_views_use_only_words_of_the_corpus():
    known = set(" ".join(corpus(facts())).replace(",", " ").split())
    for seed in range(20):
        for text in FactTexts(facts(), 0.7, 0.3).views(0, random.Random(seed), 4):
            assert set((text or "").replace(",", " ").split()) <= known


def table(**columns) -> Manifest:
    n = len(next(iter(columns.values())))
    return Manifest(pa.table({"image": [f"{i}.png" for i in range(n)], **columns}), None, None)


def test_column_views_skip_blank_cells():
    texts = ColumnTexts(
        table(
            caption=["a b. c.", None, " "],
            ontology_caption=["skin > x", None, "only this"],
            subcaption_1=["a b.", "z", None],
            subcaption_2=[None, None, None],
            subcaption_10=["c.", None, None],
        )
    )
    assert texts.views(0, random.Random(0), 3) == ["a b. c.", "skin > x", None, "a b.", "c.", None]
    assert texts.views(1, random.Random(0), 2) == [None, None, None, "z", None]
    assert [texts.has_caption(i) for i in range(3)] == [True, False, False]
    assert texts.raw(2, random.Random(0)) == "only this"
    assert texts.take([2, 0]).raw(1, random.Random(0)) == "a b. c."
    assert set(texts.all()) == {"a b. c.", "skin > x", "only this", "a b.", "c.", "z"}


def test_column_views_sample_when_there_are_more_subcaptions_than_k():
    texts = ColumnTexts(table(caption=["x"], **{f"subcaption_{k}": [str(k)] for k in range(1, 9)}))
    seen = set()
    for seed in range(60):
        subs = texts.views(0, random.Random(seed), 2)[3:]
        assert len(subs) == 2 and int(subs[0]) < int(subs[1])
        seen |= set(subs)
    assert seen == {str(k) for k in range(1, 9)}


# ---- images


@pytest.fixture
def files(tmp_path):
    """(paths, arrays) of 9 images; the one with number 4 is broken."""
    paths, arrays = [], []
    for i in range(9):
        path = tmp_path / f"{i}.png"
        array = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(array).save(path)
        paths.append(path)
        arrays.append(array)
    paths[4].write_bytes(paths[4].read_bytes()[:40])
    return paths, arrays


def plan(*batches_of_rows):
    return [np.array(rows) for rows in batches_of_rows]


@pytest.mark.parametrize("threads", [1, 4])
def test_files_are_read_in_order_and_a_broken_one_is_replaced(files, threads):
    paths, arrays = files
    source = ImageFiles(paths, 8)
    found = list(batches(source, plan([0, 4, 2], [8, 1, 5], [3, 3, 4]), threads))
    rows = [read.rows.tolist() for read in found]
    assert [read.failed for read in found] == [1, 0, 1]
    # Another row of the data stands in, and none that is in the batch already.
    assert rows[0][0] == 0 and rows[0][2] == 2 and rows[0][1] not in (0, 2, 4)
    assert rows[1] == [8, 1, 5] and rows[2][:2] == [3, 3] and rows[2][2] not in (3, 4)
    assert rows[2][2] == rows[0][1] or rows[0][1] == 3  # the same one each time
    for read in found:
        for row, image in zip(read.rows, read.images, strict=True):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), arrays[row])


def test_memory_and_files_give_the_same_images_and_orders(files):
    paths, arrays = files
    memory = ImagesInMemory(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
    source = ImageFiles(paths, 8)
    assert sorted(source.order(3)) == list(range(9))
    np.testing.assert_array_equal(source.order(3), memory.order(3))
    assert source.order(3).tolist() != source.order(4).tolist()
    rows = plan([0, 1], [7, 2])
    for a, b in zip(batches(source, rows), batches(memory, rows), strict=True):
        assert torch.equal(a.images, b.images) and a.rows.tolist() == b.rows.tolist()


def test_training_continues_when_many_files_are_missing(files, tmp_path):
    paths = [tmp_path / f"gone{i}.png" for i in range(40)] + [
        p for p in files[0] if p.name != "4.png"
    ]
    source = ImageFiles(paths, 8)
    (read,) = batches(source, plan(list(range(0, 40, 8))), 2)
    assert (read.rows >= 40).all()
    assert read.failed >= 5


def test_only_selects_rows_of_any_source(files):
    paths, arrays = files
    memory = ImagesInMemory(
        torch.from_numpy(np.stack(arrays)[[0, 2, 5, 7]]).permute(0, 3, 1, 2), [0, 2, 5, 7]
    )
    for source in (memory, ImageFiles(paths, 8)):
        some = source.only([2, 7, 3])
        assert set(some.order(1)) == ({2, 7} if source is memory else {2, 3, 7})
        (read,) = batches(some, plan([7, 2]))
        np.testing.assert_array_equal(read.images[0].permute(1, 2, 0).numpy(), arrays[7])


def test_unreadable_images_are_reported_in_one_sentence(tmp_path):
    source = ImageFiles([tmp_path / "absent.png"] * 3, 8)
    with pytest.raises(
        UserInputError, match="32 images drawn after each other cannot be read.*absent"
    ):
        list(batches(source, plan([0, 1])))


def test_batches_are_read_while_the_caller_computes():
    """Reading ahead: when a batch is handed over, those behind it are under way or done."""
    begun, lock = [], threading.Lock()

    class Slow(ImageSource):
        def image(self, row):
            with lock:
                begun.append(row)
            return np.zeros((2, 2, 3), dtype=np.uint8)

    reader = batches(Slow(range(100)), plan(*[[4 * i, 4 * i + 1] for i in range(20)]), 2)
    next(reader)
    deadline = time.monotonic() + 20
    while len(begun) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(begun) == 8  # four batches: the one handed over and three ahead


def test_shards_only_the_rows_of_the_split_and_their_order(image_folder, tmp_path, main):
    folder = image_folder(*[f"{i:02d}.png" for i in range(20)])
    done = main("data", "shard", folder, "--out", tmp_path / "shards", "--per-shard", "4")
    assert done.rc == 0, done.stderr
    from dermaudit.data.shards.read import Shards

    shards = Shards.load(tmp_path / "shards")
    rows = [1, 2, 3, 8, 9, 13, 19]
    source = ImagesFromShards(shards, rows, 16)
    order = source.order(5)
    assert sorted(order) == list(range(7)) and order.tolist() == source.order(5).tolist()
    assert {tuple(source.order(seed)) for seed in range(5)} != {tuple(order)}
    for place in order:
        np.testing.assert_array_equal(source.image(int(place)), shards.decode(rows[place], 16))


def test_a_source_raises_bad_image(files):
    with pytest.raises(BadImage):
        ImageFiles(files[0], 8).image(4)
