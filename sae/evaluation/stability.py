"""Would another seed have found the same latents? Dictionaries of the same rows, matched one to one.

Two latents are the same when the best one-to-one matching of the decoders (Hungarian, on the cosine of
`W_dec`) pairs them, and both their decoder and their encoder directions agree by .7 or more
(arXiv 2501.16615). Beside it: the mean best cosine without one-to-one (MMCS, an upper bound,
arXiv 2309.08600) and a matching by correlation of the codes on held-out rows, which sees latents
that do the same with other weights. Only latents that fire on those rows are matched.

Chance is high in few dimensions and many latents: random unit vectors, and random held-out rows less
their mean, are matched to the same dictionary in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dermaudit.errors import EvidenceError, UserInputError

from .figure import figure, number
from .reconstruction import checked_width, chunk_rows, chunks

if TYPE_CHECKING:
    from ..inference.model import LinearSAE
    from ..store.rows import Rows

SHARED = 0.7
CLOSE = 0.9
#: The exact matching is cubic: 8,192 latents take about a minute, and its table half a GB.
MAX_EXACT = 8192


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length one; rows of nothing stay nothing."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def match(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one pairs (rows, columns) of the largest total similarity: min(n, m) of them.

    Where both have more than `MAX_EXACT`, only pairs that are each other's best are kept: fewer pairs,
    a lower bound.
    """
    from scipy.optimize import linear_sum_assignment

    if min(similarity.shape) <= MAX_EXACT:
        return linear_sum_assignment(similarity, maximize=True)
    best, back = similarity.argmax(1), similarity.argmax(0)
    rows = np.flatnonzero(back[best] == np.arange(len(best)))
    return rows, best[rows]


@dataclass
class Fired:
    """Codes of one SAE on held-out rows: `codes` csr (n, d_sae), alive latents, firing mass."""

    codes: Any
    alive: np.ndarray
    mass: np.ndarray


@torch.no_grad()
def codes_of(sae: LinearSAE, rows: Rows | np.ndarray) -> Fired:
    """Encode rows (n, d_in) and keep what is not zero, in float32."""
    from scipy.sparse import csr_matrix, vstack

    checked_width(sae, rows)
    parts = [
        csr_matrix(sae.encode(part).numpy()) for _, part in chunks(rows, chunk_rows(sae.d_sae))
    ]
    codes = vstack(parts, format="csr") if parts else csr_matrix((0, sae.d_sae), dtype=np.float32)
    mass = np.asarray(codes.sum(0, dtype=np.float64)).ravel()
    return Fired(codes, np.flatnonzero(codes.getnnz(axis=0)), mass)


