"""`models compare`: the probes of several models on the same images, with paired differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.paired import Figures, plain

from .annotation import COUNT, MEAN, annotation_figures
from .inputs.concepts import BenchConcept
from .options import CompareModelsOptions
from .output.render import Sheet, cell, comparison_sheet
from .session import BenchSession

if TYPE_CHECKING:
    from dermaudit.pretrain.training.probe import ScoredFact

#: key of the result: attribute of a ScoredFact
KINDS = {"probes": "probe", "prompts": "prompt", "synonyms": "synonym"}


def compare_models(options: CompareModelsOptions) -> dict[str, Any]:
    """AUROC of every label by probe, by its words alone, and by synonyms, of several models on the test images.

    The probe is fitted on train images. The synonyms are words that no training of the toolkit uses. Every pair of
    models (or each with --reference) is compared on the same images: paired bootstrap over groups, Holm over the
    labels.
    """
    from dermaudit.pretrain.training.probe import embed_splits, score_facts, split_rows

    if len(options.models) < 2:
        raise UserInputError("one model is nothing to compare", "name two models or more")
    session = BenchSession(options, "models")
    manifest = session.manifest()
    embedded, facts = {}, {}
    towers = dict(session.towers())
    for name, tower in towers.items():
        embedded[name] = embed_splits(tower, manifest)
    train, test = split_rows(manifest, *embedded.values())
    for name, tower in towers.items():
        facts[name] = score_facts(tower, manifest, embedded[name], train, test, seed=options.seed)
    first = next(iter(facts.values()))
    if not first:
        raise EvidenceError(
            f"{options.data} has no label with enough test images to compare the models on",
            "a label needs 30 test images, 5 of them with it",
            {"n_test": len(test)},
        )
    groups = np.asarray(manifest.groups, dtype=str)[test].tolist()
    sheets, answer = [], {}
    for key, kind in KINDS.items():
        scores, concepts = scores_of(facts, kind)
        if not concepts:
            continue
        figures = annotation_figures(scores, concepts, groups, session.resampling)
        metrics = [*(concept.name for concept in concepts), MEAN]
        compared = figures.compare(metrics, session.resampling.reference)
        sheets += [
            _sheet(session.dataset, kind, concepts, figures),
            comparison_sheet(figures, compared, dataset=session.dataset, kind=kind),
        ]
        answer[key] = _by_label(figures)
    return {
        "data": str(options.data),
        "names": session.models,
        "where": options.where,
        "n_test": len(test),
        **answer,
        **session.finish(sheets),
    }


def scores_of(
    facts: dict[str, list[ScoredFact]], kind: str
) -> tuple[dict[str, np.ndarray], list[BenchConcept]]:
    """Return {model: scores (n, labels)} of a kind of ScoredFact, and the labels that have such scores."""
    labels = [fact for fact in next(iter(facts.values())) if getattr(fact, kind) is not None]
    names = {fact.name for fact in labels}
    scores = {
        model: np.stack([getattr(f, kind) for f in found if f.name in names], axis=1)
        for model, found in facts.items()
        if names
    }
    return scores, [BenchConcept(fact.name, fact.truth, ()) for fact in labels]


def _sheet(dataset: str, kind: str, concepts: list[BenchConcept], figures: Figures) -> Sheet:
    rows = []
    for k, metric in enumerate(figures.metrics):
        if metric == COUNT:
            continue
        n, present = "", ""
        if metric != MEAN:
            known = concepts[k].truth[np.isfinite(concepts[k].truth)]
            n, present = str(len(known)), str(int(known.sum()))
        values = [
            cell(figures.points[m, k], *figures.interval(m, k), 3)
            for m in range(len(figures.models))
        ]
        rows.append((metric, n, present, *values))
    return Sheet(
        f"{dataset}: AUROC of the {kind} of each label on test images (95 % intervals over groups)",
        ("label", "n", "present", *figures.models),
        rows,
        records=figures.records(table=f"{kind} AUROC", dataset=dataset),
    )


def _by_label(figures: Figures) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return {label: {model: {"auroc", "low", "high"}}}, and the mean over the labels as "mean"."""
    found = {}
    for k, metric in enumerate(figures.metrics):
        if metric == COUNT:
            continue
        of_models = {}
        for m, model in enumerate(figures.models):
            low, high = figures.interval(m, k)
            value = {"auroc": figures.points[m, k], "low": low, "high": high}
            of_models[model] = {name: plain(number) for name, number in value.items()}
        found["mean" if metric == MEAN else metric] = of_models
    return found
