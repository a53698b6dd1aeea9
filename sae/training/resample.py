"""Resampling of dead latents at the rows with the largest error (DN-CBM, arXiv 2407.14499).

It follows Anthropic's Towards Monosemanticity: a row is drawn with probability ∝ its squared loss. The
decoder row of the latent becomes the direction of that row, its encoder column the same direction at a
fifth of the mean length of live latents, its bias 0, and its Adam moments 0. Directions are relative to
b_dec, as the encoder sees the rows. Otherwise embeddings whose mean is most of their length would all give
the direction of the mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sae_lens import JumpReLUTrainingSAE
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

ROWS = 8192  # rows whose error is computed
UNTIL = 0.5  # fraction of the steps after which no latent is resampled: it could not learn any more
_ENCODER_SCALE = 0.2


@torch.no_grad()
def resample(
    sae: TrainingSAE,
    optimizer: torch.optim.Optimizer,
    dead: Tensor,
    x: Tensor,
    rng: np.random.Generator,
) -> int:
    """Restart each `dead` (d_sae,) latent at a row of x (n, d_in), in units of training; return their number."""
    which = dead.nonzero()[:, 0]
    if not len(which):
        return 0
    sae.eval()
    loss = torch.cat(
        [((part - sae.decode(sae.encode(part))) ** 2).sum(1) for part in x.split(1024)]
    )
    sae.train()
    weight = loss.double().cpu().numpy() ** 2
    weight = weight / weight.sum() if weight.sum() > 0 else None
    enough = weight is None or np.count_nonzero(weight) >= len(which)
    drawn = rng.choice(len(x), len(which), replace=len(which) > len(x) or not enough, p=weight)
    away = x[torch.from_numpy(drawn).to(x.device)] - sae.b_dec
    direction = away / away.norm(dim=1, keepdim=True).clamp_min(1e-8)
    alive = ~dead
    assert isinstance(sae.b_enc, Tensor)
    encoder, decoder = sae.W_enc.norm(dim=0), sae.W_dec.norm(dim=1)
    length = encoder[alive].mean() if alive.any() else encoder.mean()
    sae.W_dec[which] = direction * (decoder[alive].mean() if alive.any() else decoder.mean())
    sae.W_enc[:, which] = direction.T * length * _ENCODER_SCALE
    sae.b_enc[which] = 0.0
    reset = [(sae.W_dec, (which,)), (sae.W_enc, (slice(None), which)), (sae.b_enc, (which,))]
    if isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold[which] = sae.cfg.jumprelu_init_threshold
        reset.append((sae.threshold, (which,)))
    for parameter, place in reset:
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state.get(parameter, {}):
                optimizer.state[parameter][name][place] = 0.0
    return len(which)
