"""Image–caption retrieval in both directions over the whole set, in blocks.

The gallery is every row, as published, so a repeated caption occurs repeatedly. An image counts as
found when a caption of the same text is found (`found`); `strict` asks for the caption of the same row,
by chance among equal captions. Ties with another caption count against the model: one that gives all
pairs the same score finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dermaudit.errors import UserInputError
from dermaudit.stats.paired import Figures, bootstrap_figures

from .inputs.captions import captions_of
from .options import Resampling, RetrievalOptions
from .output.render import Sheet, cell, comparison_sheet
from .session import BenchSession, check_enough, split_rows

DIRECTIONS = ("image → text", "text → image")
_BLOCK = 1024


@dataclass(frozen=True)
class Ranks:
    """Ranks (n,) of each row as a query, counted from 1.

    `strict_low` … `strict_high`: the places that the row itself shares with equal captions; equal numbers
    if it shares none.
    """

    found: np.ndarray
    strict_low: np.ndarray
    strict_high: np.ndarray


def run_retrieval(options: RetrievalOptions) -> dict[str, Any]:
    """Rank captions and images of a split with every model; return what `--json` prints."""
    ks = sorted(set(options.k or (1, 5, 10, 50)))
    if ks[0] < 1:
        raise UserInputError(
            f"--k {ks[0]} must be at least 1", "--k 1 asks how often the first answer is right"
        )
    session = BenchSession(options, "retrieval")
    manifest = session.manifest()
    captions = captions_of(manifest, options.column)
    rows = split_rows(manifest, options.split)
    captioned = rows[[bool(captions[i]) for i in rows]]
    check_enough(len(captioned), f"{options.data}, split {options.split}, with a {options.column}")
    models: dict[str, tuple[Ranks, Ranks]] = {}
    which = np.zeros(0, dtype=int)
    for name, tower, embedded in session.embed(manifest, captioned):
        vectors, which = encode_captions(tower, [captions[i] for i in embedded.rows])
        models[name] = ranks(embedded.x, vectors, which)
    groups = [manifest.groups[i] for i in session.scored]
    sheets = retrieval_sheets(session.dataset, models, which, groups, ks, session.resampling)
    return {
        **session.description(options.split),
        "n_without_caption": len(rows) - len(captioned),
        **session.finish(sheets),
    }


def encode_captions(tower: Any, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return (unit vectors (u, d) of the distinct captions, (n,) which of them each row has)."""
    import torch

    distinct, which = np.unique(np.asarray(captions, dtype=object).astype(str), return_inverse=True)
    with torch.no_grad():
        vectors = tower.encode_text(distinct.tolist()).cpu().numpy()
    return vectors, which


def ranks(x: np.ndarray, captions: np.ndarray, which: np.ndarray) -> tuple[Ranks, Ranks]:
    """Return the ranks image → text and text → image.

    x (n, d) and captions (u, d) are unit rows, which (n,) the caption of each image.
    """
    n = len(x)
    copies = np.bincount(which, minlength=len(captions))
    found, low = np.empty(n), np.empty(n)
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(n, start + _BLOCK))
        scores = x[rows] @ captions.T
        own = scores[np.arange(len(rows)), which[rows]]
        # Other captions that score at least as much, as often as they occur in the gallery.
        above = (scores >= own[:, None]) @ copies - copies[which[rows]]
        found[rows], low[rows] = 1 + above, 1 + above
    to_text = Ranks(found, low, low + copies[which] - 1)

    found, strict = np.empty(n), np.empty(n)
    order = np.argsort(which, kind="stable")
    starts = np.searchsorted(which[order], np.arange(len(captions) + 1))
    for start in range(0, len(captions), _BLOCK):
        scores = captions[start : start + _BLOCK] @ x.T
        for row, score in enumerate(scores):
            mine = order[starts[start + row] : starts[start + row + 1]]
            ordered = np.sort(score)
            at_least = n - np.searchsorted(ordered, score[mine], side="left")
            best = score[mine].max()
            others = n - np.searchsorted(ordered, best, side="left") - (score[mine] >= best).sum()
            found[mine], strict[mine] = 1 + others, at_least
    return to_text, Ranks(found, strict, strict)


