"""A concept latent: one JumpReLU latent fitted on images with and without a concept.

    pre = x · encoder + bias,  z = pre if pre > threshold else 0,  x' = x − z · decoder

On standardised rows u = (x − mean) / sd of the fitting rows:

- The encoder is a logistic regression of the concept. Fit it on rows of one class of the prediction
  (benign), so that its direction does not contain the diagnosis.
- All levels come from out-of-fold scores s. z is 0 at the mean score of the rows without the concept,
  and fires above their 75 % quantile.
- The decoder is the difference of the class means of u, as long as makes the means of rows with and
  without the concept equal after the edit: Δu / (E[z | with] − E[z | without]). This is the condition of
  LEACE (arXiv 2306.03819), met by rows that fire alone; all others keep their bits.

Several concepts jointly: artifacts that go together share directions, and two latents that were fitted apart
take the shared part away twice. `fit(…, after=[A, …])` fits on what A leaves, x − z_A · decoder_A, with an
encoder orthogonal to decoder_A. Its code of x is then that of what A leaves, so that both latents read the same
x and are suppressed together, as latents of one SAE.

JumpReLU: arXiv 2407.14435. Latents appended to an SAE: CB-SAE, arXiv 2512.10805.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from dermaudit.errors import EvidenceError, UserInputError
from dermaudit.stats.folds import group_folds
from dermaudit.stats.intervals import auroc, auroc_interval

from ..inference.model import ThresholdSAE

if TYPE_CHECKING:
    from jaxtyping import Float

MIN_IMAGES = 10  # with the concept, and without it
C = 0.01  # inverse strength of the L2 penalty of the encoder
FREE_QUANTILE = 0.75  # of the scores of rows without the concept: the latent fires above it
FOLDS = 5


@dataclass(frozen=True)
class FitFigures:
    """What is known of a fit: the AUROC of the out-of-fold scores with its 95 % interval over groups, and
    the share of rows with and without the concept where the latent fires.
    """

    n_with: int
    n_without: int
    auroc: float
    auroc_ci: tuple[float, float]
    fires_with: float
    fires_without: float


@dataclass(frozen=True)
class ConceptLatent:
    """`encoder` (d,), `bias`, `threshold` ≥ 0 and `decoder` (d,) of unit length, for rows as they are
    (not standardised). z is in units of the rows: the length of the change. `figures` of a fit.
    """

    encoder: Float[np.ndarray, " d"]
    bias: float
    threshold: float
    decoder: Float[np.ndarray, " d"]
    figures: FitFigures | None = None

    @classmethod
    def fit(
        cls,
        x_with: Float[np.ndarray, "n d"],
        x_without: Float[np.ndarray, "m d"],
        *,
        groups_with: np.ndarray | None = None,
        groups_without: np.ndarray | None = None,
        after: Sequence[ConceptLatent] = (),
        seed: int = 0,
    ) -> ConceptLatent:
        """Fit on rows with the concept (n, d) and without it (m, d), or on what the latents `after` leave of
        them. Rows of a group (a patient, a lesion) stay together in the folds; by default each row is its own
        group.

        Raises EvidenceError with the numbers for fewer than MIN_IMAGES rows of either kind, and where the
        out-of-fold scores separate them no better than chance; UserInputError for a row in both.
        """
        x = np.concatenate([x_with, x_without]).astype(np.float64)
        present = np.repeat([1, 0], [len(x_with), len(x_without)])
        given = [
            np.array([f"{kind}{i}" for i in range(len(rows))]) if groups is None else groups
            for kind, rows, groups in (
                ("with", x_with, groups_with),
                ("without", x_without, groups_without),
            )
        ]
        _check_rows(x_with, x_without)
        return _fit(x, present, np.concatenate(given).astype(str), seed, after)

    @classmethod
    def of_sae(cls, sae: ThresholdSAE) -> list[ConceptLatent]:
        """Return the latents of an SAE that holds nothing else, as `as_sae` and `append_latents` make it."""
        return [
            cls(
                encoder=sae.W_enc[:, j].double().numpy(),
                bias=float(sae.b_enc[j]),
                threshold=float(sae.threshold[j]),
                decoder=sae.W_dec[j].double().numpy(),
            )
            for j in range(sae.d_sae)
        ]

    def codes(self, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Return the code (n,) of each row."""
        pre = x @ self.encoder + self.bias
        return np.where(pre > self.threshold, pre, 0.0)

    def as_sae(self, metadata: dict[str, Any] | None = None) -> ThresholdSAE:
        """Return the SAE of this latent alone; `LatentSuppressor(latent.as_sae(), [0])` suppresses it."""
        d = len(self.encoder)
        nothing = ThresholdSAE(
            W_enc=torch.zeros(d, 0),
            W_dec=torch.zeros(0, d),
            b_enc=torch.zeros(0),
            b_dec=torch.zeros(d),
            threshold=torch.zeros(0),
            metadata=metadata or {},
        )
        return append_latents(nothing, [self])


