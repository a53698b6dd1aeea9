"""Every figure of a run's SAEs on its test images: what there is data for, one record a site.

`fit` and `sae measure` print it. It reads the stored activations, the codes, the labels, and the
run's model, whose zero-shot classifier is used where the labels are known classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import (
    EvidenceError,
    ForeignArtifactError,
    UserInputError,
    unknown,
)
from dermaudit.files import read_json, sha256_file, write_json
from dermaudit.run.directory import Run
from dermaudit.run.paths import RunFiles

from ..inference.model import ThresholdSAE, load_sae
from ..run_data import POOLED, RunData
from ..store.activation_store import ActivationStore
from ..store.loader import RowSubset, random_subset, read_rows
from .images import EvaluationImages
from .measured import (
    FORMAT_VERSION,
    TRAIN_ROWS,
    MeasurementData,
    measure,
    metrics_table,
    summary,
)
from .options import MEASURE, MeasureOptions
from .recovered import Ablation, recovered_report

SPLICED = 1000  # test images at most that go through the model again, four times
IMAGES = 50_000  # of a split at most, for what needs a code and an embedding of each in memory


def measure_run(run: Run, options: MeasureOptions) -> dict[str, Any]:
    """Measure the SAEs of the sites, print a table of each, and write sae/<site>/measured.json.

    Returns {site: its summary}. Without `options.against`, latents are compared with the other seeds of the run.

    Errors: those of the files it reads; EvidenceError without test images. If the model cannot be
    opened, only the zero-shot figures are left out.
    """
    import torch

    torch.set_num_threads(options.threads)
    sites = _sites(run, options)
    data = RunData(run)
    zero_shot = _zero_shot_of(data) if options.zero_shot and _has_known_labels(data) else None
    judge = IndependentModel(options.embeddings_of) if options.embeddings_of else None
    seed = run.seed(options.seed)
    inputs = {
        "against": _digests(options.against, sites),
        "embeddings_of": judge.tower.fingerprint if judge else None,
        "zero_shot": isinstance(zero_shot, _ZeroShotModel),
        **({} if options.controls else {"controls": False}),
        "draws": options.draws,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "format": FORMAT_VERSION,
    }
    found: dict[str, Any] = {}
    for site in sites:
        path = run.files.measured(site)

        def make(site: str = site, path: Path = path) -> tuple[list[Path], dict[str, Any]]:
            say(f"  measuring {site} on test images")
            measured = SiteMeasurement(data, site, options, seed).measure(zero_shot, judge)
            write_json(path, measured)
            return [path], summary(measured)

        run.perform(
            MEASURE,
            {"site": site, **inputs},
            make,
            key=site,
            reads=["embed", f"fit:{site}", *filter(data.is_current, [f"seeds:{site}"])],
            force=options.force,
        )
        measured = read_json(path, "measured figures")
        metrics_table(measured, f"{site}: held-out test images")
        found[site] = summary(measured)
    return found


def _sites(run: Run, options: MeasureOptions) -> list[str]:
    """Return the sites to measure. UserInputError for one that was not fitted."""
    fitted = sorted(record.partition(":")[2] for record in run.finished("fit"))
    for name in options.site:
        if name not in fitted:
            raise unknown("site", name, fitted)
    sites = list(dict.fromkeys(options.site or fitted))
    single = any((folder / "cfg.json").is_file() for folder in options.against)
    if single and len(sites) > 1:
        raise UserInputError(
            f"--against names one SAE, and the run has {len(sites)} sites", f"add --site {sites[0]}"
        )
    return sites


def _has_known_labels(data: RunData) -> bool:
    """Whether the labels are codes whose names the toolkit knows."""
    from dermaudit.towers.prompts import ham_classes

    known = set(data.labels) - {""}
    return len(known) > 1 and known <= set(ham_classes())


@dataclass(frozen=True)
class _ZeroShotModel:
    """The model of the run, and its zero-shot classifier of the labels in use."""

    tower: Any
    classifier: Any


def _zero_shot_of(data: RunData) -> _ZeroShotModel | str:
    """Return the zero-shot classifier of the run's model, or why there is none."""
    from dermaudit.towers import ZeroShot, load_model
    from dermaudit.towers.prompts import ham_classes

    try:
        tower = load_model(data.run.meta["model"]["name"])
        data.run.check_model(tower.fingerprint)
    except (UserInputError, ForeignArtifactError) as error:
        return error.message
    used = set(data.labels) - {""}
    classes = {code: names for code, names in ham_classes().items() if code in used}
    return _ZeroShotModel(tower, ZeroShot(tower, classes))


