"""Rows, captions, and a folder that survives a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dermaudit.data import Manifest
from dermaudit.data.splits import assign
from dermaudit.errors import UserInputError
from dermaudit.phantom import (
    ARTIFACTS,
    AUDIT_SEEDS,
    CONCEPTS,
    PRETRAIN_SEEDS,
    load_bias_table,
    render,
    rows,
    sample,
    write_phantoms,
)
from dermaudit.phantom.captions import ARTIFACT_WORDS, CONCEPT_WORDS, MAX_SUBCAPTIONS

ROOT = Path(__file__).parents[3]


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_seed_ranges_are_disjoint():
    assert not set(PRETRAIN_SEEDS) & set(range(AUDIT_SEEDS.start, AUDIT_SEEDS.start + 5000))
    assert AUDIT_SEEDS.start >= PRETRAIN_SEEDS.stop


def test_rows_do_not_depend_on_n():
    few, many = rows(5, 1000), rows(12, 1000)
    assert many[:5] == few
    assert [row["group"] for row in few] == [f"phantom-1000-{k}" for k in range(5)]
    assert len({tuple(row) for row in many}) == 1
    assert all(isinstance(row[f"concept:{name}"], int) for row in few for name in CONCEPTS)
    assert {"image", "image_id", "label", "caption", "skin_tone", "seed", "index"} <= set(few[0])
    assert "split" not in few[0]


def test_groups_fall_into_all_splits():
    assert set(assign(row["group"] for row in rows(60, 1000))) == {"train", "val", "test"}


def test_captions_name_every_fact_and_no_other():
    for index in range(80):
        scene = sample(1001, index)
        phantom = render(scene, 16)
        assert 3 <= len(phantom.subcaptions) <= MAX_SUBCAPTIONS
        message = " ".join(phantom.subcaptions).lower()
        for words, truth in ((CONCEPT_WORDS, scene.concepts), (ARTIFACT_WORDS, scene.artifacts)):
            for name, present in truth.items():
                if present:
                    assert any(word.lower() in phantom.caption.lower() for word in words[name])
                    assert any(word.lower() in message for word in words[name])
        if not any(scene.artifacts.values()):
            assert phantom.caption.count(".") == 1
        assert "a a" not in message and "{" not in message


def test_captions_do_not_mention_an_artifact_that_is_left_out():
    table = load_bias_table().changed(
        {"artifact": {"default": {name: float(name == "ink") for name in ARTIFACTS}}}
    )
    scene = sample(1002, 0, table)
    assert "ink" in render(scene, 16).caption or "pen" in render(scene, 16).caption
    without = render(scene, 16, without="ink")
    assert without.caption.count(".") == 1
    assert not any(word in without.caption for word in ("ink", "pen "))


def test_folder_holds_what_the_rows_say(tmp_path):
    out = write_phantoms(tmp_path / "p", 6, 1000, 48, masks=True, without=("ruler",))
    for row in rows(6, 1000):
        scene = sample(1000, row["index"])
        phantom = render(scene, 48, masks=True)
        assert np.array_equal(np.asarray(Image.open(out / row["image"])), phantom.rgb)
        name = Path(row["image"]).name
        for what, present in (scene.concepts | scene.artifacts).items():
            path = out / "masks" / what / name
            assert path.exists() == bool(present)
            if present:
                alpha = np.asarray(Image.open(path)) / 255
                assert np.abs(alpha - phantom.masks[what]).max() <= 0.5 / 255 + 1e-6
        twin = out / "without" / "ruler" / name
        assert twin.exists() == bool(scene.artifacts["ruler"])
        if twin.exists():
            clean = render(scene, 48, without="ruler").rgb
            assert np.array_equal(np.asarray(Image.open(twin)), clean)


def test_a_killed_write_can_be_continued_and_gives_the_same_bytes(tmp_path):
    code = (
        "from dermaudit.phantom import write_phantoms;"
        f"write_phantoms({str(tmp_path / 'killed')!r}, 8, 1000, 32, masks=True)"
    )
    environment = os.environ | {"DERMAUDIT_FAILPOINT": "phantom.image:4", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert ended.returncode == 137
    images = tmp_path / "killed" / "images"
    assert len(list(images.iterdir())) == 4
    # Half a file of the next image, as a kill inside a write would leave it.
    (images / ".000004.png.1.tmp").write_bytes(b"\x89PNG")
    first = (images / "000000.png").stat().st_mtime_ns
    write_phantoms(tmp_path / "killed", 8, 1000, 32, masks=True)
    (images / ".000004.png.1.tmp").unlink(missing_ok=True)
    assert (images / "000000.png").stat().st_mtime_ns == first
    whole = write_phantoms(tmp_path / "whole", 8, 1000, 32, masks=True)
    assert files(tmp_path / "killed") == files(whole)


def test_a_folder_of_other_settings_is_refused(tmp_path, ruler_table):
    write_phantoms(tmp_path, 1, 1000, 32)
    with pytest.raises(UserInputError, match="another size"):
        write_phantoms(tmp_path, 1, 1000, 48)
    with pytest.raises(UserInputError, match="another seed"):
        write_phantoms(tmp_path, 1, 1001, 32)
    with pytest.raises(UserInputError, match="another bias_table"):
        table = ruler_table(0.9, 0.1)
        write_phantoms(tmp_path, 1, 1000, 32, table)
    with pytest.raises(UserInputError, match="at least one"):
        write_phantoms(tmp_path, 0, 1000, 32)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, dermaudit.phantom;"
        "assert not {'numpy', 'scipy', 'PIL', 'torch'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True
    )


def test_contact_sheet(tmp_path):
    from dermaudit.phantom.sheet import main

    write_phantoms(tmp_path / "p", 3, 1000, 32)
    out = tmp_path / "sheet.png"
    flags = ["--by", "artifact", "--columns", "2", "--size", "32"]
    main([str(out), *flags, "--beside", str(tmp_path / "p" / "images")])
    with Image.open(out) as sheet:
        assert sheet.size == (4 * 162, 7 * 162)


def test_phantom_command_writes_a_data_set_and_continues_with_force(main, tmp_path):
    out = tmp_path / "out"
    argv = ("data", "phantom", "--out", out, "--n", "4", "--size", "32", "--json")
    assert main(*argv, "--dry-run").json()["dry_run"] and not out.exists()
    done = main(*argv)
    assert done.rc == 0, done.stderr
    manifest = Manifest.load(out)
    assert manifest.n == 4 and sum(done.json()["splits"].values()) == 4
    assert set(manifest.truth()) == {*CONCEPTS, *ARTIFACTS}
    before = files(out)
    refused = main(*argv)
    assert refused.rc == 2 and "already holds a data set" in refused.stderr
    assert main(*argv, "--force").rc == 0 and files(out) == before
