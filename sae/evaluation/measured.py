"""All figures of one SAE: reconstruction, monosemanticity, stability, zero-shot, probes, labels as truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError

from ..store.loader import random_subset, read_rows
from ..store.rows import as_rows
from .baselines import FLOORS, floor_codes, probe_codes, truth_ladder
from .figure import json_number
from .images import EvaluationImages
from .monosemanticity import monosemanticity_report
from .probes import KS, probe_report, too_few
from .reconstruction import RowsLike, accumulate, chunk_rows, chunks, pca_fvu
from .recovered import Ablation, recovered_report
from .stability import stability_report
from .truth import implied_pairs

if TYPE_CHECKING:
    from dermaudit.towers import ZeroShot

    from ..inference.model import ThresholdSAE, TopKSAE

FORMAT_VERSION = 2  # 1 had no absorption, and no interval of MCC, splitting and the mean of probes
TRAIN_ROWS = 20_000  # train rows at most, for the control of FVU
_MAX_ROWS = 50_000  # held-out rows at most, for stability and zero-shot
_FEW_DRAWS = 200  # bootstrap draws at most, for figures of images


@dataclass(frozen=True)
class MeasurementData:
    """What an SAE is measured on; each figure is left out if its data is missing.

    - rows (n, d_in) are held-out rows with `groups` (n,), and `train` (m, d_in) train rows, on which a PCA
      with as many components as latents are active is the control of FVU.
    - `images` (test) and `fitted` (train) give probes and truth; `embeddings` (n_images, d_e) of the test
      images give monosemanticity. They are those of an independent model unless `same_model`.
    - `others` are SAEs of other seeds, for stability; `names` are those of all SAEs, this one first.
    - `classifier` and `labels` (n,) of the rows, which are embeddings then, give the zero-shot figures.
    """

    rows: RowsLike
    groups: Sequence[object] | np.ndarray
    train: np.ndarray | None = None
    images: EvaluationImages | None = None
    fitted: EvaluationImages | None = None
    embeddings: np.ndarray | None = None
    same_model: bool = True
    others: Sequence[ThresholdSAE | TopKSAE] = ()
    names: Sequence[str] | None = None
    classifier: ZeroShot | None = None
    labels: Sequence[str | None] | None = None


def measure(
    sae: ThresholdSAE | TopKSAE, data: MeasurementData, *, n_draws: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of an SAE for which there is data.

    The keys are `reconstruction` (always), `monosemanticity`, `stability`, `zero_shot`, `probes` and
    `truth`. A figure is {value, low, high, n, control, control_is}, None where undefined (figure.py);
    without enough evidence a key has {"reason": …}. `metrics_table` prints the result.
    Errors: UserInputError for rows of another width; EvidenceError if no row is finite.
    """
    reconstruction = accumulate(sae, data.rows, data.groups)
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "n_rows": reconstruction.n,
        "reconstruction": reconstruction.report(n_draws=n_draws, seed=seed),
    }
    if data.train is not None:
        rank = round(found["reconstruction"]["l0"]["value"])
        found["reconstruction"]["fvu"] |= {
            "control": pca_fvu(_finite_rows(data.train, TRAIN_ROWS, seed), data.rows, rank),
            "control_is": f"PCA of train rows, {rank} components",
        }
    for name, make in _parts(sae, data, n_draws, seed).items():
        try:
            found[name] = make()
        except EvidenceError as error:
            found[name] = {"reason": error.message}
    return found


