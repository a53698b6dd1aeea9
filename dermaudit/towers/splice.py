"""Replace an activation inside a model: with other values, or with what sae-lens SAEs make of it.

`replace_activation` is the one way in which this package edits a forward pass. With a sae-lens SAE the
output of a site x becomes decode(encode(x)) + (x - clean reconstruction), so that what no edited latent
touches stays as it was. Without this error term the embedding drifts before anything is suppressed
(PatchSAE-style splicing confounds every measured effect with the reconstruction error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermaudit.errors import ForeignArtifactError, UserInputError, unknown

from .open_clip_model import as_open_clip
from .taps import Tap, register, text_taps, visual_taps

if TYPE_CHECKING:
    from .hooked import HookedTower

POSITIONS = ("all", "patch", "cls", "prefix")

Change = Callable[[Tensor], Tensor | None]


@runtime_checkable
class HasSites(Protocol):
    """What is used of a HookedTower here, so that a plain model needs no transformer-lens."""

    name: str

    @property
    def n_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        ...

    def check_site(self, site: str) -> None:
        """Raise UserInputError if there is no such hook point."""

    def site_width(self, site: str) -> int:
        """Return the last dimension of the activation at an image site."""
        ...

    def hooks(self, fwd_hooks: Any) -> AbstractContextManager[Any]:
        """Return a context in which the hooks run."""
        ...


def token_slice(positions: str, n_prefix: int) -> slice:
    """Return the tokens of (n, tokens, d) that `positions` names.

    "all", "patch" (all but the prefix), "cls" (the first token) or "prefix" (the first `n_prefix`: the
    class token and the registers). Raises UserInputError for another word, or if there is no prefix.
    """
    check_positions(positions)
    if positions in ("cls", "prefix") and n_prefix < 1:
        raise UserInputError(f"positions '{positions}': there is no token before the patches")
    return {
        "all": slice(None),
        "patch": slice(n_prefix, None),
        "cls": slice(0, 1),
        "prefix": slice(0, n_prefix),
    }[positions]


def check_positions(positions: str) -> None:
    """Raise UserInputError for a word that is not in POSITIONS."""
    if positions not in POSITIONS:
        raise UserInputError(
            f"positions '{positions}': one of {', '.join(POSITIONS)}, or a boolean mask"
        )


def prefix_tokens(model: nn.Module | HasSites) -> int:
    """Return the number of tokens before the patches of a HookedTower or a plain open_clip model."""
    return (
        model.n_prefix_tokens
        if isinstance(model, HasSites)
        else visual_taps(as_open_clip(model).visual).n_prefix_tokens
    )


@contextmanager
def replace_activation(
    model: nn.Module | HasSites,
    site: str,
    change: Change,
    *,
    positions: str = "all",
    d_in: int | None = None,
) -> Iterator[None]:
    """Within the block, replace the activation x (n, tokens, d) or (n, d) at a site by `change(x)`.

    `model` is a HookedTower or a plain open_clip model; its weights, training mode and `requires_grad`
    are not touched. Of tokens only those at `positions` are passed to `change` and replaced. Where
    `change` returns None, the activation stays as it is, bit for bit. `d_in` is the width that
    `change` expects.

    A plain model has the sites that are outputs of its modules. `visual.pooled` is the direction of
    the image tower's output there: its length is kept, because the model normalises it afterwards.

    Raises UserInputError for an unknown site, ForeignArtifactError for another width.
    """
    selected = token_slice(positions, prefix_tokens(model)) if positions != "all" else slice(None)

    def replaced(x: Tensor) -> Tensor | None:
        _check_width(x.shape[-1], d_in, site)
        if x.ndim < 3 or positions == "all":
            return change(x)
        new = change(x[:, selected])
        if new is None:
            return None
        out = x.clone()
        out[:, selected] = new
        return out

    if isinstance(model, HasSites):
        model.check_site(site)
        if site.startswith("visual."):  # a tower knows the widths of its image sites only
            _check_width(model.site_width(site), d_in, site, f"the tower '{model.name}'")
        with model.hooks([(site, lambda x, hook: replaced(x))]):
            yield
        return
    handle = register(
        _tap_of(model, site), _on_direction(replaced) if site == _POOLED else replaced
    )
    try:
        yield
    finally:
        handle.remove()


_POOLED = "visual.pooled"


def _tap_of(model: nn.Module, site: str) -> Tap:
    """Return the tap of a plain open_clip model at a site. Raises UserInputError if there is none."""
    visual = as_open_clip(model).visual
    taps = [*visual_taps(visual).taps, *text_taps(model).taps]
    taps += [Tap(site, visual) for site in ("visual.embedding", _POOLED)]
    by_site = {tap.site: tap for tap in taps}
    if site not in by_site:
        raise unknown("site", site, by_site)
    return by_site[site]


def _check_width(width: int, d_in: int | None, site: str, model: str = "the model") -> None:
    if d_in not in (None, width):
        raise ForeignArtifactError(
            f"the SAE has d_in {d_in}, {model} has {width} at {site}: it belongs to another model or "
            "site"
        )


def _on_direction(change: Change) -> Change:
    """Return the change of vectors x (n, d) that applies `change` to x / |x| and keeps |x|."""

    def changed(x: Tensor) -> Tensor | None:
        unit = F.normalize(x, dim=-1)
        new = change(unit)
        if new is None:
            return None
        same = (new == unit).all(-1, keepdim=True)
        return torch.where(same, x, new * x.norm(dim=-1, keepdim=True))

    return changed


@contextmanager
def splice_saes(
    tower: HookedTower, saes: Sequence[Any], use_error_term: bool, positions: str
) -> Iterator[None]:
    """Within the block each sae-lens SAE runs at its site; afterwards its names and flags are back.

    The SAE's hook points are reachable as `<site>.hook_sae_input`, `.hook_sae_acts_pre`,
    `.hook_sae_acts_post`, `.hook_sae_recons`, `.hook_sae_error`, `.hook_sae_output`, as in
    HookedSAETransformer. A hook that is added at the site itself within the block sees what the SAE
    returns. `positions`: which tokens pass through the SAE ("patch" leaves the class token alone).

    Raises UserInputError for an unknown site or one that is given twice, ForeignArtifactError for a
    width that differs.
    """
    check_positions(positions)
    by_site: dict[str, Any] = {}
    for sae in saes:
        site = getattr(sae.cfg.metadata, "hook_name", None)
        if site is None:
            raise UserInputError("the SAE has no site (cfg.metadata.hook_name is empty)")
        if site in by_site:
            raise UserInputError(f"two SAEs for the site '{site}'")
        by_site[site] = sae
    before = (tower.hook_dict, tower.mod_dict)
    names = {point: point.name for sae in by_site.values() for point in sae.hook_dict.values()}
    flags = {sae: sae.use_error_term for sae in by_site.values()}
    with ExitStack() as replacements:
        for site, sae in by_site.items():
            replacements.enter_context(
                replace_activation(tower, site, sae, positions=positions, d_in=sae.cfg.d_in)
            )
        tower.hook_dict, tower.mod_dict = dict(tower.hook_dict), dict(tower.mod_dict)
        try:
            for site, sae in by_site.items():
                sae.use_error_term = use_error_term
                for name, point in sae.hook_dict.items():
                    point.name = f"{site}.{name}"
                    tower.hook_dict[point.name] = tower.mod_dict[point.name] = point
            yield
        finally:
            tower.hook_dict, tower.mod_dict = before
            for point, name in names.items():
                point.name = name
            for sae, flag in flags.items():
                sae.use_error_term = flag
