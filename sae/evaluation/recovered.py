"""What a zero-shot classifier keeps when it sees reconstructions instead of embeddings.

Of tokens the reconstruction goes through the rest of the tower first (spliced.py).

recovered = (A_sae − A_ablated) / (A_clean − A_ablated), and of the cross-entropy
(CE_ablated − CE_sae) / (CE_ablated − CE_clean). Ablated is the mean embedding for every image (what a
dictionary of nothing but its bias gives); the zero vector stands beside it, and flatters: it is a place
where no embedding ever lies. Logits carry `logit_scale`, without which all cross-entropies are ln C to
within a few hundredths and any dictionary "recovers" anything. Undefined where clean and ablated
differ by less than .01: there is nothing to recover.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.intervals import percentile_interval

from .figure import bunches, draws, figure, number

if TYPE_CHECKING:
    from dermaudit.towers import ZeroShot

LEAST = 0.01  # of a difference that can be recovered
_TIE = 1e-9


def recovered(clean: float, sae: float, ablated: float) -> float:
    """(sae − ablated) / (clean − ablated); nan when |clean − ablated| < .01."""
    return (sae - ablated) / (clean - ablated) if abs(clean - ablated) >= LEAST else float("nan")


def recovered_report(
    classifier: ZeroShot,
    x: np.ndarray,
    x_hat: np.ndarray,
    labels: Sequence[str | None],
    groups: Sequence[object],
    *,
    mean: np.ndarray,
    zero: np.ndarray | None = None,
    ablated_is: str = "mean embedding",
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Zero-shot figures of embeddings x (n, d) and their reconstructions x_hat (n, d).

    Both are scaled to unit length before the classifier, as in use. `labels`: classes of
    `classifier`; images without a label, or of another class, are left out of what needs one.
    `mean` (d,): of the train rows; or (n, d), what becomes of each image when a site before it is
    mean-ablated, and `zero` (n, d) likewise (None: the zero vector, which has no logits). Intervals:
    bootstrap over groups, of clean, SAE and ablated jointly.
    Returns figures `accuracy`, `balanced_accuracy`, `cross_entropy` (each with clean, ablated and
    zero beside), their `…_recovered` (control: by zero ablation), `kl` (nats, clean ‖ SAE) and
    `top1_agreement` (control: of the mean-ablated). Errors: UserInputError for other shapes;
    EvidenceError for no usable label.
    """
    x, x_hat = np.asarray(x, dtype=np.float64), np.asarray(x_hat, dtype=np.float64)
    if x.shape != x_hat.shape or not (len(x) == len(labels) == len(groups)):
        raise UserInputError(
            f"embeddings {x.shape}, reconstructions {x_hat.shape}, {len(labels)} labels and "
            f"{len(groups)} groups do not go together"
        )
    fine = np.isfinite(x).all(1) & np.isfinite(x_hat).all(1)
    place = {name: i for i, name in enumerate(classifier.classes)}
    truth = np.array([place.get(label, -1) if label is not None else -1 for label in labels])
    known = np.flatnonzero((truth >= 0) & fine)
    if not len(known):
        raise EvidenceError(
            f"none of the {len(labels)} images has a label among the classes "
            f"{', '.join(classifier.classes[:8])}",
            "name the classes of these labels",
            {"n": 0},
        )
    weight = classifier.weight.double().cpu().numpy()
    scale = float(classifier.logit_scale)
    logits = {
        "clean": _logits(x, weight, scale),
        "sae": _logits(x_hat, weight, scale),
        "ablated": np.broadcast_to(
            _logits(np.atleast_2d(mean), weight, scale), (len(x), len(weight))
        ),
        "zero": np.zeros((len(x), len(weight))) if zero is None else _logits(zero, weight, scale),
    }
    member = bunches(groups)
    resamples = draws(int(member.max()) + 1, n_draws, seed)
    w = np.concatenate([np.ones((1, len(known))), resamples[:, member[known]]])
    per_image = {
        way: (_right(values[known], truth[known]), _surprise(values[known], truth[known]))
        for way, values in logits.items()
    }
    total = w.sum(1)
    accuracy = {way: w @ right / total for way, (right, _) in per_image.items()}
    entropy = {way: w @ surprise / total for way, (_, surprise) in per_image.items()}
    balanced = {way: _balanced(right, truth[known], w) for way, (right, _) in per_image.items()}
    n = len(known)
    found: dict[str, Any] = {}
    for name, by_way in (
        ("accuracy", accuracy),
        ("balanced_accuracy", balanced),
        ("cross_entropy", entropy),
    ):
        found[name] = figure(
            by_way["sae"][0],
            n,
            percentile_interval(by_way["sae"][1:]),
            control=by_way["ablated"][0],
            control_is=ablated_is,
            clean=number(by_way["clean"][0]),
            zero=number(by_way["zero"][0]),
        )
        against = {
            floor: np.array(
                [
                    recovered(*trio)
                    for trio in zip(by_way["clean"], by_way["sae"], by_way[floor], strict=True)
                ]
            )
            for floor in ("ablated", "zero")
        }
        found[f"{name}_recovered"] = figure(
            against["ablated"][0],
            n,
            percentile_interval(against["ablated"][1:]),
            control=against["zero"][0],
            control_is="by zero ablation",
        )
    seen = np.flatnonzero(fine)
    w = np.concatenate([np.ones((1, len(seen))), resamples[:, member[seen]]])
    total = w.sum(1)
    kl = {way: _kl(logits["clean"][seen], logits[way][seen]) for way in ("sae", "ablated")}
    top = {way: values[seen].argmax(1) for way, values in logits.items()}
    for name, ours, theirs in (
        ("kl", kl["sae"], kl["ablated"]),
        (
            "top1_agreement",
            *((top[way] == top["clean"]).astype(float) for way in ("sae", "ablated")),
        ),
    ):
        values = w @ ours / total
        found[name] = figure(
            values[0],
            len(seen),
            percentile_interval(values[1:]),
            control=theirs.mean(),
            control_is=ablated_is,
        )
    found["classes"] = list(classifier.classes)
    found["logit_scale"] = number(scale)
    return found


def _logits(x: np.ndarray, weight: np.ndarray, scale: float) -> np.ndarray:
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return scale * (x / np.maximum(norm, 1e-12)) @ weight.T


def _right(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """1 where the truth is the largest logit, 1/m where it is one of m that are; else 0: what is
    expected of a fair choice (the first of equal logits would favour the first class)."""
    largest = logits >= logits.max(1, keepdims=True) - _TIE
    return largest[np.arange(len(truth)), truth] / largest.sum(1)


def _log_probs(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _surprise(logits: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return -_log_probs(logits)[np.arange(len(truth)), truth]


def _kl(clean: np.ndarray, other: np.ndarray) -> np.ndarray:
    p, q = _log_probs(clean), _log_probs(other)
    return (np.exp(p) * (p - q)).sum(1)


def _balanced(right: np.ndarray, truth: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Mean over the classes present of their accuracy, for each row of weights."""
    classes = np.unique(truth)
    shares = []
    for label in classes:
        of = truth == label
        with np.errstate(invalid="ignore", divide="ignore"):
            shares.append((w[:, of] @ right[of]) / w[:, of].sum(1))
    # A draw without a rare class leaves it out of its mean.
    return np.nanmean(np.stack(shares), axis=0)
