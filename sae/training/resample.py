"""Dead latents begin anew at the rows that are explained worst (DN-CBM, arXiv 2407.14499; after
Anthropic's Towards Monosemanticity).

A row is drawn with probability ∝ its squared loss. The latent's decoder row becomes that row's direction,
its encoder column the same direction at a fifth of the living latents' mean length, its bias 0, and
Adam forgets it. Directions are taken about b_dec, as the encoder sees the rows: of embeddings whose
mean is most of their length, the rows themselves would all give the mean's direction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sae_lens import JumpReLUTrainingSAE
from torch import Tensor

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

ROWS = 8192  # that are looked at
UNTIL = 0.5  # share of the steps after which no latent begins anew: it would have no time to learn
_ENCODER_SHARE = 0.2


@torch.no_grad()
def resample(
    sae: TrainingSAE,
    optimizer: torch.optim.Optimizer,
    dead: Tensor,
    x: Tensor,
    rng: np.random.Generator,
) -> int:
    """Give each `dead` (d_sae,) latent a row of x (n, d_in), in units of training; returns how many were."""
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
    sae.W_enc[:, which] = direction.T * length * _ENCODER_SHARE
    sae.b_enc[which] = 0.0
    forgotten = [(sae.W_dec, (which,)), (sae.W_enc, (slice(None), which)), (sae.b_enc, (which,))]
    if isinstance(sae, JumpReLUTrainingSAE):
        sae.threshold[which] = sae.cfg.jumprelu_init_threshold
        forgotten.append((sae.threshold, (which,)))
    for parameter, place in forgotten:
        for name in ("exp_avg", "exp_avg_sq"):
            if name in optimizer.state.get(parameter, {}):
                optimizer.state[parameter][name][place] = 0.0
    return len(which)