def _parts(
    sae: ThresholdSAE | TopKSAE, data: MeasurementData, n_draws: int, seed: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return {key: its report} of the figures for which there is data."""
    few_draws = min(n_draws, _FEW_DRAWS)
    images, fitted, embeddings = data.images, data.fitted, data.embeddings
    if images is not None:
        finite = images.finite(embeddings)
        images = images.take(finite)
        embeddings = None if embeddings is None else embeddings[finite]
    if fitted is not None:
        fitted = fitted.take(fitted.finite())
    parts: dict[str, Callable[[], dict[str, Any]]] = {}
    if images is not None and embeddings is not None:
        _, first = np.unique(np.asarray(images.groups).astype(str), return_index=True)
        first = np.sort(first)  # one image of each group: images of one patient are alike anyway
        codes, own = images.codes[first], embeddings[first]
        parts["monosemanticity"] = lambda: monosemanticity_report(
            codes, own, same_model=data.same_model, n_draws=few_draws, seed=seed
        )
    if data.others:
        parts["stability"] = lambda: stability_report(
            [sae, *data.others],
            _finite_rows(data.rows, _MAX_ROWS, seed),
            names=data.names,
            seed=seed,
        )
    if data.classifier is not None and data.labels is not None and data.train is not None:
        parts["zero_shot"] = lambda: _zero_shot(sae, data, n_draws, seed)
    if images is not None and fitted is not None and images.truth:
        train, test = fitted, images
        parts["probes"] = lambda: probe_report(train, test, n_draws=few_draws, seed=seed)
        parts["truth"] = lambda: _truth(sae, test, train, few_draws, seed)
    return parts


def _truth(
    sae: ThresholdSAE | TopKSAE,
    images: EvaluationImages,
    fitted: EvaluationImages,
    n_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return `truth_ladder` with the labels as factors, and linear probes and floors for comparison.

    Which label implies which is determined on the train images.
    """
    names = [
        name
        for name, values in images.truth.items()
        if not too_few(values[np.isfinite(values)], "test")
    ]
    if not names:
        raise EvidenceError("no label is present and absent often enough", None, {"labels": 0})
    truth, train_truth = (
        np.stack([split.truth[name] for name in names], axis=1) for split in (images, fitted)
    )
    baselines: dict[str, Any] = {}
    if images.x is not None and fitted.x is not None:
        baselines = {
            "linear probes": probe_codes(fitted.x, train_truth, fitted.groups, images.x, seed),
            **floor_codes(fitted.x, images.x, sae.d_sae, seed),
        }
    return truth_ladder(
        images.codes,
        truth,
        images.groups,
        baselines,
        names=names,
        hierarchy=implied_pairs(train_truth),
        n_draws=n_draws,
        seed=seed,
    )


@torch.no_grad()
def _zero_shot(
    sae: ThresholdSAE | TopKSAE, data: MeasurementData, n_draws: int, seed: int
) -> dict[str, Any]:
    """Return `recovered_report` of at most `_MAX_ROWS` rows."""
    assert data.classifier is not None and data.labels is not None and data.train is not None
    index = random_subset(np.arange(len(data.groups)), _MAX_ROWS, [seed, 7])
    x = read_rows(as_rows(data.rows), index)
    back = [sae.decode(sae.encode(part)).numpy() for _, part in chunks(x, chunk_rows(sae.d_sae))]
    return recovered_report(
        data.classifier,
        x,
        np.concatenate(back),
        [data.labels[i] for i in index],
        np.asarray(data.groups)[index],
        Ablation(_finite_rows(data.train, TRAIN_ROWS, seed).mean(0, dtype=np.float64)),
        n_draws=n_draws,
        seed=seed,
    )


def _finite_rows(rows: RowsLike, most: int, seed: int) -> np.ndarray:
    """Return at most `most` rows, without those that are not finite: float32, in order."""
    source = as_rows(rows)
    picked = read_rows(source, random_subset(np.arange(source.n), most, [seed, 7]))
    return picked[np.isfinite(picked).all(1)]


_ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("reconstruction", "fvu", "FVU (around the mean)", ".3f"),
    ("reconstruction", "cosine", "cosine", ".3f"),
    ("reconstruction", "shrinkage", "‖x̂‖ / ‖x‖", ".3f"),
    ("reconstruction", "l0", "L0, mean", ".2f"),
    ("reconstruction", "l0_median", "L0, median", ".1f"),
    ("reconstruction", "dead", "dead latents", ".1%"),
    ("reconstruction", "dense", "latents on over 10 % of rows", ".1%"),
    ("monosemanticity", "mean", "monosemanticity", ".3f"),
    ("monosemanticity", "lift", "… above chance", "+.3f"),
    ("monosemanticity", "winsor", "… activations cut at 99.9 %", ".3f"),
    ("monosemanticity", "above", "latents above their shuffled selves", ".1%"),
    ("stability", "pw_mcc", "two halves: cosine of matched directions", ".3f"),
    ("stability", "share_above_0.9", "… above .9", ".1%"),
    ("stability", "subspace", "… of the spans", ".3f"),
    ("stability", "rank_correlation", "… rank correlation of activations", ".3f"),
    ("stability", "decoder_cosine", "decoder cosine of matched latents", ".3f"),
    ("stability", "encoder_cosine", "encoder cosine of the same", ".3f"),
    ("stability", "shared", "latents shared (both ≥ .7)", ".1%"),
    ("stability", "stable", "… with every other", ".1%"),
    ("stability", "shared_by_mass", "… weighted by firing mass", ".1%"),
    ("stability", "share_decoder_09", "decoder ≥ .9", ".1%"),
    ("stability", "mmcs", "MMCS", ".3f"),
    ("stability", "code_correlation", "correlation of matched codes", ".3f"),
    ("zero_shot", "accuracy", "zero-shot accuracy of x̂", ".1%"),
    ("zero_shot", "accuracy_recovered", "… recovered", ".1%"),
    ("zero_shot", "cross_entropy_recovered", "cross-entropy recovered", ".1%"),
    ("zero_shot", "kl", "KL, nats", ".4f"),
    ("zero_shot", "top1_agreement", "same top class", ".1%"),
)