def append_latents(sae: ThresholdSAE, latents: Sequence[ConceptLatent]) -> ThresholdSAE:
    """Return an SAE with the concept latents after its own, in their order.

    Its file is `jumprelu`, which stock sae-lens opens. UserInputError for latents of another width.
    """
    for latent in latents:
        if len(latent.encoder) != sae.d_in:
            raise UserInputError(
                f"a concept latent for rows of width {len(latent.encoder)} does not fit an SAE of "
                f"width {sae.d_in}",
                "fit it on the activations of the same site",
            )

    if not latents:
        return sae

    def tensor(values: list[Any]) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values), dtype=sae.W_enc.dtype)

    encoders = tensor([latent.encoder for latent in latents]).T
    # An SAE subtracts b_dec before it encodes; a concept latent does not.
    biases = tensor([latent.bias for latent in latents]) + sae.b_dec @ encoders
    return ThresholdSAE(
        W_enc=torch.cat([sae.W_enc, encoders], 1),
        W_dec=torch.cat([sae.W_dec, tensor([latent.decoder for latent in latents])]),
        b_enc=torch.cat([sae.b_enc, biases]),
        b_dec=sae.b_dec,
        threshold=torch.cat([sae.threshold, tensor([latent.threshold for latent in latents])]),
        metadata=sae.metadata,
    )


def _check_rows(x_with: np.ndarray, x_without: np.ndarray) -> None:
    counts = {"n_with": len(x_with), "n_without": len(x_without)}
    if min(counts.values()) < MIN_IMAGES:
        raise EvidenceError(
            f"too few images to fit a concept latent: {len(x_with)} with the concept, "
            f"{len(x_without)} without",
            f"at least {MIN_IMAGES} of each are needed",
            counts,
        )
    both = {row.tobytes() for row in x_with} & {row.tobytes() for row in x_without}
    if both:
        raise UserInputError(
            f"{len(both)} images are given both with and without the concept",
            "give each image once",
        )


def _fit(
    x: np.ndarray,
    present: np.ndarray,
    groups: np.ndarray,
    seed: int,
    after: Sequence[ConceptLatent],
) -> ConceptLatent:
    mean, sd, u, seen = standardised(x, after)
    with threadpool_limits(1, "blas"):
        score = out_of_fold_scores(seen, present, groups, seed=seed)
        weight, intercept = fit_encoder(seen, present)
    low, high = auroc_interval(present, score, groups, seed=seed)
    if not low > 0.5:
        raise EvidenceError(
            f"images with and without the concept are not told apart: AUROC {auroc(present, score):.2f} "
            f"[{low:.2f}, {high:.2f}] of {present.sum()} and {(1 - present).sum()} images",
            "give more images, or check their labels: the model may not see this concept",
            {
                "auroc": auroc(present, score),
                "auroc_ci": [low, high],
                "n_with": int(present.sum()),
                "n_without": int((1 - present).sum()),
            },
        )
    level = score[present == 0].mean()
    threshold = max(float(np.quantile(score[present == 0], FREE_QUANTILE)), float(level))
    z = np.where(score > threshold, score - level, 0.0)
    gap = u[present == 1].mean(0) - u[present == 0].mean(0)
    step = gap / (z[present == 1].mean() - z[present == 0].mean())
    figures = FitFigures(
        n_with=int(present.sum()),
        n_without=int((1 - present).sum()),
        auroc=auroc(present, score),
        auroc_ci=(low, high),
        fires_with=float((z[present == 1] > 0).mean()),
        fires_without=float((z[present == 0] > 0).mean()),
    )
    return on_raw_rows(Standardised(mean, sd, weight, intercept, level, threshold, step), figures)


def standardised(
    x: Float[np.ndarray, "n d"], after: Sequence[ConceptLatent] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return mean and sd (d,) of what the latents `after` leave of rows x, that in units of them (n, d), and the
    same without the directions of the latents, which an encoder (weight / sd on rows x) is fitted on.
    """
    left = x - sum((np.outer(one.codes(x), one.decoder) for one in after), np.zeros_like(x))
    mean, sd = left.mean(0), left.std(0) + 1e-8
    u = (left - mean) / sd
    if not after:
        return mean, sd, u, u
    basis, _ = np.linalg.qr(np.stack([one.decoder / sd for one in after], 1))
    return mean, sd, u, u - u @ basis @ basis.T


class Standardised(NamedTuple):
    """A latent of standardised rows u = (x − mean) / sd: z = s − level where s = u · weight + intercept is above
    the threshold, and u' = u − z · step.
    """

    mean: np.ndarray
    sd: np.ndarray
    weight: np.ndarray
    intercept: float
    level: float
    threshold: float
    step: np.ndarray


def on_raw_rows(given: Standardised, figures: FitFigures) -> ConceptLatent:
    """Return the same latent for rows that are not standardised, with a decoder of unit length."""
    mean, sd, weight, intercept, level, threshold, step = given
    length = float(np.linalg.norm(step * sd))  # moved from the decoder to the encoder
    return ConceptLatent(
        encoder=weight / sd * length,
        bias=float((intercept - (mean / sd) @ weight - level) * length),
        threshold=float((threshold - level) * length),
        decoder=step * sd / length,
        figures=figures,
    )


def out_of_fold_scores(
    u: Float[np.ndarray, "n d"], present: np.ndarray, groups: np.ndarray, *, seed: int = 0
) -> Float[np.ndarray, " n"]:
    """Return the score (n,) of each row by an encoder that saw no row of its group."""
    folds = min(FOLDS, *(len(set(groups[present == kind])) for kind in (0, 1)))
    if folds < 2:
        raise EvidenceError(
            "all images with the concept, or all without it, are of one group: nothing can be held out",
            "give images of more patients or lesions",
            {"groups": int(folds)},
        )
    score = np.full(len(u), np.nan)
    for fit, held in group_folds(present, groups, folds, seed):
        weight, intercept = fit_encoder(u[fit], present[fit])
        score[held] = u[held] @ weight + intercept
    return score


def fit_encoder(u: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weight (d,) and intercept of a logistic regression on standardised rows u (n, d)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=C, max_iter=2000).fit(u, present)
    return model.coef_[0], float(model.intercept_[0])
