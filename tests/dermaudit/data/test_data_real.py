"""The real table of dermoscopic images, counted against its description (data.md)."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from dermaudit.data import Manifest, decode_all
from dermaudit.data.manifest.convert import plan_conversion

pytestmark = pytest.mark.data

# present, absent: as people judged them
ARTIFACTS = {
    "dark_corner": (642, 1128),
    "hair": (1032, 751),
    "gel_border": (447, 1313),
    "gel_bubble": (837, 907),
    "ruler": (858, 914),
    "ink": (306, 1477),
    "patch": (130, 1651),
}
ATTRIBUTES = {
    "pigment_network": 1045,
    "milia_like_cyst": 461,
    "globules": 429,
    "negative_network": 130,
    "streaks": 69,
}


@pytest.fixture(scope="module")
def manifest(data_dir, tmp_path_factory) -> Manifest:
    out = tmp_path_factory.mktemp("real") / "out"
    return plan_conversion(data_dir / "dermoscopy", "dermoscopy", out, None).manifest


def test_rows_labels_and_split(manifest):
    assert manifest.n == 3111
    assert {label: manifest.labels.count(label) for label in set(manifest.labels)} == {
        "nv": 1507,
        "mel": 670,
        "bkl": 532,
        "bcc": 185,
        "akiec": 132,
        "vasc": 47,
        "df": 38,
    }
    shares = [manifest.splits.count(name) / manifest.n for name in ("train", "val", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.02)


def test_truth_counts(manifest):
    truth = manifest.truth()
    for name, (present, absent) in ARTIFACTS.items():
        kind, values = truth[name]
        assert kind == "artifact"
        assert ((values == 1).sum(), (values == 0).sum()) == (present, absent), name
    for name, present in ATTRIBUTES.items():
        kind, values = truth[name]
        assert kind == "concept"
        assert ((values == 1).sum(), np.isfinite(values).sum()) == (present, 1783), name
    assert set(truth) == {*ARTIFACTS, *ATTRIBUTES}


def test_artifacts_without_annotation_are_unknown(manifest):
    unjudged = np.array(manifest.column("dataset")) == "HAM10000"
    assert unjudged.sum() == 1328
    for name in ARTIFACTS:
        assert np.isnan(manifest.truth()[name][1][unjudged]).all()


def test_no_group_is_in_two_splits(manifest):
    splits = defaultdict(set)
    for group, split in zip(manifest.groups, manifest.splits, strict=True):
        splits[group].add(split)
    assert len(splits) == 2825
    assert max(map(len, splits.values())) == 1


def test_captions_never_mention_what_is_unknown(manifest):
    captions = manifest.column("caption")
    for name, word in {"ruler": "ruler", "ink": "ink marks", "streaks": "streaks"}.items():
        values = manifest.truth()[name][1]
        message = np.array([word in caption for caption in captions])
        np.testing.assert_array_equal(message, values == 1)


def test_every_image_is_there_and_a_sample_decodes(manifest):
    assert all(path.is_file() for path in manifest.paths())
    pixels, kept, skipped = decode_all(manifest.take(range(0, manifest.n, 100)), 64)
    assert pixels.shape == (32, 64, 64, 3) and len(kept) == 32 and skipped == []
    assert 60 < pixels.mean() < 220


def test_dry_run_through_the_command_line(main, data_dir, tmp_path):
    flags = ("--layout", "dermoscopy", "--where", "licence = 'CC0-1.0'", "--dry-run", "--json")
    done = main("data", "convert", data_dir / "dermoscopy", "--out", tmp_path / "out", *flags)
    assert done.rc == 0, done.stderr
    assert done.json()["n_images"] == 1783
    assert done.json()["labels"] == {"nv": 1277, "mel": 363, "bkl": 143}
    assert not (tmp_path / "out").exists()
