"""Stability over seeds: latents of SAEs that were fitted on the same rows, matched one to one.

Two latents are shared if the best one-to-one matching of the decoders (Hungarian, on the cosine of
`W_dec`) pairs them, and both their decoder and their encoder directions have a cosine of .7 or more
(arXiv 2501.16615). Also reported: the mean best cosine without one-to-one (MMCS, an upper bound,
arXiv 2309.08600), and a matching by the correlation of codes on held-out rows, which finds latents that
do the same with other weights. Only latents that are active on those rows are matched.

With few dimensions and many latents the agreement by chance is high. As controls, random unit vectors and
random centred held-out rows are matched to the same dictionary in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError, UserInputError

from ..store.rows import RowSource, as_rows
from .figure import figure, json_number
from .reconstruction import RowsLike, checked_rows, chunk_rows, chunks

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from ..inference.model import ThresholdSAE, TopKSAE

SHARED = 0.7
CLOSE = 0.9
#: The exact matching is cubic: 8,192 latents take about a minute, and their table half a GB.
MAX_EXACT = 8192


def unit(vectors: Shaped[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Return rows scaled to unit length; rows of zeros stay zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def match(similarity: Float[np.ndarray, "a b"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the one-to-one pairs (rows, columns) of the largest total similarity: min(n, m) of them.

    If both have more than `MAX_EXACT`, only pairs that are each other's best are returned: fewer pairs,
    a lower bound.
    """
    from scipy.optimize import linear_sum_assignment

    if min(similarity.shape) <= MAX_EXACT:
        return linear_sum_assignment(similarity, maximize=True)
    best, back = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(back[best] == np.arange(len(best)))
    return rows, best[rows]


@dataclass
class ActiveCodes:
    """Codes of one SAE on held-out rows: csr (n, d_sae), active latents, and the sums of the codes."""

    codes: Any
    alive: np.ndarray
    mass: np.ndarray


@torch.no_grad()
def active_codes(sae: ThresholdSAE | TopKSAE, rows: RowsLike) -> ActiveCodes:
    """Encode rows (n, d_in) and keep the non-zero codes as float32."""
    from scipy.sparse import csr_matrix, vstack

    source = checked_rows(sae, rows)
    parts = [
        csr_matrix(sae.encode(part).numpy()) for _, part in chunks(source, chunk_rows(sae.d_sae))
    ]
    codes: Any = vstack(parts, format="csr") if parts else csr_matrix((0, sae.d_sae), dtype="f4")
    mass = np.asarray(codes.sum(0, dtype=np.float64)).ravel()
    return ActiveCodes(codes, np.flatnonzero(codes.getnnz(axis=0)), mass)


def code_correlation(one: Any, other: Any) -> np.ndarray:
    """Return the Pearson correlation (h, m) of the columns of sparse tables (n, h) and (n, m).

    It is 0 for a constant column.
    """
    n = one.shape[0]
    one, other = one.astype(np.float64), other.astype(np.float64)
    mean, mean_other = (np.asarray(t.mean(0)).ravel() for t in (one, other))
    covariance = np.asarray((one.T @ other).todense()) / n - np.outer(mean, mean_other)
    spread = []
    for table, average in ((one, mean), (other, mean_other)):
        squares = np.asarray(table.multiply(table).mean(0)).ravel()
        variance = squares - average**2
        spread.append(
            np.sqrt(np.where(variance > 1e-12 * np.maximum(squares, 1e-300), variance, np.inf))
        )
    return covariance / np.outer(*spread)


