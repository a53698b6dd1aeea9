"""Concept annotation by text alone: how well a concept's words rank the images that show it.

The score is MONET's (Kim et al., Nat Med 2024), with MAKE's templates (arXiv 2505.09372): for each
template the softmax, at temperature 1 / exp(4.5944), of the mean cosine with the concept's terms
against the cosine with the template without them; the mean over templates. Concepts are matched to
columns by name, rows without truth are left out, and random words are reported as a control.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermaudit.errors import EvidenceError, unknown
from dermaudit.stats.intervals import auroc_draws, auroc_many
from dermaudit.stats.paired import Figures, bootstrap_figures

from .inputs.concepts import (
    TEMPLATES,
    BenchConcept,
    concepts_of,
    diagnosis_terms,
    enough,
    read_terms,
)
from .options import AnnotateOptions, Resampling
from .output.render import TOO_SMALL, Sheet, cell, comparison_sheet
from .session import BenchSession, split_rows

TEMPERATURE = math.exp(-4.5944)
#: words that no image of skin is about. They vary in letters and sounds, for tokenisers by word or piece.
RANDOM_WORDS = (
    "table", "river", "violin", "parliament", "bicycle", "harvest", "thunder", "library", "engine",
    "orchard", "compass", "lantern", "Tuesday", "marathon", "glacier", "recipe", "tunnel", "poetry",
    "satellite", "market", "curtain", "journey", "algebra", "kitchen",
)  # fmt: skip
GOOD = 0.7  # the published table counts concepts with an AUROC above it
MEAN = "mean AUROC"
COUNT = f"concepts above {GOOD}"


@dataclass(frozen=True)
class ConceptScores:
    """Scores and truth of all concepts on n images.

    `scores` {model: (n, concepts)} are presence scores, `controls` {model: (n, random words)} those of the
    control words; `groups` (n,).
    """

    scores: dict[str, np.ndarray]
    controls: dict[str, np.ndarray]
    concepts: Sequence[BenchConcept]
    groups: Sequence[str]


def run_annotation(options: AnnotateOptions) -> dict[str, Any]:
    """Score every concept by its words with every model; return what `--json` prints."""
    from dermaudit.pretrain.data.facts import facts_of

    terms, templates = options.terms, options.templates
    if templates not in TEMPLATES:
        raise unknown("set of templates", templates, TEMPLATES)
    words = None if terms is None else read_terms(terms)
    session = BenchSession(options, "annotate")
    manifest = session.manifest()
    if words is None:
        words = {fact.name: fact.wordings for fact in facts_of(manifest)}
    rows = split_rows(manifest, options.split)
    concepts, unmatched = concepts_of(manifest, words, rows)
    if not any(enough(c.truth) for c in concepts):
        raise EvidenceError(
            f"{options.data}: no concept has 30 images of known truth, 5 with it and 5 without, in "
            f"{options.split}",
            "annotate more images, or score another --split",
        )
    if terms is None:
        unmatched = []
    diagnoses = diagnosis_terms(concepts, manifest.labels)
    scores, controls = {}, {}
    for name, tower, embedded in session.embed(manifest, rows):
        pairs = TEMPLATES[templates]
        scores[name] = presence(tower, embedded.x, [c.terms for c in concepts], pairs)
        controls[name] = presence(tower, embedded.x, [(w,) for w in RANDOM_WORDS], pairs)
    scored = concepts_of(manifest, words, session.scored)[0]
    groups = [manifest.groups[i] for i in session.scored]
    sheets = annotation_sheets(
        session.dataset,
        ConceptScores(scores, controls, scored, groups),
        session.resampling,
        unmatched=unmatched,
        diagnoses=diagnoses,
    )
    return {
        **session.description(options.split),
        "templates": templates,
        "terms_without_column": unmatched,
        "terms_of_diagnoses": diagnoses,
        **session.finish(sheets),
    }


def presence(
    tower: Any, x: np.ndarray, terms: Sequence[Sequence[str]], templates: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Return presence scores (n, concepts) of unit embeddings x (n, d), each between 0 and 1."""
    import torch

    flat = list(dict.fromkeys(term for words in terms for term in words))
    place = {term: i for i, term in enumerate(flat)}
    # mean over terms of x · u = x · (mean over terms of u)
    mix = np.zeros((len(terms), len(flat)))
    for c, words in enumerate(terms):
        for term in words:
            mix[c, place[term]] += 1 / len(words)
    score = np.zeros((len(x), len(terms)))
    x = x.astype(np.float64)
    for with_term, without in templates:
        # Encoded separately, so that neither depends on the number of concepts.
        with torch.no_grad():
            target = tower.encode_text([with_term.format(t) for t in flat]).cpu().numpy()
            reference = tower.encode_text([without]).cpu().numpy()[0]
        margin = x @ (mix @ target - reference).T
        score += 0.5 * (1 + np.tanh(margin / (2 * TEMPERATURE)))  # the softmax of two
    return score / len(templates)


