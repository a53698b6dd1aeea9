"""Every figure of a run's SAEs on its test images: what there is data for, one stage a site.

`fit` and `sae measure` print it. What it needs of the run are the stored activations, the codes, the
labels, and the run's model, whose zero-shot classifier is asked where the labels are known classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dermaudit.console import say
from dermaudit.errors import EvidenceError, ForeignArtifactError, StaleArtifactError, UserInputError
from dermaudit.files import read_json, sha256_file, write_json
from dermaudit.run.directory import Run

from ..embed.shard import POOLED
from ..inference.codes import Codes
from ..inference.model import load_sae
from ..store.activation_store import ActivationStore
from ..store.loader import RowSubset, random_subset, read_rows
from ..store.rows import EmbeddingRows
from .images import EvaluationImages
from .measured import FORMAT_VERSION, TRAIN_ROWS, MeasurementData, measure, metrics_table, summary
from .recovered import Ablation, recovered_report

#: Beginnings of the names of the columns that a measurement reads.
COLUMNS = ("split", "group", "label", "artifact:", "concept:")
SPLICED = 1000  # test images at most that go through the model again, four times
IMAGES = 50_000  # of a split at most, for what needs a code and an embedding of each in memory


def measure_run(
    run: Run,
    sites: Sequence[str],
    *,
    against: Sequence[Path] = (),
    embeddings_of: str | None = None,
    zero_shot: bool = True,
    draws: int = 1000,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Measure the SAEs of `sites`, print a table of each, write sae/<site>/measured.json, and return
    {site: its summary}. `against`: folders of other SAEs of the same site, or runs; without, latents are
    compared with the other seeds of the run, if it has some. `embeddings_of`: see `sae measure`.

    Errors: those of the files it reads; EvidenceError without test images. A model that cannot be
    opened costs the zero-shot figures alone.
    """
    import torch

    data = _RunImages(run)
    zero_shot_by = why_not = None
    if zero_shot and data.zero_shot_labels():
        zero_shot_by, why_not = _zero_shot_of(run, data)
    judge = _Judge(embeddings_of) if embeddings_of else None
    options = {
        "against": _digests(against, sites),
        "embeddings_of": judge.tower.fingerprint if judge else None,
        "zero_shot": zero_shot_by is not None,
        "draws": draws,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "format": FORMAT_VERSION,
    }
    found: dict[str, Any] = {}
    for site in sites:

        def make(site: str = site) -> tuple[list[Path], dict[str, Any]]:
            say(f"  measuring {site} on test images")
            measured = _measure_site(run, site, data, zero_shot_by, judge, against, draws, seed)
            if why_not:
                measured["zero_shot"] = {"reason": why_not}
            path = run.file("sae", site, "measured.json")
            write_json(path, measured)
            return [path], summary(measured)

        run.stage(
            f"measure:{site}",
            {"site": site, **options},
            make,
            upstream=[
                "embed",
                f"fit:{site}",
                *_fresh_seeds(run, site),
            ],
            columns=[name for name in data.table.column_names if name.startswith(COLUMNS)],
            force=force,
        )
        measured = read_json(run.file("sae", site, "measured.json"), "measured figures")
        metrics_table(measured, f"{site}: held-out test images")
        found[site] = summary(measured)
    return found


