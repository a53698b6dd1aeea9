"""The stage `teach:<concept>`: a concept latent of the pooled site, with the images that it was taught by."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from dermaudit.console import say, table
from dermaudit.files import sha256_json, write_json
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import stage
from dermaudit.sae.run_data import POOLED, RunData

from ..inputs import tower_of
from ..results import interval_text, rounded
from .images import TaughtImages, images_of_folders, images_of_run
from .options import TEACH, TeachOptions

PROVENANCE = "provenance.json"


@stage("concepts teach", TeachOptions, TEACH, key_flag="", in_audit=False)
def teach(run: Run, options: TeachOptions) -> dict[str, Any]:
    """Fit a concept latent with labels: a column of the run, or two folders of images.

    It reports the cross-fitted AUROC, and how much more labels would bring. Too few images, or images that
    are not told apart: exit code 3 with the numbers.
    """
    seed = run.seed(options.seed)
    data = RunData(run)
    if options.with_ is None:
        images = images_of_run(data, options)
    else:
        images = images_of_folders(tower_of(run, options.threads), options)
    inputs = {
        "seed": seed,
        "target": options.target,
        "images": sha256_json([images.hashes, images.present.tolist()]),
    }
    figures = run.perform(
        TEACH,
        inputs,
        lambda: _fit(run, options, images, seed),
        key=options.concept,
        force=options.force,
    )
    _print(options.concept, figures)
    return {"run": str(run.path), "concept": options.concept, **figures}


def _fit(run: Run, options: TeachOptions, images: TaughtImages, seed: int) -> Made[dict[str, Any]]:
    from dermaudit.sae.concept_latents.latent import ConceptLatent
    from dermaudit.sae.concept_latents.learning_curve import learning_curve

    present = images.present == 1
    latent = ConceptLatent.fit(
        images.x[present],
        images.x[~present],
        groups_with=images.groups[present],
        groups_without=images.groups[~present],
        seed=seed,
    )
    assert latent.figures is not None  # of a fit
    curve = learning_curve(images.x, images.present, images.groups, seed=seed)
    folder = run.files.concept_latent(options.concept)
    model = run.meta["model"]
    metadata = {"hook_name": POOLED, "model_name": model["name"], "concept": options.concept}
    files = latent.as_sae(metadata).save(folder)
    figures = rounded(
        {
            "latent": 0,
            **asdict(latent.figures),
            "learning_curve": [asdict(point) for point in curve],
            "flags": options.flags(),
        }
    )
    write_json(
        folder / PROVENANCE,
        {
            "concept": options.concept,
            "site": POOLED,
            "model_fingerprint": model["fingerprint"],
            "source": images.source,
            "left_out": options.target,
            "seed": seed,
            "figures": figures,
            "images": [
                {"image": name, "sha256": digest, "present": int(value)}
                for name, digest, value in zip(
                    images.names, images.hashes, images.present, strict=True
                )
            ],
        },
    )
    return [*files, folder / PROVENANCE], figures


def _print(concept: str, figures: dict[str, Any]) -> None:
    say(
        f"{concept}: {figures['n_with']} images with it, {figures['n_without']} without; cross-fitted AUROC "
        f"{figures['auroc']:.3f} {interval_text(*figures['auroc_ci'], digits=3)}; fires in "
        f"{figures['fires_with']:.0%} of the images with it and {figures['fires_without']:.0%} without"
    )
    table(
        "How much more labels bring (AUROC on images that were not used)",
        ("with + without", "AUROC", "lowest draw"),
        [
            (f"{p['n']} + {p['n']}", f"{p['auroc']:.3f}", f"{p['lowest']:.3f}")
            for p in figures["learning_curve"]
        ],
    )
