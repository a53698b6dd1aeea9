"""The reference dictionary of a bundled model, for data sets that are too small to fit an SAE of their own.

It is the consensus dictionary of the model on its reference images, with the names and figures of there
(`checkpoints/<model>/reference/sae/<site>`). What needs no label is measured on the images of the run: FVU, L0, and
how far the images lie from those of the reference.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.console import say
from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.files import read_json, write_json
from dermaudit.run.directory import Run
from dermaudit.towers.loading.reference import ReferenceFiles

from ..evaluation.figure import json_number
from ..evaluation.reconstruction import Reconstruction, accumulate
from ..inference.codes import write_codes
from ..inference.model import ThresholdSAE
from ..store.loader import RowSubset
from .site_rows import MIN_IMAGES, OrderedActivations, SiteRows, require_enough_images

if TYPE_CHECKING:
    from .loop import FittedSAE

FACTS = "facts.json"
#: With as many train images the SAE of the data set itself is used.
ENOUGH_IMAGES = 16 * MIN_IMAGES
ASKED = "it was asked for"
#: Images with more squared error than this, times that of the images of the reference, are unlike those.
_FAR = 1.5


@dataclass(frozen=True)
class ReferenceDictionary:
    """The reference dictionary of the model of a run at a site."""

    files: ReferenceFiles
    site: str

    @classmethod
    def of_run(cls, run: Run, site: str) -> ReferenceDictionary | None:
        """Return the dictionary for a site of a run, or None where the model ships none."""
        model = run.meta["model"]
        files = ReferenceFiles.of_model(model["name"])
        if files is None or files.fingerprint != model["fingerprint"]:
            return None
        found = cls(files, site)
        return found if found._name(FACTS) in files.files else None

    @cached_property
    def sae(self) -> ThresholdSAE:
        """The SAE."""
        config = self.files.file(self._name("cfg.json"))
        self.files.file(self._name("sae_weights.safetensors"))
        return ThresholdSAE.load(config.parent)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What is known of it: `metrics` as `fit` wrote them, and `distance_from`, of `distance_facts`."""
        return read_json(self.files.file(self._name(FACTS)))

    def copy_to(self, run: Run) -> list[Path]:
        """Copy the SAE and the agreement of its fits into a run; return the files."""
        folder = run.files.sae(self.site)
        folder.mkdir(parents=True, exist_ok=True)
        names = "cfg.json", "sae_weights.safetensors", run.files.consensus(self.site).name
        return [
            Path(shutil.copyfile(self.files.file(self._name(name)), folder / name))
            for name in names
        ]

    def _name(self, file: str) -> str:
        return f"sae/{self.site}/{file}"


@dataclass(frozen=True)
class Candidate:
    """A reference dictionary that may take the place of an SAE of the images. `why`: it was asked for, or there are
    too few images for an SAE; None: that depends on how well it reconstructs the images.
    """

    dictionary: ReferenceDictionary
    why: str | None

    def inputs(self) -> dict[str, Any]:
        """Return what a record depends on if there is a candidate."""
        asked = {"asked": True} if self.why == ASKED else {}
        return {"reference": self.dictionary.files.sha256, **asked}


def candidate(run: Run, site: str, splits: np.ndarray, wanted: str) -> Candidate | None:
    """Return the reference dictionary that may be used at a site, None if there is none or it is not considered.

    `splits` (n,) are those of the images, `wanted` is own, reference or auto. EvidenceError for too few images
    where there is no reference; UserInputError where it is asked for and there is none.
    """
    found = None if wanted == "own" else ReferenceDictionary.of_run(run, site)
    if wanted == "reference":
        if found is None:
            raise UserInputError(
                f"{run.meta['model']['name']} has no reference dictionary at {site}",
                "give --sae own; the bundled models have one for the sites that embed stores by default",
            )
        return Candidate(found, ASKED)
    counts = {name: int((splits == name).sum()) for name in ("train", "val", "test")}
    try:
        require_enough_images(counts, len(splits), f"an SAE at {site}")
    except EvidenceError as error:
        if found is None:
            raise
        return Candidate(found, error.message)
    return None if found is None or counts["train"] >= ENOUGH_IMAGES else Candidate(found, None)


def without_a_fit(reference: Candidate, data: SiteRows) -> str | None:
    """Return why the reference is used without fitting an SAE: it was asked for, there are too few images for one, or
    it reconstructs the train and val images nearly as well as its own. None if an SAE must be fitted.
    """
    if reference.why is not None:
        return reference.why
    seen = RowSubset(data.rows, np.concatenate([data.index["train"], data.index["val"]]))
    error = accumulate(reference.dictionary.sae, seen).squared_error
    ratio = error / reference.dictionary.facts["distance_from"]["squared_error"]
    if ratio > _FAR:
        return None
    return (
        f"{_n_train_images(data)} train images are few for an SAE of their own, and the reference reconstructs them "
        f"with {ratio:.2f} times the squared error of its own images (at most {_FAR} is accepted)"
    )