class _RunImages:
    """The table of a run: splits, groups, labels, and what is known of each image."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.table = pq.read_table(run.file("images.parquet"))
        n = self.table.num_rows

        def words(name: str) -> np.ndarray:
            values = self.table[name].to_pylist() if name in self.table.column_names else [""] * n
            return np.array(["" if v is None else str(v) for v in values], dtype=object)

        self.splits, self.groups, self.labels = words("split"), words("group"), words("label")
        if not (self.groups != "").any():
            self.groups = np.arange(n).astype(str)

    def truth(self) -> dict[str, np.ndarray]:
        """`artifact:*` and `concept:*` columns (.5 and up is present, blank is unknown), then each
        label against the others: {name: (n,) of 1, 0, nan}."""
        found: dict[str, np.ndarray] = {}
        for column in self.table.column_names:
            kind, _, name = column.partition(":")
            if kind in ("artifact", "concept") and name:
                raw = self.table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
                found[name] = np.where(np.isfinite(raw), (raw >= 0.5).astype(float), np.nan)
        for label in sorted(set(self.labels) - {""}):
            if label not in found:
                known = self.labels != ""
                found[label] = np.where(known, (self.labels == label).astype(float), np.nan)
        return found

    def zero_shot_labels(self) -> bool:
        """Whether the labels are codes that the toolkit knows names for."""
        from dermaudit.towers.prompts import ham_classes

        known = set(self.labels) - {""}
        return len(known) > 1 and known <= set(ham_classes())

    def of(self, images: np.ndarray, codes: Any, pooled: np.ndarray | None) -> EvaluationImages:
        """The images of these row numbers; `codes` and `pooled` are theirs already."""
        truth = {name: values[images] for name, values in self.truth().items()}
        return EvaluationImages(codes, self.groups[images], truth, pooled)


def _measure_site(
    run: Run,
    site: str,
    data: _RunImages,
    zero_shot_by: tuple[Any, Any] | None,
    judge: _Judge | None,
    against: Sequence[Path],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    sae = load_sae(run.file("sae", site))
    store = ActivationStore.open(run.file("embeddings", site), check=True)
    rows = store.rows()
    is_test, is_train = (data.splits == split for split in ("test", "train"))
    test_rows = rows.of_images(is_test)
    if not len(test_rows):
        raise EvidenceError(
            f"the run {run.path} has no test images to measure on",
            "give more images, or a split column",
            {"test": 0},
        )
    images_of_rows = rows.image_rows[test_rows // rows.tokens]
    codes = Codes(run.file("codes", site)).csr()
    # The codes stand in the order of the table, rows in that of the store.
    stored = np.sort(rows.image_rows)
    test, train = (
        random_subset(np.flatnonzero(mask[stored]), IMAGES, [seed, 9])
        for mask in (is_test, is_train)
    )
    pooled_rows = rows if site == POOLED else _pooled_rows(run)
    pooled = None if pooled_rows is None else _of_images(pooled_rows, stored[test])
    beside = site == POOLED  # probes of embeddings stand beside codes of embeddings
    embeddings = pooled if judge is None else judge.embed(run, stored[test])
    tower, classifier = zero_shot_by if zero_shot_by is not None else (None, None)
    at_end = classifier if site == POOLED else None
    of_train = random_subset(rows.of_images(is_train), TRAIN_ROWS, [seed, 8])
    train_rows = read_rows(rows, of_train)
    data_of_site = MeasurementData(
        RowSubset(rows, test_rows),
        data.groups[images_of_rows],
        train=train_rows if len(of_train) else None,
        images=data.of(stored[test], codes[test], pooled if beside else None),
        fitted=data.of(
            stored[train], codes[train], _of_images(rows, stored[train]) if beside else None
        ),
        embeddings=embeddings,
        same_model=judge is None,
        others=[_load_other(folder, site) for folder in against],
        names=[run.path.name, *(folder.name for folder in against)],
        classifier=at_end,
        labels=[label or None for label in data.labels[images_of_rows]] if at_end else None,
    )
    measured = measure(sae, data_of_site, n_draws=draws, seed=seed)
    if classifier is not None and at_end is None and len(of_train):
        some = random_subset(stored[test], SPLICED, [seed, 10])
        mean = train_rows[np.isfinite(train_rows).all(1)].mean(0, dtype=np.float64)
        measured["zero_shot"] = _spliced(
            run, store, sae, tower, classifier, data, some, mean, draws, seed
        )
    if not against and (report := _over_seeds(run, site)):
        measured["stability"] = report
    return measured


def _spliced(
    run: Run,
    store: ActivationStore,
    sae: Any,
    tower: Any,
    classifier: Any,
    data: _RunImages,
    images: np.ndarray,
    mean: np.ndarray,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What the classifier keeps when the tokens of the site are reconstructions, or why that cannot be
    said: the images have to be where the run has them."""
    from dermaudit.data import BadImage

    from ..embed.embed import images_of_run
    from ..inference.spliced import spliced_embeddings

    paths = images_of_run(run).paths
    kind = store.meta.get("token_kind", "patch")
    try:
        seen = spliced_embeddings(
            tower, store.meta["site"], kind, sae, [paths[i] for i in images], mean
        )
    except BadImage as error:
        return {"reason": f"the run's images are needed again: {error.message}"}
    labels = [label or None for label in data.labels[images]]
    try:
        return recovered_report(
            classifier,
            seen["clean"],
            seen["sae"],
            labels,
            data.groups[images],
            Ablation(seen["ablated"], seen["zero"], "mean token"),
            n_draws=draws,
            seed=seed,
        )
    except EvidenceError as error:
        return {"reason": error.message}