_COMPARED = ("linear probes", "SAE", *FLOORS)
_TRUTH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("matched_f1", "matched F1", _COMPARED),
    ("one_to_one_f1", "one-to-one F1", _COMPARED),
    ("mcc", "MCC", _COMPARED),
    ("splitting", "latents a label (splitting)", ("SAE", "random directions")),
    ("absorption", "absorption", ("SAE", "random directions")),
)


def metrics_table(measured: dict[str, Any], title: str = "held-out metrics") -> None:
    """Print the result of `measure` on stderr: value, 95 % interval, control and n of each figure."""
    from dermaudit.console import say, table

    lines = [
        _line(label, measured[part][key], form)
        for part, key, label, form in _ROWS
        if key in measured.get(part, {})
    ]
    probes = measured.get("probes", {}).get("mean", {})
    lines += [
        _line(f"probe AUROC, {name} (n labels)", probes[name], ".3f")
        for name in (*(f"{of}k={k}" for of in ("", "coordinates ") for k in KS), "whole embedding")
        if name in probes
    ]
    truth = measured.get("truth", {})
    for key, label, compared in _TRUTH:
        lines += [
            _line(f"{label}, {name}", truth[name][key], ".3f")
            for name in compared
            if key in truth.get(name, {})
        ]
    table(title, ("figure", "value", "95 %", "control", "n"), lines)
    say(f"  {_density(measured['reconstruction']['density'])}")
    if pairs := truth.get("SAE", {}).get("absorption", {}).get("pairs"):
        say(f"  absorption: {', '.join(pairs)} (in the train rows no child is without its parent)")
    monosemanticity = measured.get("monosemanticity", {})
    if monosemanticity.get("same_model"):
        say("  monosemanticity is measured with the model's own embeddings, which is circular")
    if "stability" in measured and "shared" in measured["stability"]:
        say("  stability: the interval is the lowest and the highest of the SAEs compared with")
    if "this SAE" in measured.get("controls", {}):
        from ..controls.table import controls_table

        controls_table(measured["controls"], _halves_value(measured))
    for part in ("monosemanticity", "stability", "zero_shot", "probes", "truth", "controls"):
        if reason := measured.get(part, {}).get("reason"):
            say(f"  no {part.replace('_', '-')}: {reason}")
    broken = measured["reconstruction"]["n_not_finite"]
    if broken:
        say(f"  {broken} held-out rows are not finite and were left out")


def _density(density: dict[str, Any]) -> str:
    """Return the histogram over decades of the fraction of active rows, in one line."""
    edges, latents = density["log10_edges"], density["latents"]
    decades: dict[int, int] = {}
    for edge, count in zip(edges, latents, strict=False):
        decades[math.floor(edge)] = decades.get(math.floor(edge), 0) + count
    shown = [f"{10.0**decade:g}: {count}" for decade, count in sorted(decades.items()) if count]
    return f"latents by the fraction of rows on which they are active: 0: {density['never']}, {', '.join(shown)}"


def _line(label: str, entry: dict[str, Any], form: str) -> tuple[str, str, str, str, str]:
    def shown(value: float | None) -> str:
        return "–" if value is None else format(value, form)

    span = "" if entry["low"] is None else f"{shown(entry['low'])} … {shown(entry['high'])}"
    control = ""
    if entry["control"] is not None:
        control = f"{shown(entry['control'])} {entry['control_is'] or ''}".strip()
    return label, shown(entry["value"]), span, control, str(entry["n"])


def _halves_value(measured: dict[str, Any]) -> float | None:
    return (measured.get("stability", {}).get("pw_mcc") or {}).get("value")


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Return the figures alone, without lists over latents and labels, for run.json and --json."""
    found = {k: v for k, v in measured.items() if not isinstance(v, dict)}
    for part, report in measured.items():
        if not isinstance(report, dict):
            continue
        if part == "truth" and "reason" not in report:
            found[part] = {
                name: {
                    key: json_number(entry["value"])
                    for key, entry in figures.items()
                    if isinstance(entry, dict) and "value" in entry
                }
                for name, figures in report.items()
            }
        else:
            dropped = ("per_latent", "labels", "density")
            found[part] = {k: v for k, v in report.items() if k not in dropped}
    if value := _halves_value(measured):
        figures = found["stability"]
        found["stability"] = {
            **figures,
            "pw_mcc": value,
            "ci": [figures["pw_mcc"]["low"], figures["pw_mcc"]["high"]],
            "share_above_0.9": figures["share_above_0.9"]["value"],
            "share_above_0.9_ci": [figures["share_above_0.9"][end] for end in ("low", "high")],
        }
        if "this SAE" in found.get("controls", {}):
            found["controls"]["this SAE"]["pw_mcc"] = value
    return found
