"""Zero-shot classification of reconstructions: how much of its accuracy and cross-entropy is recovered.

Token reconstructions first pass through the rest of the tower (spliced.py).

recovered = (A_sae − A_ablated) / (A_clean − A_ablated), and of the cross-entropy
(CE_ablated − CE_sae) / (CE_ablated − CE_clean). Ablated is the mean embedding for every image (what a
dictionary with nothing but its bias gives). The zero vector is reported for comparison and looks better
than it is, because no embedding lies there. Logits carry `logit_scale`: without it all cross-entropies are
close to ln C, and any dictionary "recovers" everything. The ratio is undefined if clean and ablated differ
by less than .01.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import log_softmax

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import percentile_interval

from .figure import bootstrap_weights, figure, group_numbers, json_number

if TYPE_CHECKING:
    from dermaudit.towers import ZeroShot

MIN_DIFFERENCE = 0.01  # between clean and ablated, for a ratio to be defined
_TIE = 1e-9


@dataclass(frozen=True)
class Ablation:
    """The embeddings of ablated images.

    `mean` (d,) is the mean of the train rows, or (n, d) the embedding of each image when an earlier site is
    mean-ablated; `zero` (n, d) is the same for zero ablation (None: the zero vector, without logits).
    """

    mean: np.ndarray
    zero: np.ndarray | None = None
    description: str = "mean embedding"


def recovered(clean: float, sae: float, ablated: float) -> float:
    """Return (sae − ablated) / (clean − ablated); nan if |clean − ablated| < .01."""
    if abs(clean - ablated) < MIN_DIFFERENCE:
        return float("nan")
    return (sae - ablated) / (clean - ablated)


def recovered_report(
    classifier: ZeroShot,
    x: np.ndarray,
    x_hat: np.ndarray,
    labels: Sequence[str | None],
    groups: Sequence[object] | np.ndarray,
    ablation: Ablation,
    *,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Return zero-shot figures of embeddings x (n, d) and their reconstructions x_hat (n, d).

    Both are scaled to unit length before the classifier, as in use. Images without a label, or with one
    that is not a class of `classifier`, are left out of what needs a label. Intervals: bootstrap over
    groups, of clean, SAE and ablated jointly.

    The figures are `accuracy`, `balanced_accuracy`, `cross_entropy` (each with clean and zero, control:
    ablated), their `…_recovered` (control: by zero ablation), `kl` (nats, clean ‖ SAE) and
    `top1_agreement` (control: of the ablated). UserInputError for shapes that do not match;
    EvidenceError without a usable label.
    """
    x, x_hat = np.asarray(x, dtype=np.float64), np.asarray(x_hat, dtype=np.float64)
    if x.shape != x_hat.shape or not (len(x) == len(labels) == len(groups)):
        raise UserInputError(
            f"embeddings {x.shape}, reconstructions {x_hat.shape}, {len(labels)} labels and "
            f"{len(groups)} groups do not match"
        )
    finite = np.isfinite(x).all(1) & np.isfinite(x_hat).all(1)
    place = {name: i for i, name in enumerate(classifier.classes)}
    truth = np.array([place.get(label, -1) if label is not None else -1 for label in labels])
    known = np.flatnonzero((truth >= 0) & finite)
    if not len(known):
        raise EvidenceError(
            f"none of the {len(labels)} images has a label among the classes "
            f"{', '.join(classifier.classes[:8])}",
            "name the classes of these labels",
            {"n": 0},
        )
    logits = _all_logits(classifier, x, x_hat, ablation)
    member = group_numbers(groups)
    draws = bootstrap_weights(int(member.max()) + 1, n_draws, seed)

    def weights(images: np.ndarray) -> np.ndarray:
        """Return weights (1 + draws, n) of images, the first row without resampling."""
        return np.concatenate([np.ones((1, len(images))), draws[:, member[images]]])

    known_logits = {kind: values[known] for kind, values in logits.items()}
    found = _label_figures(known_logits, truth[known], weights(known), ablation.description)
    seen = np.flatnonzero(finite)
    seen_logits = {kind: values[seen] for kind, values in logits.items()}
    found |= _agreement_figures(seen_logits, weights(seen), ablation.description)
    found["classes"] = list(classifier.classes)
    found["logit_scale"] = json_number(float(classifier.logit_scale))
    return found


