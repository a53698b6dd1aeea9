"""Concept annotation by text alone: how well a concept's words rank the images that show it.

The score is MONET's (Kim et al., Nat Med 2024), with MAKE's templates (arXiv 2505.09372): for each
template the softmax, at temperature 1 / exp(4.5944), of the mean cosine with the concept's terms
against the cosine with the template without them; the mean over templates. Concepts meet their
columns by name, blank truth is left out, and random words stand beside every concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dermaudit.stats.intervals import GroupBootstrap, auroc_draws, auroc_many
from dermaudit.stats.paired import Figures, bootstrap_figures

from .inputs.concepts import BenchConcept, enough
from .output.render import TOO_SMALL, Sheet, cell, comparison_sheet

TEMPERATURE = math.exp(-4.5944)
#: words that no image of skin is about. Several letters and sounds, for tokenisers by word or piece.
RANDOM_WORDS = (
    "table", "river", "violin", "parliament", "bicycle", "harvest", "thunder", "library", "engine",
    "orchard", "compass", "lantern", "Tuesday", "marathon", "glacier", "recipe", "tunnel", "poetry",
    "satellite", "market", "curtain", "journey", "algebra", "kitchen",
)  # fmt: skip
GOOD = 0.7  # the published count: concepts with an AUROC above it
MEAN = "mean AUROC"
COUNT = f"concepts above {GOOD}"


@torch.no_grad()
def presence(
    tower: Any, x: np.ndarray, terms: Sequence[Sequence[str]], templates: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Presence scores (n, concepts) of unit embeddings x (n, d), each between 0 and 1."""
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
        # Text by itself, reference by itself: neither depends on how many concepts are asked for.
        target = tower.encode_text([with_term.format(t) for t in flat]).cpu().numpy()
        reference = tower.encode_text([without]).cpu().numpy()[0]
        margin = x @ (mix @ target - reference).T
        score += 0.5 * (1 + np.tanh(margin / (2 * TEMPERATURE)))  # the softmax of two
    return score / len(templates)


def annotation_figures(
    scores: dict[str, np.ndarray],
    concepts: Sequence[BenchConcept],
    groups: Sequence[str],
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> Figures:
    """AUROC of each concept, their mean, and how many are above .7; scores (n, concepts)."""
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
    return bootstrap_figures(statistics, names, len(groups), GroupBootstrap(groups, n_draws, seed))


def random_aurocs(scores: np.ndarray, concepts: Sequence[BenchConcept]) -> np.ndarray:
    """AUROC of every random word for every concept: (concepts, words); scores (n, words)."""
    out = []
    for concept in concepts:
        seen = np.isfinite(concept.truth)
        out.append(auroc_many(concept.truth[seen] > 0.5, scores[seen]))
    return np.stack(out)


def annotation_sheets(
    dataset: str,
    scores: dict[str, np.ndarray],
    controls: dict[str, np.ndarray],
    concepts: Sequence[BenchConcept],
    groups: Sequence[str],
    unmatched: Sequence[str],
    *,
    diagnoses: Mapping[str, Sequence[str]] | None = None,
    n_draws: int,
    seed: int,
    reference: str | None,
) -> list[Sheet]:
    """`scores` {model: (n, concepts)}, `controls` {model: (n, random words)}, the same rows;
    `diagnoses` {concept: its terms that name one}, which a note tells."""
    keep = [k for k, c in enumerate(concepts) if enough(c.truth)]
    kept = [concepts[k] for k in keep]
    figures = annotation_figures(
        {name: s[:, keep] for name, s in scores.items()}, kept, groups, n_draws=n_draws, seed=seed
    )
    random = {name: random_aurocs(s, kept) for name, s in controls.items()}
    place = {c.name: i for i, c in enumerate(kept)}
    rows, records = [], []
    for concept in concepts:
        known = concept.truth[np.isfinite(concept.truth)]
        head = (concept.name + (" *" if concept.own_name else ""), str(len(known)))
        head = (*head, str(int((known > 0.5).sum())))
        if concept.name not in place:
            rows.append((*head, "", TOO_SMALL, ""))
            continue
        k = place[concept.name]
        for m, model in enumerate(figures.models):
            low, high = np.quantile(random[model][k], [0.025, 0.975])
            middle = float(np.median(random[model][k]))
            said = cell(figures.points[m, k], *figures.interval(m, k), 3)
            rows.append((*head, model, said, f"{middle:.3f} ({low:.3f}–{high:.3f})"))
            interval = figures.interval(m, k)
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
                    "n_pos": int((known > 0.5).sum()),
                    "random_median": middle,
                    "random_low": float(low),
                    "random_high": float(high),
                    "terms": "; ".join(concept.terms),
                    "own_name": concept.own_name,
                }
            )
    notes = []
    if any(c.own_name for c in concepts):
        notes.append("* no terms of this name: asked for by the name of its column")
    if diagnoses:
        said = "; ".join(f"{name}: {', '.join(terms)}" for name, terms in diagnoses.items())
        notes.append(
            f"terms that name a diagnosis, so that the figure may be of the disease, not of the sign "
            f"({len(diagnoses)} concepts): {said}"
        )
    if unmatched:
        few = ", ".join(unmatched[:12]) + (", …" if len(unmatched) > 12 else "")
        notes.append(f"terms without a column, left out ({len(unmatched)}): {few}")
    header = ("concept", "n", "present", "model", "AUROC", f"{len(RANDOM_WORDS)} random words")
    sheets = [Sheet(f"{dataset}: concept annotation by text", header, rows, notes, records)]
    sheets.append(_summary(dataset, figures, random, len(kept)))
    if len(scores) > 1:
        comparisons = figures.compare([MEAN], reference)
        sheets.append(comparison_sheet(figures, comparisons, dataset=dataset))
    return sheets


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
