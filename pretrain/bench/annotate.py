"""Concept annotation by text alone: how well a concept's words rank the images that show it.

The score is MONET's (Kim et al., Nat Med 2024), with MAKE's templates (arXiv 2505.09372): for each
template the softmax, at temperature 1 / exp(4.5944), of the mean cosine with the concept's terms
against the cosine with the template without them; the mean over templates. Concepts meet their
columns by name, blank truth is left out, and random words stand beside every concept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dermaudit.data import Manifest
from dermaudit.errors import UserInputError
from dermaudit.files import read_json
from dermaudit.paired import Figures, bootstrap_figures
from dermaudit.stats import MIN_CELL, GroupBootstrap, auroc_draws, auroc_many

from .render import TOO_SMALL, Sheet, cell, comparison_sheet

TEMPERATURE = math.exp(-4.5944)
#: (with the term, without it).
TEMPLATES: dict[str, tuple[tuple[str, str], ...]] = {
    "skin": (
        ("This is skin image of {}", "This is skin image"),
        ("This is dermatology image of {}", "This is dermatology image"),
        ("This is image of {}", "This is image"),
        ("A skin image of {}", "A skin image"),
        ("An image of {}, a skin condition.", "An image of a skin condition."),
        ("{}, a skin disorder, is shown in this image.", "a skin disorder is shown in this image."),
    ),
    "dermoscopy": (
        ("This is dermatoscopy of {}", "This is dermatoscopy"),
        ("This is dermoscopy of {}", "This is dermoscopy"),
    ),
}
#: words that no image of skin is about. Several letters and sounds, for tokenisers by word or piece.
RANDOM_WORDS = (
    "table", "river", "violin", "parliament", "bicycle", "harvest", "thunder", "library", "engine",
    "orchard", "compass", "lantern", "Tuesday", "marathon", "glacier", "recipe", "tunnel", "poetry",
    "satellite", "market", "curtain", "journey", "algebra", "kitchen",
)  # fmt: skip
MIN_CASES = 5  # positives, and negatives, below which an AUROC is noise
GOOD = 0.7  # the published count: concepts with an AUROC above it
MEAN = "mean AUROC"
COUNT = f"concepts above {GOOD}"


@dataclass(frozen=True)
class Concept:
    """`truth` (n,) 1, 0, nan = unknown; `own_name` where its terms are only its name."""

    name: str
    truth: np.ndarray
    terms: tuple[str, ...]
    own_name: bool = False


def read_terms(path: Path) -> dict[str, tuple[str, ...]]:
    """{concept: terms} of a ConceptTerms.json. Errors: UserInputError naming the concept."""
    value = read_json(path, "terms")
    if not isinstance(value, dict) or not value:
        raise UserInputError(f"{path} holds no concepts", 'write {"ulcer": ["ulcer", "erosion"]}')
    for name, terms in value.items():
        if not isinstance(terms, list) or not terms or not all(
            isinstance(term, str) and term.strip() for term in terms
        ):
            raise UserInputError(
                f"{path}: '{name}' needs a list of terms", f'write "{name}": ["{name}"]'
            )
    return {name: tuple(terms) for name, terms in value.items()}


def concepts_of(
    manifest: Manifest, terms: Mapping[str, Sequence[str]], rows: np.ndarray
) -> tuple[list[Concept], list[str]]:
    """(the concept and artifact columns with their terms by name, terms that have no column).

    A column without terms is asked for by its own name. Errors: UserInputError without a column.
    """
    truth = manifest.truth()
    if not truth:
        raise UserInputError(
            f"{manifest.path} has no concept: or artifact: column",
            "annotation is scored against them: concept:<name> with 1, 0 or blank",
        )
    by_name: dict[str, tuple[str, ...]] = {}
    for name, words in terms.items():
        by_name.setdefault(_fold(name), tuple(words))
    found = []
    for name, (_, values) in truth.items():
        known = np.asarray(values, dtype=float)[rows]
        words = by_name.pop(_fold(name), None)
        found.append(Concept(name, known, words or (name.replace("_", " "),), words is None))
    return found, sorted(by_name)


def _fold(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


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


def enough(truth: np.ndarray) -> bool:
    """30 known images, 5 with and 5 without the concept."""
    known = np.isfinite(truth)
    n_pos = int((truth[known] > 0.5).sum())
    return int(known.sum()) >= MIN_CELL and MIN_CASES <= n_pos <= int(known.sum()) - MIN_CASES


def annotation_figures(
    scores: dict[str, np.ndarray],
    concepts: Sequence[Concept],
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


def random_aurocs(scores: np.ndarray, concepts: Sequence[Concept]) -> np.ndarray:
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
    concepts: Sequence[Concept],
    groups: Sequence[str],
    unmatched: Sequence[str],
    *,
    n_draws: int,
    seed: int,
    reference: str | None,
) -> list[Sheet]:
    """`scores` {model: (n, concepts)}, `controls` {model: (n, random words)}, the same rows."""
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
                    "table": "annotation", "dataset": dataset, "model": model,
                    "metric": concept.name, "value": float(figures.points[m, k]),
                    "low": interval[0], "high": interval[1], "n": len(known),
                    "n_pos": int((known > 0.5).sum()), "random_median": middle,
                    "random_low": float(low), "random_high": float(high),
                    "terms": "; ".join(concept.terms), "own_name": concept.own_name,
                }
            )
    notes = []
    if any(c.own_name for c in concepts):
        notes.append("* no terms of this name: asked for by the name of its column")
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
                    "table": "annotation", "dataset": dataset, "model": model,
                    "metric": figures.metrics[k], "value": float(figures.points[m, k]),
                    "low": interval[0], "high": interval[1], "n": n,
                    "random_median": float(np.median(control)) if k == mean else None,
                }
            )
    header = ("model", MEAN, f"above {GOOD}", "above 97.5 % of random words", "random words, mean AUROC")
    return Sheet(f"{dataset}: {n} concepts", header, rows, records=records)