class SiteMeasurement:
    """The data of one site from which its SAE is measured: held-out rows, images, and train rows."""

    def __init__(self, data: RunData, site: str, options: MeasureOptions, seed: int) -> None:
        self.data, self.site, self.options, self.seed = data, site, options, seed
        self.sae = data.sae(site)
        self.store = ActivationStore.open(data.run.files.embeddings(site), check=True)
        self.rows = rows = self.store.rows()
        is_test, is_train = data.rows("test"), data.rows("train")
        self.test_rows = rows.of_images(is_test)
        if not len(self.test_rows):
            raise EvidenceError(
                f"the run {data.run.path} has no test images to measure on",
                "give more images, or a split column",
                {"test": 0},
            )
        # Codes are in the order of the table of images, rows in that of the store.
        self.stored = np.sort(rows.image_rows)
        self.test, self.train = (
            random_subset(np.flatnonzero(mask[self.stored]), IMAGES, [seed, 9])
            for mask in (is_test, is_train)
        )
        self.train_rows = read_rows(
            rows, random_subset(rows.of_images(is_train), TRAIN_ROWS, [seed, 8])
        )

    def measure(
        self, zero_shot: _ZeroShotModel | str | None, judge: IndependentModel | None
    ) -> dict[str, Any]:
        """Return every figure of the SAE (see `measured.measure`)."""
        data, options, pooled_site = self.data, self.options, self.site == POOLED
        images_of_rows = self.rows.image_rows[self.test_rows // self.rows.tokens]
        model = zero_shot if isinstance(zero_shot, _ZeroShotModel) else None
        classifier = model.classifier if model is not None and pooled_site else None
        test_images = self.stored[self.test]
        pooled = _pooled_of(data, test_images)
        held_out = MeasurementData(
            RowSubset(self.rows, self.test_rows),
            data.groups[images_of_rows],
            train=self.train_rows if len(self.train_rows) else None,
            images=self._images(self.test, pooled if pooled_site else None),
            fitted=self._images(
                self.train, _pooled_of(data, self.stored[self.train]) if pooled_site else None
            ),
            embeddings=pooled if judge is None else judge.embed(data, test_images),
            same_model=judge is None,
            others=[_load_other(folder, self.site) for folder in options.against],
            names=[data.run.path.name, *(folder.name for folder in options.against)],
            classifier=classifier,
            labels=[label or None for label in data.labels[images_of_rows]] if classifier else None,
        )
        measured = measure(self.sae, held_out, n_draws=options.draws, seed=self.seed)
        if model is not None and not pooled_site and len(self.train_rows):
            measured["zero_shot"] = self._with_reconstructions(model)
        if isinstance(zero_shot, str):
            measured["zero_shot"] = {"reason": zero_shot}
        if not options.against and (report := data.stability(self.site)):
            measured["stability"] = report
        if options.controls and pooled_site and isinstance(self.sae, ThresholdSAE):
            measured["controls"] = self._controls(self.sae)
        return measured

    def _controls(self, sae: ThresholdSAE) -> dict[str, Any]:
        """Return the figures of the controls, or the reason for none."""
        from ..controls.measure import ControlRows, controls_report
        from ..training.recipe import SAERecipe

        try:
            fitted = self.data.sae_metrics(self.site)
            settings = {"d_sae": sae.d_sae, "k": float(fitted.get("k") or fitted["l0"])}
            if fitted.get("steps"):  # as long as the fit of the SAE
                n = fitted["n_train"]
                settings["epochs"] = fitted["steps"] / max(1, n // SAERecipe().batch_of(n))
            rows = ControlRows.of(self.data, self.seed)
            return controls_report(sae, SAERecipe(**settings), rows, seed=self.seed)
        except (EvidenceError, UserInputError) as error:
            return {"reason": error.message}

    def _images(self, index: np.ndarray, pooled: np.ndarray | None) -> EvaluationImages:
        """Return stored images by their place `index`, with codes, groups and labels."""
        rows = self.stored[index]
        truth = {name: truth.values[rows] for name, truth in self.data.truth.items()}
        codes = self.data.codes(self.site).csr()[index]
        return EvaluationImages(codes, self.data.groups[rows], truth, pooled)

    def _with_reconstructions(self, model: _ZeroShotModel) -> dict[str, Any]:
        """Return the zero-shot figures with reconstructed tokens of the site, or the reason for none.

        The images are read again.
        """
        from dermaudit.data import BadImage

        from ..inference.spliced import spliced_embeddings

        data, images = self.data, random_subset(self.stored[self.test], SPLICED, [self.seed, 10])
        mean = self.train_rows[np.isfinite(self.train_rows).all(1)].mean(0, dtype=np.float64)
        root = data.run.data_root()
        paths = [str(root / data.images["image"][int(row)].as_py()) for row in images]
        kind = self.store.meta.get("token_kind", "patch")
        try:
            seen = spliced_embeddings(
                model.tower, self.store.meta["site"], kind, self.sae, paths, mean
            )
        except BadImage as error:
            return {"reason": f"the run's images are needed again: {error.message}"}
        try:
            return recovered_report(
                model.classifier,
                seen["clean"],
                seen["sae"],
                [label or None for label in data.labels[images]],
                data.groups[images],
                Ablation(seen["ablated"], seen["zero"], "mean token"),
                n_draws=self.options.draws,
                seed=self.seed,
            )
        except EvidenceError as error:
            return {"reason": error.message}


def _pooled_of(data: RunData, images: np.ndarray) -> np.ndarray | None:
    """Return the pooled embeddings (n, d) of images by row number, nan where none is stored.

    None in a run without pooled embeddings.
    """
    if not data.has_pooled:
        return None
    rows = data.store(POOLED).rows()
    place = np.full(max(rows.image_rows.max(initial=-1), images.max(initial=-1)) + 1, -1)
    place[rows.image_rows] = np.arange(rows.n)
    found = place[images]
    out = np.full((len(images), rows.d), np.nan, np.float32)
    out[found >= 0] = read_rows(rows, found[found >= 0])
    return out


def _load_other(folder: Path, site: str) -> Any:
    inner = RunFiles(folder).sae(site) if (folder / "run.json").is_file() else folder
    other = load_sae(inner)
    if other.hook_name and other.hook_name != site:
        raise ForeignArtifactError(
            f"--against {inner} is an SAE of {other.hook_name}, not of {site}",
            f"name one of {site}, or measure --site {other.hook_name}",
        )
    return other


def _digests(against: Sequence[Path], sites: Sequence[str]) -> list[str]:
    """Return the hashes of the SAEs compared with; figures are made again if one changes."""
    found = []
    for folder in against:
        run = (folder / "run.json").is_file()
        for inner in [RunFiles(folder).sae(site) for site in sites] if run else [folder]:
            weights = inner / "sae_weights.safetensors"
            if not weights.is_file():
                raise UserInputError(
                    f"there is no sparse autoencoder at --against {inner}",
                    "give the folder with cfg.json and sae_weights.safetensors, or a run that was fitted",
                )
            found.append(sha256_file(weights))
    return found


class IndependentModel:
    """A model other than the run's, and its pooled embeddings of the run's images, made once for all sites."""

    def __init__(self, name: str) -> None:
        from dermaudit.towers import load_model

        self.tower = load_model(name)
        self._made: dict[bytes, np.ndarray] = {}

    def embed(self, data: RunData, rows: np.ndarray) -> np.ndarray:
        """Return (n, d) of the images with these row numbers, in the model's own preprocessing.

        Errors: UserInputError naming an image that is not where the run says.
        """
        key = rows.tobytes()
        if key not in self._made:
            self._made[key] = self._embed(data, rows)
        return self._made[key]

    def _embed(self, data: RunData, rows: np.ndarray) -> np.ndarray:
        from dermaudit.console import track
        from dermaudit.data import BadImage, read_image

        from ..embed.shard import activations

        parts = []
        for start in track(range(0, len(rows), 64), "embed by the independent model"):
            try:
                pixels = [read_image(data.image_path(row)) for row in rows[start : start + 64]]
            except BadImage as error:
                raise UserInputError(
                    f"--embeddings-of needs the run's images: {error.message}",
                    "restore the image, or leave the flag out",
                ) from error
            parts.append(activations(self.tower, pixels, [POOLED])[POOLED])
        return np.concatenate(parts)