def recall_at(r: Ranks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (found, strict) of each query within the first k: 0 or 1, strict a probability."""
    span = r.strict_high - r.strict_low + 1
    return (r.found <= k).astype(float), np.clip((k - r.strict_low + 1) / span, 0.0, 1.0)


def chance(which: np.ndarray, k: int) -> tuple[float, float]:
    """Return (found, strict) recall at k of a random order of the gallery."""
    n = len(which)
    k = min(k, n)
    copies = np.bincount(which)[which]
    # None of the m copies among the first k: prod over m of (n - k - j) / (n - j).
    missed = np.ones(n)
    for j in range(int(copies.max())):
        missed *= np.where(j < copies, max(0, n - k - j) / (n - j), 1.0)
    return float(1 - missed.mean()), k / n


def retrieval_figures(
    models: dict[str, tuple[Ranks, Ranks]],
    groups: Sequence[str],
    ks: Sequence[int],
    resampling: Resampling,
) -> Figures:
    """Return per direction R@k, strict R@k, median and mean rank of the first match.

    Queries are resampled by group; the gallery stays whole.
    """
    names: list[str] = []
    for direction in DIRECTIONS:
        names += [f"{direction} R@{k}" for k in ks] + [f"{direction} strict R@{k}" for k in ks]
        names += [f"{direction} median rank", f"{direction} mean rank"]

    def statistic(pair: tuple[Ranks, Ranks], weights: np.ndarray) -> np.ndarray:
        total = weights.sum(1, keepdims=True)
        blocks = []
        for r in pair:
            hits = [recall_at(r, k) for k in ks]
            columns = [h[0] for h in hits] + [h[1] for h in hits]
            blocks.append(weights @ np.stack(columns, axis=1) / total)
            order = np.argsort(r.found, kind="stable")
            middle = (weights[:, order].cumsum(1) >= total / 2).argmax(1)
            blocks.append(r.found[order][middle][:, None])
            blocks.append(weights @ r.found[:, None] / total)
        return np.concatenate(blocks, axis=1)

    statistics = {name: lambda w, p=p: statistic(p, w) for name, p in models.items()}
    return bootstrap_figures(statistics, names, len(groups), resampling.bootstrap(groups))


def retrieval_sheets(
    dataset: str,
    models: dict[str, tuple[Ranks, Ranks]],
    which: np.ndarray,
    groups: Sequence[str],
    ks: Sequence[int],
    resampling: Resampling,
) -> list[Sheet]:
    """Return a sheet for each direction, with chance as its last row, and the paired differences."""
    n = len(which)
    figures = retrieval_figures(models, groups, ks, resampling)
    distinct = int(which.max()) + 1
    sheets = []
    records = figures.records(table="retrieval", dataset=dataset, n=n)
    for direction in DIRECTIONS:
        shown = [m for m in figures.metrics if m.startswith(direction)]
        picked = [figures.metrics.index(m) for m in shown]
        rows = []
        for m, model in enumerate(figures.models):
            cells = []
            for k in picked:
                digits = 1 if "rank" in figures.metrics[k] else 3
                cells.append(cell(figures.points[m, k], *figures.interval(m, k), digits, n))
            rows.append((model, *cells))
        levels = [chance(which, k) for k in ks]
        by_chance = [f"{v:.3f}" for v, _ in levels] + [f"{v:.3f}" for _, v in levels] + ["–", "–"]
        rows.append(("(chance)", *by_chance))
        header = ("model", *(m.removeprefix(f"{direction} ") for m in shown))
        mine = [r for r in records if r["metric"] in shown]
        title = f"{dataset}, {direction}: {n} pairs, {distinct} distinct captions"
        sheets.append(Sheet(title, header, rows, [], mine))
    sheets[-1].notes.append(
        "R@k: a caption of the same text counts as found; strict: the image's own row. Ranks are "
        f"those of the first match. Queries resampled over {len(set(groups))} groups"
    )
    large = [k for k in ks if k >= n]
    if large:
        sheets[-1].notes.append(f"R@{large[0]} of {n} pairs is 1 by construction")
    if len(models) > 1:
        tested = [f"{direction} R@{k}" for direction in DIRECTIONS for k in ks if k < n]
        comparisons = figures.compare(tested, resampling.reference)
        sheets.append(comparison_sheet(figures, comparisons, dataset=dataset))
    return sheets
