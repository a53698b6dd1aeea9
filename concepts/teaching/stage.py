"""The stage `teach:<concept>`: a concept latent of the pooled site, with the images that it was taught by."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dermaudit.console import say, table
from dermaudit.files import sha256_json, write_json
from dermaudit.run.directory import Run
from dermaudit.run.records import Made
from dermaudit.run.stages import stage
from dermaudit.sae.run_data import RunData

from ..inputs import tower_of
from ..results import interval_text, rounded
from .by_ranking import fit_ranked, propose, ranking_of
from .images import TaughtImages, images_of_folders, images_of_run
from .options import TEACH, TeachOptions
from .provenance import PROVENANCE, entries, metadata_of, provenance_of
from .sheet import images_of_sheet
from .taught import earlier_latents

if TYPE_CHECKING:
    from dermaudit.sae.concept_latents.latent import ConceptLatent


@stage("concepts teach", TeachOptions, TEACH, key_flag="", in_audit=False)
def teach(run: Run, options: TeachOptions) -> dict[str, Any]:
    """Fit a concept latent with labels: a column of the run, two folders of images, or a sheet. Without labels,
    rank the images by a text or by drawn artifacts.

    With labels it reports the cross-fitted AUROC, and how much more labels would bring. --from-text writes a
    sheet of candidates for a person to confirm; --from-text --direct and --drawn fit by the ranking alone. Too
    few images, or images that are not told apart: exit code 3 with the numbers.
    """
    seed = run.seed(options.seed)
    data = RunData(run)
    if options.ranked_by is not None:
        return _teach_by_ranking(run, data, options, seed)
    images = _labelled_images(run, data, options)
    earlier = earlier_latents(run, options.after)
    inputs = {
        "seed": seed,
        "target": options.target,
        "images": sha256_json([images.hashes, images.present.tolist()]),
        "after": list(options.after),
    }
    figures = run.perform(
        TEACH,
        inputs,
        lambda: _fit(run, options, images, earlier, seed),
        key=options.concept,
        reads=[*run.reads_of(TEACH), *(f"teach:{name}" for name in options.after)],
        force=options.force,
    )
    _print(options.concept, figures)
    return {"run": str(run.path), "concept": options.concept, **figures}


def _labelled_images(run: Run, data: RunData, options: TeachOptions) -> TaughtImages:
    if options.from_sheet is not None:
        return images_of_sheet(data, options.from_sheet, options.target)
    if options.with_ is not None:
        return images_of_folders(tower_of(run, options.threads), options)
    return images_of_run(data, options)


def _teach_by_ranking(run: Run, data: RunData, options: TeachOptions, seed: int) -> dict[str, Any]:
    """Write the sheet of candidates, or fit by the ranking alone."""
    answer = {"run": str(run.path), "concept": options.concept}
    ranking = ranking_of(run, data, options, seed)
    if options.writes_sheet:
        return answer | propose(run, data, options, ranking)
    figures = run.perform(
        TEACH,
        {"seed": seed, "target": options.target, "ranking": ranking.sha256()},
        lambda: fit_ranked(run, data, options, ranking, seed),
        key=options.concept,
        force=options.force,
    )
    say(
        f"{options.concept}: fitted without labels ({figures['source']}) on {figures['n']} images; it fires in "
        f"{figures['fires_with']:.0%} of the {figures['n_with']} images with the highest score and in "
        f"{figures['fires_without']:.0%} of the {figures['n_without']} with the lowest. No person confirmed "
        "them, and these shares say nothing of real labels."
    )
    return answer | figures


def _fit(
    run: Run,
    options: TeachOptions,
    images: TaughtImages,
    earlier: list[ConceptLatent],
    seed: int,
) -> Made[dict[str, Any]]:
    from dermaudit.sae.concept_latents.latent import ConceptLatent
    from dermaudit.sae.concept_latents.learning_curve import learning_curve

    present = images.present == 1
    latent = ConceptLatent.fit(
        images.x[present],
        images.x[~present],
        groups_with=images.groups[present],
        groups_without=images.groups[~present],
        after=earlier,
        seed=seed,
    )
    assert latent.figures is not None  # of a fit
    curve = learning_curve(images.x, images.present, images.groups, after=earlier, seed=seed)
    folder = run.files.concept_latent(options.concept)
    files = latent.as_sae(metadata_of(run, options.concept)).save(folder)
    figures = rounded(
        {
            "latent": 0,
            **asdict(latent.figures),
            "learning_curve": [asdict(point) for point in curve],
            "flags": options.flags(),
        }
    )
    facts = provenance_of(run, options, images.source, figures, seed)
    facts["images"] = entries(images.names, images.hashes, images.present.tolist())
    write_json(folder / PROVENANCE, facts)
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