def _fresh_seeds(run: Run, site: str) -> list[str]:
    """Return the stage of the other seeds, if the run has it and it belongs to the run's present SAE."""
    stage = f"seeds:{site}"
    if stage not in run.meta["stages"]:
        return []
    try:
        run.require(stage)
    except StaleArtifactError:
        return []
    return [stage]


def _over_seeds(run: Run, site: str) -> dict[str, Any] | None:
    """How the run's SAE compares with its other seeds, or why not; None where there never were any."""
    stage, path = f"seeds:{site}", run.file("sae", site, "stability.json")
    if stage not in run.meta["stages"]:
        return None
    try:
        run.require(stage)
    except StaleArtifactError:
        return {"reason": "the other seeds are of an earlier fit: give fit --seeds again"}
    return read_json(path, "stability over seeds")


def _pooled_rows(run: Run) -> EmbeddingRows | None:
    """The stored pooled embeddings; None without the site."""
    folder = run.file("embeddings", POOLED)
    if not (folder / "store.json").is_file():
        return None
    return ActivationStore.open(folder, check=True).rows()


def _of_images(rows: EmbeddingRows, images: np.ndarray) -> np.ndarray:
    """The rows (n, d) of the images with these row numbers, nan where none is stored."""
    place = np.full(max(rows.image_rows.max(initial=-1), images.max(initial=-1)) + 1, -1)
    place[rows.image_rows] = np.arange(rows.n)
    found = place[images]
    out = np.full((len(images), rows.d), np.nan, np.float32)
    out[found >= 0] = read_rows(rows, found[found >= 0])
    return out


def _load_other(folder: Path, site: str) -> Any:
    inner = folder / "sae" / site if (folder / "run.json").is_file() else folder
    other = load_sae(inner)
    if other.hook_name and other.hook_name != site:
        raise ForeignArtifactError(
            f"--against {inner} is an SAE of {other.hook_name}, not of {site}",
            f"name one of {site}, or measure --site {other.hook_name}",
        )
    return other


def _digests(against: Sequence[Path], sites: Sequence[str]) -> list[str]:
    """What the SAEs compared with hold, so that figures are made again when one was fitted again."""
    found = []
    for folder in against:
        run = (folder / "run.json").is_file()
        for inner in [folder / "sae" / site for site in sites] if run else [folder]:
            weights = inner / "sae_weights.safetensors"
            if not weights.is_file():
                raise UserInputError(
                    f"there is no sparse autoencoder at --against {inner}",
                    "give the folder with cfg.json and sae_weights.safetensors, or a run that was fitted",
                )
            found.append(sha256_file(weights))
    return found


def _zero_shot_of(run: Run, data: _RunImages) -> tuple[tuple[Any, Any] | None, str | None]:
    """((the run's model, its zero-shot classifier of the labels in use), None), or (None, why not)."""
    from dermaudit.towers import ZeroShot, load_model
    from dermaudit.towers.prompts import ham_classes

    try:
        tower = load_model(run.meta["model"]["name"])
        run.check_model(tower.fingerprint)
    except (UserInputError, ForeignArtifactError) as error:
        return None, error.message
    used = set(data.labels) - {""}
    return (tower, ZeroShot(tower, {k: v for k, v in ham_classes().items() if k in used})), None


class _Judge:
    """An independent model, and its pooled embeddings of a run's images, made once for all sites."""

    def __init__(self, name: str) -> None:
        from dermaudit.towers import load_model

        self.tower = load_model(name)
        self._made: dict[bytes, np.ndarray] = {}

    def embed(self, run: Run, rows: np.ndarray) -> np.ndarray:
        """(n, d) of the images with these row numbers, in the model's own preprocessing.

        Errors: UserInputError naming an image that is not where the run says.
        """
        key = rows.tobytes()
        if key not in self._made:
            self._made[key] = self._embed(run, rows)
        return self._made[key]

    def _embed(self, run: Run, rows: np.ndarray) -> np.ndarray:
        from dermaudit.console import track
        from dermaudit.data import BadImage, read_image

        from ..embed.embed import images_of_run
        from ..embed.shard import activations

        paths = images_of_run(run).paths
        parts = []
        for start in track(range(0, len(rows), 64), "embed by the independent model"):
            try:
                pixels = [read_image(Path(paths[row])) for row in rows[start : start + 64]]
            except BadImage as error:
                raise UserInputError(
                    f"--embeddings-of needs the run's images: {error.message}",
                    "start where the run was made (its images are named from there), or leave the flag out",
                ) from error
            parts.append(activations(self.tower, pixels, [POOLED])[POOLED])
        return np.concatenate(parts)