def if_better(reference: Candidate, own: FittedSAE, data: SiteRows) -> str | None:
    """Return why the reference is used instead of the SAE that was fitted on few images: it reconstructs the val
    images better. None if it does not.
    """
    val = data.split("val")
    theirs, mine = (
        float(accumulate(sae, val).figures()["fvu"][0])
        for sae in (reference.dictionary.sae, own.sae)
    )
    if not theirs <= mine:
        return None
    return (
        f"an SAE of {_n_train_images(data)} train images reconstructs the val images with an FVU of {mine:.2f}, the "
        f"reference with {theirs:.2f}"
    )


def _n_train_images(data: SiteRows) -> int:
    return data.n_train // data.rows.tokens


def use_reference(
    run: Run, data: SiteRows, reference: ReferenceDictionary, why: str, *, seed: int
) -> tuple[list[Path], dict[str, Any]]:
    """Make the reference dictionary the SAE of a site, with its codes of all images; return files and summary."""
    site, sae, rows = reference.site, reference.sae, data.rows
    groups = np.repeat(rows.image_groups, rows.tokens)
    sums = accumulate(sae, rows, groups)
    figures = sums.report(seed=seed)
    known = reference.facts["metrics"]
    metrics: dict[str, Any] = {
        **{key: known[key] for key in ("site", "architecture", "d_in", "d_sae", "k", "seed")},
        "n_rows": figures["fvu"]["n"],
        "n_train": known["n_train"],
        **{name: figures[name]["value"] for name in ("l0", "fvu", "dead", "dense")},
        "consensus": known["consensus"],
        "held_out": figures,
        "reference": {
            "model": reference.files.model,
            "sha256": reference.files.sha256,
            "made_from": reference.files.made_from,
            "why": why,
            "distance": distance(sums, reference.facts["distance_from"]),
        },
    }
    paths = reference.copy_to(run)
    write_json(run.files.sae_metrics(site), metrics)
    activations = OrderedActivations(rows, sae.b_dec.numpy())
    codes = write_codes(run.files.codes(site), sae, activations, site)
    return [*paths, run.files.sae_metrics(site), *codes], metrics


def distance_facts(sums: Reconstruction) -> dict[str, Any]:
    """Return what the distance of other images is measured from: the figures of the reference on its test rows."""
    return {
        "n": sums.n,
        "fvu": float(sums.figures()["fvu"][0]),
        "squared_error": sums.squared_error,
        "norm": sums.norm,
        "silent": np.flatnonzero(sums.fired == 0).tolist(),
    }


def distance(sums: Reconstruction, reference: dict[str, Any]) -> dict[str, Any]:
    """Return how far rows lie from those of the reference: `squared_error` and `norm` of a row as ratios; `fvu` of both
    (it also depends on how alike the images of a set are); and the share of the latents of the reference that are
    never active.
    """
    live = np.setdiff1d(np.arange(len(sums.fired)), reference["silent"])
    return {
        "fvu": json_number(round(float(sums.figures()["fvu"][0]), 6)),  # of one image: none
        "fvu_reference": round(reference["fvu"], 6),
        "squared_error_ratio": round(sums.squared_error / reference["squared_error"], 6),
        "norm_ratio": round(sums.norm / reference["norm"], 6),
        "silent": round(float((sums.fired[live] == 0).mean()), 6),
    }


def print_reference(site: str, metrics: dict[str, Any]) -> None:
    """Print why the reference is the SAE of a site, and how far the images lie from those of the reference."""
    found = metrics["reference"]
    far, made = found["distance"], found["made_from"]
    say(
        f"  {site}: the reference dictionary of {found['model']} ({metrics['consensus']['latents']} named directions "
        f"of {made['images']} images) is used: {found['why']}"
    )
    fvu = "–" if far["fvu"] is None else f"{far['fvu']:.2f}"
    say(
        f"    distance from the images of the reference: squared error {far['squared_error_ratio']:.2f} times, length "
        f"{far['norm_ratio']:.2f} times, FVU {fvu} ({far['fvu_reference']:.2f}), {far['silent']:.0%} of its "
        "latents never active"
    )
    if far["squared_error_ratio"] > _FAR:
        say(
            "    warning: these images are unlike those of the reference; its names and figures may not hold for them"
        )
