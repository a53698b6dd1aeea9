"""Everything that can be said of one SAE from what is at hand, in one dict, and as a table for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError

from ..store.loader import some_of, take_all
from .baselines import FLOORS, floor_codes, probe_codes, truth_ladder
from .figure import number
from .monosemanticity import monosemanticity_report
from .probes import KS, probe_report, too_few
from .reconstruction import accumulate, chunk_rows, chunks, pca_fvu
from .recovered import recovered_report
from .stability import stability_report
from .truth import implied_pairs

if TYPE_CHECKING:
    from dermaudit.towers import ZeroShot

    from ..inference.model import LinearSAE
    from ..store.rows import Rows

FORMAT_VERSION = 2  # 1 had no absorption, and no interval of MCC, splitting and the mean of probes
TRAIN_ROWS = 20_000  # train rows at most, for the control of FVU
_STABILITY_ROWS = 50_000  # held-out rows at most, for codes of several SAEs
_ZERO_SHOT_ROWS = 50_000


@dataclass(frozen=True)
class Images:
    """One split by images. `codes` csr (n, d_sae) ≥ 0 (of patch tokens their maximum), `groups` (n,),
    `truth` {name: (n,) of 1, 0, nan = unknown}; `x` (n, d) the pooled embeddings, or None."""

    codes: Any
    groups: Sequence[object]
    truth: dict[str, np.ndarray] = field(default_factory=dict)
    x: np.ndarray | None = None


def measure(
    sae: LinearSAE,
    rows: Rows | np.ndarray | torch.Tensor,
    groups: Sequence[object],
    *,
    train: np.ndarray | None = None,
    images: Images | None = None,
    fitted: Images | None = None,
    embeddings: np.ndarray | None = None,
    same_model: bool = True,
    others: Sequence[LinearSAE] = (),
    names: Sequence[str] | None = None,
    classifier: ZeroShot | None = None,
    labels: Sequence[str | None] | None = None,
    n_draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure on held-out rows (n, d_in) with groups (n,); each part where its data is given:

    - `reconstruction` always; its FVU beside a PCA of `train` rows (m, d_in) with as many components
      as latents are active;
    - `monosemanticity` of `images.codes` by `embeddings` (n_images, d_e), those of an independent
      model, unless `same_model`; one image a group;
    - `stability` against `others`, SAEs of other seeds (`names` of all, this one first);
    - `zero_shot` by `classifier` and `labels` (n,) of the rows, which are embeddings then; needs `train`;
    - `probes` and `truth` from `images` (test) and `fitted` (train).

    Every figure is {value, low, high, n, control, control_is}, None where undefined (figure.py).
    A part for which there is too little evidence is {"why": …}. `metrics_table` prints the result.
    Errors: UserInputError for rows of another width; EvidenceError when no row is finite.
    """
    sums = accumulate(sae, rows, groups)
    found: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "n_rows": sums.n,
        "reconstruction": sums.report(n_draws=n_draws, seed=seed),
    }
    if train is not None:
        rank = round(found["reconstruction"]["l0"]["value"])
        (control,) = pca_fvu(_some(train, TRAIN_ROWS, seed), rows, [rank])
        found["reconstruction"]["fvu"] |= {
            "control": control,
            "control_is": f"PCA of train rows, {rank} components",
        }
    few_draws = min(n_draws, 200)

    def part(name: str, make: Any) -> None:
        try:
            found[name] = make()
        except EvidenceError as error:
            found[name] = {"why": error.message}

    if images is not None:
        images, embeddings = _finite(images, embeddings)
    if fitted is not None:
        fitted, _ = _finite(fitted, None)
    if images is not None and embeddings is not None:
        _, first = np.unique(np.asarray(images.groups).astype(str), return_index=True)
        first = np.sort(first)
        part(
            "monosemanticity",
            lambda: monosemanticity_report(
                images.codes[first],
                embeddings[first],
                same_model=same_model,
                n_draws=few_draws,
                seed=seed,
            ),
        )
    if others:
        part(
            "stability",
            lambda: stability_report(
                [sae, *others], _some(rows, _STABILITY_ROWS, seed), names=names, seed=seed
            ),
        )
    if classifier is not None and labels is not None and train is not None:
        part(
            "zero_shot",
            lambda: _zero_shot(
                sae,
                classifier,
                rows,
                labels,
                groups,
                mean=_some(train, TRAIN_ROWS, seed).mean(0, dtype=np.float64),
                n_draws=n_draws,
                seed=seed,
            ),
        )
    if images is not None and fitted is not None and images.truth:
        part(
            "probes",
            lambda: probe_report(
                fitted.codes,
                fitted.truth,
                fitted.groups,
                images.codes,
                images.truth,
                images.groups,
                train_x=fitted.x,
                test_x=images.x,
                n_draws=few_draws,
                seed=seed,
            ),
        )
        part("truth", lambda: _truth(sae, images, fitted, few_draws, seed))
    return found


def _finite(images: Images, embeddings: np.ndarray | None) -> tuple[Images, np.ndarray | None]:
    """Without the images whose codes or embeddings are not finite."""
    fine = np.ones(images.codes.shape[0], dtype=bool)
    codes = images.codes.tocsr()
    broken = ~np.isfinite(codes.data)
    fine[np.repeat(np.arange(len(fine)), np.diff(codes.indptr))[broken]] = False
    for rows in (images.x, embeddings):
        if rows is not None:
            fine &= np.isfinite(rows).all(1)
    if fine.all():
        return images, embeddings
    kept = Images(
        codes[fine],
        np.asarray(images.groups)[fine],
        {name: values[fine] for name, values in images.truth.items()},
        None if images.x is None else images.x[fine],
    )
    return kept, None if embeddings is None else embeddings[fine]


