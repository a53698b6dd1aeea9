"""Make the recipe of one concept in a run, if its cross-fitted evidence allows it.

The evidence is that of the method: in each fold its latents are fitted or chosen anew. The latents of the
recipe itself are made from the train and val images of the run in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dermaudit.errors import EvidenceError, unknown
from dermaudit.files import sha256_file
from dermaudit.sae import ThresholdSAE
from dermaudit.sae.run_data import POOLED, RunData

from ..evidence.cross_fit import FOLDS, TrainingRows, TrapData
from ..recipes.distribution import distribution_of
from ..recipes.recipe import (
    Intercept,
    LatentEntry,
    Operation,
    RecipeBody,
    SuppressionRecipe,
    sae_facts,
)
from ..recipes.weights import packed
from ..results import rounded
from ..teaching.by_ranking import saved_ranking
from ..teaching.images import label_values
from ..teaching.sources import SOURCES, drawn_rows
from ..teaching.taught import provenance, taught_latent
from ..vocabulary.vocabulary import Vocabulary
from .cross_fitted import CrossFittedMethod, recipe_rows, trap_data
from .editor import Edit, Editor, editor_of
from .evidence import Evidence, measure_suppression
from .figures import Figures, UnmeasuredFigures
from .head import pick_head
from .intercept import intercept_correction
from .methods.concept_latent import TaughtLatents
from .methods.ranked import RankedLatentMethod
from .methods.registry import ChosenLatents, SuppressionMethod, suppression_method
from .options import RecipeOptions
from .stability import stability_of

if TYPE_CHECKING:
    import pyarrow as pa

    from dermaudit.towers import HookedTower


@dataclass(frozen=True)
class MadeRecipe:
    """The figures; the table of images, unless nothing was measured; and the recipe, unless the evidence
    speaks against it.
    """

    figures: Figures
    images: pa.Table | None
    recipe: SuppressionRecipe | None


@dataclass(frozen=True)
class RecipeRequest:
    """What is asked for, and what it is made from."""

    data: RunData
    concept: str
    vocabulary: Vocabulary
    options: RecipeOptions = RecipeOptions()
    tower: HookedTower | None = None

    @property
    def edit(self) -> Edit:
        """What is done to the latents."""
        return Edit(self.options.mode, self.options.level)

    @property
    def seed(self) -> int:
        """The seed of every random choice."""
        return self.data.run.seed(self.options.seed)


def make_recipe(request: RecipeRequest) -> MadeRecipe:
    """Measure the suppression of a concept, and make its recipe if the evidence allows it, or if
    `accept_limits` gives a reason to write it all the same.

    Raises UserInputError for a concept that neither labels nor vocabulary contain nor was taught (the nearest
    is offered); EvidenceError with the numbers if nothing can be measured, or no latent qualifies.
    """
    options = request.options
    method, trap = _method_and_rows(request)
    evidence = _evidence(request, method, trap)
    if isinstance(evidence, Evidence) and evidence.figures["refused"] and not options.accept_limits:
        return MadeRecipe(rounded(evidence.figures), evidence.images, None)
    rows = recipe_rows(request.data, trap)
    body = _body(request, method, rows)
    latents = [entry["latent"] for entry in body["latents"]]
    images: pa.Table | None = None
    if isinstance(evidence, Evidence):
        accepted = options.accept_limits if evidence.figures["refused"] else None
        figures: Figures = {**evidence.figures, "latents": latents, "accepted_limits": accepted}
        if method.needs_labels or isinstance(method, RankedLatentMethod):
            figures["stability"] = stability_of(method, rows, request.edit)
        images = evidence.images
    else:
        figures = UnmeasuredFigures(
            site=POOLED,
            method=method.name,
            latents=latents,
            reason=evidence,
            refused=[evidence],
            accepted_limits=options.accept_limits or "",
        )
    body["effects"] = {k: v for k, v in figures.items() if k not in ("latents", "random_changes")}
    body["limits"] = _limits(figures, body["latents"][:-1])
    body["accepted_limits"] = figures["accepted_limits"]
    return MadeRecipe(rounded(figures), images, SuppressionRecipe(rounded(body)))


def _method_and_rows(request: RecipeRequest) -> tuple[SuppressionMethod, TrapData]:
    """Return the method that makes the recipe, and the rows that it may use and be scored on."""
    data, concept, options = request.data, request.concept, request.options
    known = {entry.id for entry in request.vocabulary.concepts} | set(data.truth)
    taught = f"teach:{concept}" in data.stages
    if concept not in known and not taught:
        raise unknown("concept", concept, sorted(known))
    method = suppression_method(options.method)
    given = {"target": options.target, "strength": options.strength, "seed": request.seed}
    trap = trap_data(data, concept, **given)
    if method.name == "concept_latent" and taught:
        return _taught(data, concept, method, trap)
    if method.needs_labels and not np.isfinite(trap.a).any():
        return suppression_method("name"), trap  # nothing else can be done without labels
    if method.name == "insertion":
        if request.tower is None:
            raise EvidenceError("no model at hand to embed drawn artifacts with")
        drawn = drawn_rows(data, concept, options.target, request.tower, request.seed)
        return method, replace(trap, drawn=drawn)
    return method, trap


def _taught(
    data: RunData, concept: str, method: SuppressionMethod, trap: TrapData
) -> tuple[SuppressionMethod, TrapData]:
    """Return the method for a taught concept, and its rows. A latent that was taught with a column of this
    run, or without labels by a ranking of its images, is fitted in each fold anew; one that was taught with
    other images or with a sheet is used as it is.
    """
    run = data.run
    last = provenance(run, concept)
    if "ranked_by" in last:
        ranked = RankedLatentMethod(last["ranked_by"])
        return ranked, replace(trap, **saved_ranking(run.files.concept_latent(concept), data.n))
    first = tuple(last["after"])
    known = [*(provenance(run, name) for name in first), last]
    if all(one["source"].startswith("column ") for one in known):
        values = [label_values(data, one["source"].partition(" ")[2]) for one in known]
        return method, replace(
            trap, a=values[-1], first=tuple(zip(first, values[:-1], strict=True))
        )
    figures = [
        {key: one["figures"][key] for key in ("auroc", "n_with", "n_without")} for one in known
    ]
    latents = tuple(taught_latent(run, name) for name in (*first, concept))
    used = [image["sha256"] for one in known for image in one["images"]]
    unseen = ~np.isin(data.images["sha256"].to_pylist(), used)
    return TaughtLatents(latents, figures, first), replace(trap, scored=trap.scored & unseen)


def _evidence(request: RecipeRequest, method: SuppressionMethod, trap: TrapData) -> Evidence | str:
    """Return the evidence; where nothing can be measured and the limits were accepted, the reason."""
    options = request.options
    fitted = CrossFittedMethod(method, request.edit)
    try:
        return measure_suppression(
            request.data, request.concept, options.target, trap, fitted, request.tower
        )
    except EvidenceError as error:
        if not options.accept_limits:
            raise
        return error.message


def _body(request: RecipeRequest, method: SuppressionMethod, rows: TrainingRows) -> RecipeBody:
    """Choose the latents of the recipe and describe them; the effects are entered later."""
    run, options = request.data.run, request.options
    chosen = method.choose(rows, request.edit)
    editor, level_from = editor_of(chosen.sae, request.edit, rows)
    return RecipeBody(
        concept=request.concept,
        target=options.target,
        model={k: run.meta["model"][k] for k in ("name", "fingerprint", "preprocess")},
        site=POOLED,
        source=chosen.source,
        sae=sae_facts(run, POOLED) if chosen.source == "sae" else None,
        vocabulary_sha256=request.vocabulary.sha256(),
        data={"images_sha256": run.meta["stages"]["images"]["outputs"]["images.parquet"]},
        latents=_entries(chosen, request.concept),
        weights=packed(chosen.sae, chosen.latents)
        if isinstance(chosen.sae, ThresholdSAE)
        else None,
        operation=_operation(editor, chosen.latents, level_from),
        distribution=distribution_of(
            rows.data.x[rows.train], rows.data.groups[rows.train], request.seed
        ),
        intercept=_intercept(request, editor, chosen.latents),
        protocol={
            "method": method.name,
            "trap_strength": options.strength,
            "folds": FOLDS,
            "seed": request.seed,
        },
        effects={},
        limits=[],
        accepted_limits=None,
        parent=None,
    )


def _entries(chosen: ChosenLatents, concept: str) -> list[LatentEntry]:
    """Return the latents with their evidence, and with their concepts where these are several."""
    found = [
        LatentEntry(latent=j, why=why)
        for j, why in zip(chosen.latents, chosen.evidence, strict=True)
    ]
    if chosen.first:
        for entry, name in zip(found, (*chosen.first, concept), strict=True):
            entry["concept"] = name
    return found


def _operation(editor: Editor, latents: list[int], level_from: str | None) -> Operation:
    """Return what is done to the latents, with the levels that it was measured with."""
    operation = Operation(mode=editor.mode, renormalise=True, error_term="kept")
    levels = editor.levels(latents)
    if "level" in levels:
        operation["level"] = levels["level"].tolist()
    if "gate_level" in levels:
        operation["gate_level"] = levels["gate_level"]
    if level_from:
        operation["level_from"] = level_from
    return operation


def _intercept(request: RecipeRequest, editor: Editor, latents: list[int]) -> Intercept | None:
    """Return the correction for the head that the run predicts with; None where it lacks the target."""
    data, target = request.data, request.options.target
    if request.tower is None and not data.heads:
        return None  # the zero-shot classifier needs the model
    head, name = pick_head(data.run, request.tower, None)
    if target not in head.classes:
        return None
    x = data.pooled[data.rows("train", "val")]
    return Intercept(
        head=name,
        head_sha256=None if name == "zeroshot" else sha256_file(data.run.files.head(name)),
        value=intercept_correction(
            head.logits(x), head.logits(editor.rows(latents, x)), head.classes.index(target)
        ),
        n=len(x),
    )


def _limits(figures: Figures, before_last: list[LatentEntry]) -> list[str]:
    """Return what the evidence does not show, in sentences. `before_last`: all latents but the last."""
    limits = list(figures["refused"])
    if first := [entry["concept"] for entry in before_last if "concept" in entry]:
        limits.append(
            f"it suppresses {' and '.join(first)} too: the effect is that of all its latents together"
        )
    if figures["method"] in SOURCES:
        limits.append("the latent was fitted without labels, and no person confirmed its images")
    if "insertion_residual_reason" in figures:
        limits.append(f"no drawn artifact: {figures['insertion_residual_reason']}")
    if "worst_group_before" in figures and not np.isfinite(figures["worst_group_before"]):
        limits.append("worst group: n too small in at least one group")
    return limits