def _all_logits(
    classifier: ZeroShot, x: np.ndarray, x_hat: np.ndarray, ablation: Ablation
) -> dict[str, np.ndarray]:
    """Return the logits (n, classes) of clean, reconstructed and ablated embeddings."""
    weight = classifier.weight.double().cpu().numpy()
    scale = float(classifier.logit_scale)
    shape = (len(x), len(weight))
    ablated = _logits(np.atleast_2d(ablation.mean), weight, scale)
    return {
        "clean": _logits(x, weight, scale),
        "sae": _logits(x_hat, weight, scale),
        "ablated": np.broadcast_to(ablated, shape),
        "zero": np.zeros(shape) if ablation.zero is None else _logits(ablation.zero, weight, scale),
    }


def _label_figures(
    logits: dict[str, np.ndarray], truth: np.ndarray, w: np.ndarray, ablated_is: str
) -> dict[str, Any]:
    """Return the figures that need labels: truth (n,) class numbers, weights w (draws, n)."""
    total, n = w.sum(1), len(truth)
    correct = {kind: _correct(values, truth) for kind, values in logits.items()}
    losses = {kind: _cross_entropy(values, truth) for kind, values in logits.items()}
    scores = {
        "accuracy": {kind: w @ values / total for kind, values in correct.items()},
        "balanced_accuracy": {kind: _balanced(v, truth, w) for kind, v in correct.items()},
        "cross_entropy": {kind: w @ values / total for kind, values in losses.items()},
    }
    found: dict[str, Any] = {}
    for name, by_kind in scores.items():
        found[name] = figure(
            by_kind["sae"][0],
            n,
            percentile_interval(by_kind["sae"][1:]),
            control=by_kind["ablated"][0],
            control_is=ablated_is,
            clean=json_number(by_kind["clean"][0]),
            zero=json_number(by_kind["zero"][0]),
        )
        ratios = {
            floor: np.array(
                [
                    recovered(*values)
                    for values in zip(by_kind["clean"], by_kind["sae"], by_kind[floor], strict=True)
                ]
            )
            for floor in ("ablated", "zero")
        }
        found[f"{name}_recovered"] = figure(
            ratios["ablated"][0],
            n,
            percentile_interval(ratios["ablated"][1:]),
            control=ratios["zero"][0],
            control_is="by zero ablation",
        )
    return found


def _agreement_figures(
    logits: dict[str, np.ndarray], w: np.ndarray, ablated_is: str
) -> dict[str, Any]:
    """Return `kl` and `top1_agreement` with the clean logits, for weights w (draws, n)."""
    top = {kind: values.argmax(1) for kind, values in logits.items()}
    found = {}
    for name, values in (
        ("kl", {kind: _kl(logits["clean"], logits[kind]) for kind in ("sae", "ablated")}),
        (
            "top1_agreement",
            {kind: (top[kind] == top["clean"]).astype(float) for kind in ("sae", "ablated")},
        ),
    ):
        means = w @ values["sae"] / w.sum(1)
        found[name] = figure(
            means[0],
            w.shape[1],
            percentile_interval(means[1:]),
            control=values["ablated"].mean(),
            control_is=ablated_is,
        )
    return found


def _logits(x: np.ndarray, weight: np.ndarray, scale: float) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return scale * (x / np.maximum(norm, 1e-12)) @ weight.T


def _correct(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return 1 where the truth has the largest logit, 1/m where m logits are the largest, else 0.

    This is the expected accuracy of a fair choice; the first of equal logits would favour one class.
    """
    largest = logits >= logits.max(1, keepdims=True) - _TIE
    return largest[np.arange(len(truth)), truth] / largest.sum(1)


def _cross_entropy(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -log_softmax(logits, axis=1)[np.arange(len(truth)), truth]


def _kl(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    p, q = log_softmax(clean, axis=1), log_softmax(other, axis=1)
    return (np.exp(p) * (p - q)).sum(1)


def _balanced(correct: np.ndarray, truth: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return the mean accuracy over the classes that occur, for each row of weights."""
    accuracies = []
    for label in np.unique(truth):
        of = truth == label
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracies.append((w[:, of] @ correct[of]) / w[:, of].sum(1))
    # A draw without a rare class leaves it out of the mean.
    return np.nanmean(np.stack(accuracies), axis=0)