def annotation_figures(
    scores: dict[str, np.ndarray],
    concepts: Sequence[BenchConcept],
    groups: Sequence[str],
    resampling: Resampling,
) -> Figures:
    """Return the AUROC of each concept, their mean, and how many are above .7; scores (n, concepts)."""
    known = [np.isfinite(c.truth) for c in concepts]

    def statistic(score: np.ndarray, weights: np.ndarray) -> np.ndarray:
        columns = [
            auroc_draws(c.truth[seen] > 0.5, score[seen, k], weights[:, seen])
            for k, (c, seen) in enumerate(zip(concepts, known, strict=True))
        ]
        table = np.stack(columns, axis=1)
        # A draw in which one concept is undefined has no mean: it would be of other concepts.
        counted = np.where(np.isfinite(table).all(1), (table > GOOD).sum(1), np.nan)
        return np.column_stack([table, table.mean(1), counted])

    statistics = {name: lambda w, s=s: statistic(s, w) for name, s in scores.items()}
    names = [*(c.name for c in concepts), MEAN, COUNT]
    return bootstrap_figures(statistics, names, len(groups), resampling.bootstrap(groups))


def random_aurocs(scores: np.ndarray, concepts: Sequence[BenchConcept]) -> np.ndarray:
    """Return the AUROC of every random word for every concept: (concepts, words); scores (n, words)."""
    out = []
    for concept in concepts:
        seen = np.isfinite(concept.truth)
        out.append(auroc_many(concept.truth[seen] > 0.5, scores[seen]))
    return np.stack(out)


def annotation_sheets(
    dataset: str,
    scored: ConceptScores,
    resampling: Resampling,
    *,
    unmatched: Sequence[str] = (),
    diagnoses: Mapping[str, Sequence[str]] | None = None,
) -> list[Sheet]:
    """Return the sheet of concepts, their summary, and the paired differences between models.

    Notes list terms that have no column (`unmatched`) and `diagnoses` {concept: its terms that name
    a diagnosis}.
    """
    keep = [k for k, c in enumerate(scored.concepts) if enough(c.truth)]
    kept = [scored.concepts[k] for k in keep]
    scores = {name: s[:, keep] for name, s in scored.scores.items()}
    figures = annotation_figures(scores, kept, scored.groups, resampling)
    random = {name: random_aurocs(s, kept) for name, s in scored.controls.items()}
    header = ("concept", "n", "present", "model", "AUROC", f"{len(RANDOM_WORDS)} random words")
    rows, records = _concept_rows(dataset, scored.concepts, kept, figures, random)
    notes = _notes(scored.concepts, diagnoses or {}, unmatched)
    sheets = [Sheet(f"{dataset}: concept annotation by text", header, rows, notes, records)]
    sheets.append(_summary(dataset, figures, random, len(kept)))
    if len(scores) > 1:
        comparisons = figures.compare([MEAN], resampling.reference)
        sheets.append(comparison_sheet(figures, comparisons, dataset=dataset))
    return sheets