def _truth(
    sae: LinearSAE, images: Images, fitted: Images, n_draws: int, seed: int
) -> dict[str, Any]:
    """The labels as factors, on the same rows: the SAE, linear probes above, floors below. Which label
    implies which is read from the train rows."""
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
    ways: dict[str, Any] = {}
    if images.x is not None and fitted.x is not None:
        ways["linear probes"] = probe_codes(fitted.x, train_truth, fitted.groups, images.x, seed)
        ways |= floor_codes(fitted.x, images.x, sae.d_sae, seed)
    return truth_ladder(
        images.codes,
        truth,
        images.groups,
        ways,
        names=names,
        hierarchy=implied_pairs(train_truth),
        n_draws=n_draws,
        seed=seed,
    )


@torch.no_grad()
def _zero_shot(
    sae: LinearSAE,
    classifier: ZeroShot,
    rows: Any,
    labels: Sequence[str | None],
    groups: Sequence[object],
    **options: Any,
) -> dict[str, Any]:
    """`recovered_report` of the rows, of at most `_ZERO_SHOT_ROWS` of them."""
    index = some_of(np.arange(len(groups)), _ZERO_SHOT_ROWS, [options["seed"], 7])
    x = take_all(rows, index) if hasattr(rows, "read") else np.asarray(rows)[index]
    back = [sae.decode(sae.encode(part)).numpy() for _, part in chunks(x, chunk_rows(sae.d_sae))]
    return recovered_report(
        classifier,
        x,
        np.concatenate(back),
        [labels[i] for i in index],
        np.asarray(groups)[index],
        **options,
    )


def _some(rows: Any, most: int, seed: int) -> np.ndarray:
    """At most `most` finite rows, in order, float32."""
    is_rows = hasattr(rows, "read")
    n = rows.n if is_rows else len(rows)
    index = some_of(np.arange(n), most, [seed, 7])
    picked = (
        take_all(rows, index)
        if is_rows
        else np.asarray(rows[index] if n > most else rows, dtype=np.float32)
    )
    return picked[np.isfinite(picked).all(1)]


# ---- for people

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

_WAYS = ("linear probes", "SAE", *FLOORS)
_TRUTH: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("matched_f1", "matched F1", _WAYS),
    ("one_to_one_f1", "one-to-one F1", _WAYS),
    ("mcc", "MCC", _WAYS),
    ("splitting", "latents a label (splitting)", ("SAE", "random directions")),
    ("absorption", "absorption", ("SAE", "random directions")),
)


def metrics_table(measured: dict[str, Any], title: str = "held-out metrics") -> None:
    """Print what `measure` found: value, 95 % interval, control and n of each figure, on stderr."""
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
    for key, label, ways in _TRUTH:
        lines += [
            _line(f"{label}, {way}", truth[way][key], ".3f")
            for way in ways
            if key in truth.get(way, {})
        ]
    table(title, ("figure", "value", "95 %", "control", "n"), lines)
    say(f"  {_density(measured['reconstruction']['density'])}")
    if pairs := truth.get("SAE", {}).get("absorption", {}).get("pairs"):
        say(f"  absorption: {', '.join(pairs)} (in the train rows no child is without its parent)")
    monosemanticity = measured.get("monosemanticity", {})
    if monosemanticity.get("same_model"):
        say("  monosemanticity is judged by the model's own embeddings, which is circular")
    if "stability" in measured and "shared" in measured["stability"]:
        say("  stability: the interval is the lowest and the highest of the SAEs compared with")
    for part in ("monosemanticity", "stability", "zero_shot", "probes", "truth"):
        if why := measured.get(part, {}).get("why"):
            say(f"  no {part.replace('_', '-')}: {why}")
    broken = measured["reconstruction"]["n_not_finite"]
    if broken:
        say(f"  {broken} held-out rows are not finite and were left out")


def _density(density: dict[str, Any]) -> str:
    """The histogram over decades of the share of rows that a latent fires on, in one line."""
    edges, latents = density["log10_edges"], density["latents"]
    decades: dict[int, int] = {}
    for edge, count in zip(edges, latents, strict=False):
        decades[math.floor(edge)] = decades.get(math.floor(edge), 0) + count
    shown = [f"{10.0**decade:g}: {count}" for decade, count in sorted(decades.items()) if count]
    return f"latents by the share of rows they fire on, from … up: never: {density['never']}, {', '.join(shown)}"


def _line(label: str, entry: dict[str, Any], form: str) -> tuple[str, str, str, str, str]:
    def shown(value: float | None) -> str:
        return "–" if value is None else format(value, form)

    span = "" if entry["low"] is None else f"{shown(entry['low'])} … {shown(entry['high'])}"
    control = ""
    if entry["control"] is not None:
        control = f"{shown(entry['control'])} {entry['control_is'] or ''}".strip()
    return label, shown(entry["value"]), span, control, str(entry["n"])


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """The figures alone, without lists over latents, factors and labels: for run.json and --json."""
    found = {k: v for k, v in measured.items() if not isinstance(v, dict)}
    for part, report in measured.items():
        if not isinstance(report, dict):
            continue
        if part == "truth" and "why" not in report:
            found[part] = {
                way: {
                    k: number(e["value"])
                    for k, e in r.items()
                    if isinstance(e, dict) and "value" in e
                }
                for way, r in report.items()
            }
        else:
            dropped = ("per_latent", "labels", "density")
            found[part] = {k: v for k, v in report.items() if k not in dropped}
    return found
