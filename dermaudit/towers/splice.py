"""sae-lens SAEs in the forward pass of a tower, with the error term kept.

The output of a site x becomes decode(encode(x)) + (x - clean reconstruction): what no edited latent
touches stays as it was. Without the error term the embedding drifts before anything is suppressed
(PatchSAE-style splicing confounds every measured effect with the reconstruction error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dermaudit.errors import UserInputError

if TYPE_CHECKING:
    from .hooked import HookedTower

POSITIONS = ("all", "patch", "prefix")


@contextmanager
def splice(
    tower: HookedTower, saes: Sequence[Any], use_error_term: bool, positions: str
) -> Iterator[None]:
    """Put each SAE at its site; on leaving, the previous set, names and flags are back.

    The SAE's hook points are reachable as `<site>.hook_sae_input`, `.hook_sae_acts_pre`,
    `.hook_sae_acts_post`, `.hook_sae_recons`, `.hook_sae_error`, `.hook_sae_output`, as in
    HookedSAETransformer. `positions`: which tokens pass through the SAE ("patch" leaves the class
    token alone). Errors: UserInputError for an unknown or doubled site or a width that differs.
    """
    if positions not in POSITIONS:
        raise UserInputError(f"positions '{positions}': one of {', '.join(POSITIONS)}")
    by_site: dict[str, Any] = {}
    for sae in saes:
        site = getattr(sae.cfg.metadata, "hook_name", None)
        if site is None:
            raise UserInputError("the SAE does not say its site (cfg.metadata.hook_name is empty)")
        tower.check_site(site)
        if site in by_site:
            raise UserInputError(f"two SAEs for the site '{site}'")
        if site.startswith("visual.") and sae.cfg.d_in != tower.site_width(site):
            raise UserInputError(
                f"the SAE for '{site}' has d_in {sae.cfg.d_in}, the tower "
                f"'{tower.name}' has {tower.site_width(site)} there: it belongs to another model"
            )
        by_site[site] = sae
    before = (tower._splices, tower.hook_dict, tower.mod_dict)
    names = {point: point.name for sae in by_site.values() for point in sae.hook_dict.values()}
    flags = {sae: sae.use_error_term for sae in by_site.values()}
    tower._splices = {**tower._splices}
    tower.hook_dict, tower.mod_dict = dict(tower.hook_dict), dict(tower.mod_dict)
    try:
        for site, sae in by_site.items():
            sae.use_error_term = use_error_term
            tower._splices[site] = _stand_in(tower, site, sae, positions)
            for name, point in sae.hook_dict.items():
                point.name = f"{site}.{name}"
                tower.hook_dict[point.name] = tower.mod_dict[point.name] = point
        yield
    finally:
        tower._splices, tower.hook_dict, tower.mod_dict = before
        for point, name in names.items():
            point.name = name
        for sae, flag in flags.items():
            sae.use_error_term = flag


def _stand_in(
    tower: HookedTower, site: str, sae: Any, positions: str
) -> Callable[[Tensor], Tensor]:
    point = tower._points[site]

    def run(x: Tensor) -> Tensor:
        x = point(x)
        out = sae(x)
        if positions == "all" or x.ndim < 3:
            return out
        token = torch.arange(x.shape[1], device=x.device)[:, None]
        is_prefix = token < tower.n_prefix_tokens
        return torch.where(is_prefix if positions == "prefix" else ~is_prefix, out, x)

    return run