def stability_report(
    saes: Sequence[ThresholdSAE | TopKSAE],
    rows: RowsLike,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the first of `saes` with each of the others on held-out rows (n, d_in).

    Figures are means over the other SAEs, `low` and `high` the extremes over them, because three seeds
    are too few for an interval: `decoder_cosine`, `encoder_cosine`, `share_decoder_07`,
    `share_decoder_09`, `shared` (decoder and encoder ≥ .7), `shared_by_mass` (weighted by the sum of the
    codes), `mmcs`, `code_correlation`, `share_code_07`. For the first SAE `per_latent` has `stable`
    (shared with every other; None for a dead latent) and `agreement` (the mean over the others of the
    smaller of the two cosines). `n` counts the live latents of the first.

    Errors: UserInputError for fewer than two SAEs, other widths, or the same weights twice;
    EvidenceError if no latent of an SAE is active.
    """
    names = list(names) if names is not None else [f"SAE {i}" for i in range(len(saes))]
    _check(saes, names)
    active = [active_codes(sae, rows) for sae in saes]
    for name, one in zip(names, active, strict=True):
        if not len(one.alive):
            raise EvidenceError(
                f"no latent of {name} fires on the {one.codes.shape[0]} rows", None, {"alive": 0}
            )
    first, alive = saes[0], active[0].alive
    matches = [
        _compare(first, other, active[0], codes)
        for other, codes in zip(saes[1:], active[1:], strict=True)
    ]
    rng = np.random.default_rng(
        [seed, 1]
    )  # another stream than that of synthetic rows of this seed
    count = len(active[1].alive)
    random, data = (
        _chance(unit(first.W_dec.numpy()[alive]), unit(first.W_enc.numpy().T[alive]), directions)
        for directions in (
            rng.normal(size=(count, first.d_in)),
            _data_directions(as_rows(rows), count, rng),
        )
    )
    agreement = np.stack([np.minimum(one["decoder"], one["encoder"]) for one in matches])
    exact = all(min(len(alive), len(other.alive)) <= MAX_EXACT for other in active[1:])
    return {
        **_figures(matches, agreement, active[0].mass[alive], random),
        "decoder_cosine_of_rows": json_number(data["mean"]),
        "against": list(names[1:]),
        "n_rows": int(active[0].codes.shape[0]),
        "matching": "one to one" if exact else "each other's best",
        "per_latent": _per_latent(agreement, alive, first.d_sae),
    }


def _figures(
    matches: list[dict[str, Any]],
    agreement: np.ndarray,
    mass: np.ndarray,
    random: dict[str, float],
) -> dict[str, Any]:
    """Return the figures over the other SAEs: agreement (others, n), mass (n,) of live latents."""
    n = agreement.shape[1]
    shared = agreement >= SHARED

    def mean(
        values: Sequence[float], control: float | None = None, control_is: str | None = None
    ) -> dict[str, Any]:
        interval = (min(values), max(values))
        return figure(float(np.mean(values)), n, interval, control=control, control_is=control_is)

    def by_chance(values: Sequence[float], name: str) -> dict[str, Any]:
        return mean(values, random[name], "random unit vectors")

    decoder = [one["decoder"] for one in matches]
    codes = [one["codes"] for one in matches]
    return {
        "decoder_cosine": by_chance([d.mean() for d in decoder], "mean"),
        "encoder_cosine": by_chance([one["encoder"].mean() for one in matches], "encoder"),
        "share_decoder_07": by_chance([(d >= SHARED).mean() for d in decoder], "decoder_shared"),
        "share_decoder_09": by_chance([(d >= CLOSE).mean() for d in decoder], "close"),
        "shared": by_chance(shared.mean(1).tolist(), "shared"),
        "shared_by_mass": by_chance((shared @ (mass / mass.sum())).tolist(), "shared"),
        "mmcs": by_chance([one["mmcs"] for one in matches], "mmcs"),
        "code_correlation": mean(
            [c.mean() for c in codes],
            float(np.mean([one["codes_chance"] for one in matches])),
            "rows of one shifted against the other",
        ),
        "share_code_07": mean([(c >= SHARED).mean() for c in codes]),
        "stable": figure(float(shared.all(0).mean()), n),
    }


def _per_latent(agreement: np.ndarray, alive: np.ndarray, d_sae: int) -> dict[str, list[Any]]:
    """Return `stable` and `agreement` of every latent, None for dead ones."""
    stable: list[bool | None] = [None] * d_sae
    mean: list[float | None] = [None] * d_sae
    for place, latent in enumerate(alive.tolist()):
        stable[latent] = bool((agreement[:, place] >= SHARED).all())
        mean[latent] = json_number(float(agreement[:, place].mean()))
    return {"stable": stable, "agreement": mean}


def _check(saes: Sequence[ThresholdSAE | TopKSAE], names: Sequence[str]) -> None:
    if len(saes) < 2:
        raise UserInputError(
            "stability compares sparse autoencoders of different seeds, and one was given",
            "fit the site again with another --seed",
        )
    for name, sae in zip(names[1:], saes[1:], strict=True):
        if sae.d_in != saes[0].d_in:
            raise UserInputError(
                f"{name} was fitted on rows {sae.d_in} wide, {names[0]} on {saes[0].d_in}",
                "compare SAEs of the same site and model",
            )
    for i, one in enumerate(saes):
        for j in range(i):
            if one.W_dec.shape == saes[j].W_dec.shape and torch.equal(one.W_dec, saes[j].W_dec):
                raise UserInputError(
                    f"{names[j]} and {names[i]} hold the same weights",
                    "another seed is wanted: dermaudit fit --run RUN --seeds 0,1",
                )


def _compare(
    first: ThresholdSAE | TopKSAE,
    other: ThresholdSAE | TopKSAE,
    ours: ActiveCodes,
    theirs: ActiveCodes,
) -> dict[str, Any]:
    """Return the matched similarity of each live latent of the first: `decoder`, `encoder`, `codes`.

    A latent without a partner has 0. Also `mmcs`, and the `codes_chance` of shifted rows.
    """
    a, b = ours.alive, theirs.alive
    cosine = unit(first.W_dec.numpy()[a]) @ unit(other.W_dec.numpy()[b]).T
    rows, columns = match(cosine)
    found = {name: np.zeros(len(a)) for name in ("decoder", "encoder", "codes")}
    found["decoder"][rows] = cosine[rows, columns]
    encoder, other_encoder = (
        unit(first.W_enc.numpy().T[a[rows]]),
        unit(other.W_enc.numpy().T[b[columns]]),
    )
    found["encoder"][rows] = (encoder * other_encoder).sum(1)
    one, two = ours.codes[:, a], theirs.codes[:, b]
    correlation = code_correlation(one, two)
    rows, columns = match(correlation)
    found["codes"][rows] = correlation[rows, columns]
    # The codes of other rows: shifted by half of the rows, so that neighbours of one image part.
    shifted = one[np.roll(np.arange(one.shape[0]), one.shape[0] // 2)]
    chance = code_correlation(shifted, two)
    rows, columns = match(chance)
    return {
        **found,
        "mmcs": float(cosine.max(1).mean()),
        "codes_chance": float(chance[rows, columns].sum() / len(a)),
    }


def _chance(decoder: np.ndarray, encoder: np.ndarray, directions: np.ndarray) -> dict[str, float]:
    """Match directions that were not fitted, each both encoder and decoder."""
    directions = unit(directions)
    cosine = decoder @ directions.T
    rows, columns = match(cosine)
    matched, read = np.zeros(len(decoder)), np.zeros(len(decoder))
    matched[rows] = cosine[rows, columns]
    read[rows] = (encoder[rows] * directions[columns]).sum(1)
    return {
        "mean": float(matched.mean()),
        "encoder": float(read.mean()),
        "decoder_shared": float((matched >= SHARED).mean()),
        "shared": float((np.minimum(matched, read) >= SHARED).mean()),
        "close": float((matched >= CLOSE).mean()),
        "mmcs": float(cosine.max(1).mean()),
    }


def _data_directions(rows: RowSource, count: int, rng: np.random.Generator) -> np.ndarray:
    index = np.sort(rng.choice(rows.n, min(count, rows.n), replace=False))
    picked = rows.take(index).astype(np.float64)
    return picked - picked.mean(0)