def _concept_rows(
    dataset: str,
    concepts: Sequence[BenchConcept],
    kept: Sequence[BenchConcept],
    figures: Figures,
    random: dict[str, np.ndarray],
) -> tuple[list[tuple[str, ...]], list[dict[str, Any]]]:
    """Return (rows, records) with one entry per concept and model."""
    place = {c.name: i for i, c in enumerate(kept)}
    rows, records = [], []
    for concept in concepts:
        known = concept.truth[np.isfinite(concept.truth)]
        n_pos = int((known > 0.5).sum())
        head = (concept.name + (" *" if concept.own_name else ""), str(len(known)), str(n_pos))
        if concept.name not in place:
            rows.append((*head, "", TOO_SMALL, ""))
            continue
        k = place[concept.name]
        for m, model in enumerate(figures.models):
            low, high = np.quantile(random[model][k], [0.025, 0.975])
            middle = float(np.median(random[model][k]))
            interval = figures.interval(m, k)
            value = cell(figures.points[m, k], *interval, 3)
            rows.append((*head, model, value, f"{middle:.3f} ({low:.3f}–{high:.3f})"))
            records.append(
                {
                    "table": "annotation",
                    "dataset": dataset,
                    "model": model,
                    "metric": concept.name,
                    "value": float(figures.points[m, k]),
                    "low": interval[0],
                    "high": interval[1],
                    "n": len(known),
                    "n_pos": n_pos,
                    "random_median": middle,
                    "random_low": float(low),
                    "random_high": float(high),
                    "terms": "; ".join(concept.terms),
                    "own_name": concept.own_name,
                }
            )
    return rows, records


def _notes(
    concepts: Sequence[BenchConcept],
    diagnoses: Mapping[str, Sequence[str]],
    unmatched: Sequence[str],
) -> list[str]:
    notes = []
    if any(c.own_name for c in concepts):
        notes.append("* no terms of this name: asked for by the name of its column")
    if diagnoses:
        listed = "; ".join(f"{name}: {', '.join(terms)}" for name, terms in diagnoses.items())
        notes.append(
            f"terms that name a diagnosis, so that the figure may be of the disease, not of the sign "
            f"({len(diagnoses)} concepts): {listed}"
        )
    if unmatched:
        few = ", ".join(unmatched[:12]) + (", …" if len(unmatched) > 12 else "")
        notes.append(f"terms without a column, left out ({len(unmatched)}): {few}")
    return notes


def _summary(dataset: str, figures: Figures, random: dict[str, np.ndarray], n: int) -> Sheet:
    mean, count = figures.metrics.index(MEAN), figures.metrics.index(COUNT)
    rows, records = [], []
    for m, model in enumerate(figures.models):
        control = random[model].mean(0)
        low, high = np.quantile(control, [0.025, 0.975])
        rows.append(
            (
                model,
                cell(figures.points[m, mean], *figures.interval(m, mean), 3),
                f"{figures.points[m, count]:.0f} of {n}",
                f"{(figures.points[m, :n] > np.quantile(random[model], 0.975, axis=1)).sum()} of {n}",
                f"{control.mean():.3f} ({low:.3f}–{high:.3f})",
            )
        )
        for k in (mean, count):
            interval = figures.interval(m, k)
            records.append(
                {
                    "table": "annotation",
                    "dataset": dataset,
                    "model": model,
                    "metric": figures.metrics[k],
                    "value": float(figures.points[m, k]),
                    "low": interval[0],
                    "high": interval[1],
                    "n": n,
                    "random_median": float(np.median(control)) if k == mean else None,
                }
            )
    header = (
        "model",
        MEAN,
        f"above {GOOD}",
        "above 97.5 % of random words",
        "random words, mean AUROC",
    )
    return Sheet(f"{dataset}: {n} concepts", header, rows, records=records)