def code_correlation(one: Any, other: Any) -> np.ndarray:
    """Pearson correlation of the columns of two sparse tables (n, h), (n, m): (h, m) float64; 0 for
    a column that never changes."""
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
    saes: Sequence[LinearSAE],
    rows: Rows | np.ndarray,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare the first of `saes` with each of the others on held-out rows (n, d_in).

    Returns figures (means over the others, `low` and `high` the extremes over them: there is no
    sampling of seeds to speak of with three) `decoder_cosine`, `encoder_cosine`, `share_decoder_07`,
    `share_decoder_09`, `shared` (decoder and encoder ≥ .7), `shared_by_mass` (weighted by the firing
    mass of the latents), `mmcs`, `code_correlation`, `share_code_07`, and for the first SAE
    `per_latent` {`stable`: shared with every other, None where it never fires; `agreement`: the mean
    over the others of the smaller of the two cosines}. `n` counts the alive latents of the first.

    Errors: UserInputError for fewer than two, other widths, or the same weights twice;
    EvidenceError when nothing fires.
    """
    names = list(names) if names is not None else [f"SAE {i}" for i in range(len(saes))]
    _check(saes, names)
    fired = [codes_of(sae, rows) for sae in saes]
    for name, one in zip(names, fired, strict=True):
        if not len(one.alive):
            raise EvidenceError(
                f"no latent of {name} fires on the {one.codes.shape[0]} rows", None, {"alive": 0}
            )
    first = saes[0]
    alive, mass = fired[0].alive, fired[0].mass[fired[0].alive]
    rng = np.random.default_rng(
        [seed, 1]
    )  # not the stream that made-up rows of the same seed come from
    pairs = [
        _compare(first, other, fired[0], theirs)
        for other, theirs in zip(saes[1:], fired[1:], strict=True)
    ]
    random, data = (
        _chance(unit(first.W_dec.numpy()[alive]), unit(first.W_enc.numpy().T[alive]), directions)
        for directions in (
            rng.normal(size=(len(fired[1].alive), first.d_in)),
            _data_directions(rows, len(fired[1].alive), rng),
        )
    )
    agreement = np.minimum(
        np.stack([pair["decoder"] for pair in pairs]), np.stack([pair["encoder"] for pair in pairs])
    )
    shared = agreement >= SHARED
    weight = mass / mass.sum()

    def over(values: Sequence[float], control: float | None = None, control_is: str | None = None):
        span = (min(values), max(values))
        return figure(
            float(np.mean(values)), len(alive), span, control=control, control_is=control_is
        )

    per_latent_stable: list[bool | None] = [None] * first.d_sae
    per_latent: list[float | None] = [None] * first.d_sae
    for place, latent in enumerate(alive.tolist()):
        per_latent_stable[latent] = bool(shared[:, place].all())
        per_latent[latent] = number(float(agreement[:, place].mean()))
    by_chance = "random unit vectors"
    exact = all(min(len(alive), len(other.alive)) <= MAX_EXACT for other in fired[1:])
    return {
        "decoder_cosine": over([p["decoder"].mean() for p in pairs], random["mean"], by_chance),
        "decoder_cosine_of_rows": number(data["mean"]),
        "encoder_cosine": over([p["encoder"].mean() for p in pairs], random["encoder"], by_chance),
        "share_decoder_07": over(
            [(p["decoder"] >= SHARED).mean() for p in pairs], random["decoder_shared"], by_chance
        ),
        "share_decoder_09": over(
            [(p["decoder"] >= CLOSE).mean() for p in pairs], random["close"], by_chance
        ),
        "shared": over(shared.mean(1).tolist(), random["shared"], by_chance),
        "shared_by_mass": over((shared @ weight).tolist(), random["shared"], by_chance),
        "mmcs": over([p["mmcs"] for p in pairs], random["mmcs"], by_chance),
        "code_correlation": over(
            [p["codes"].mean() for p in pairs],
            float(np.mean([p["codes_chance"] for p in pairs])),
            "rows of one shifted against the other",
        ),
        "share_code_07": over([(p["codes"] >= SHARED).mean() for p in pairs]),
        "stable": figure(float(shared.all(0).mean()), len(alive)),
        "against": list(names[1:]),
        "n_rows": int(fired[0].codes.shape[0]),
        "matching": "one to one" if exact else "each other's best",
        "per_latent": {"stable": per_latent_stable, "agreement": per_latent},
    }


def _check(saes: Sequence[LinearSAE], names: Sequence[str]) -> None:
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
                    "another seed is wanted: dermaudit fit --seed",
                )


def _compare(first: LinearSAE, other: LinearSAE, ours: Fired, theirs: Fired) -> dict[str, Any]:
    """`decoder`, `encoder`, `codes`: matched similarity of each alive latent of the first (a latent
    without a partner has 0); `mmcs`."""
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
    # The same codes, of other rows: half the rows on, so that neighbours of one image part.
    shifted = one[np.roll(np.arange(one.shape[0]), one.shape[0] // 2)]
    chance = code_correlation(shifted, two)
    rows, columns = match(chance)
    return {
        **found,
        "mmcs": float(cosine.max(1).mean()),
        "codes_chance": float(chance[rows, columns].sum() / len(a)),
    }


def _chance(decoder: np.ndarray, encoder: np.ndarray, directions: np.ndarray) -> dict[str, float]:
    """The same match with directions that were not fitted, each its own encoder and decoder."""
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


def _data_directions(rows: Rows | np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    n = rows.n if hasattr(rows, "read") else len(rows)
    index = np.sort(rng.choice(n, min(count, n), replace=False))
    picked = rows.take(index) if hasattr(rows, "take") and hasattr(rows, "read") else rows[index]
    picked = np.asarray(picked, dtype=np.float64)
    return picked - picked.mean(0)
