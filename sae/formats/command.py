"""The commands `sae show` and `sae import`: describe an SAE checkpoint, convert one of another program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dermaudit.errors import UserInputError

if TYPE_CHECKING:
    from ..inference.model import ThresholdSAE, TopKSAE

CheckpointArgument = Annotated[
    Path, typer.Argument(help="a checkpoint of any known program, or the folder that holds it")
]
KOption = Annotated[
    int | None,
    typer.Option(
        "--k",
        help="active latents of a row, if the file does not contain it (overcomplete); 0: ReLU",
        min=0,
    ),
]


def show(checkpoint: CheckpointArgument, k: KOption = None) -> dict[str, Any]:
    """Describe a sparse autoencoder on disk: family, architecture, shapes, threshold, norms."""
    _refuse_absent(checkpoint)
    from dermaudit.files import read_json

    from . import family_of, read_foreign

    family = family_of(checkpoint).NAME
    facts = {"family": family, **describe(read_foreign(checkpoint, k=k))}
    metrics = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / "metrics.json"
    if family == "sae-lens" and metrics.is_file():
        facts["metrics"] = read_json(metrics, "metrics")
    _say(facts)
    return facts


def import_(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path, typer.Option("--out", help="folder for cfg.json and sae_weights.safetensors")
    ],
    site: Annotated[
        str | None, typer.Option(help="hook point it belongs to, e.g. visual.pooled")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="model whose activations it was fitted on")
    ] = None,
    k: KOption = None,
    force: Annotated[bool, typer.Option(help="write over an SAE that is at --out")] = False,
) -> dict[str, Any]:
    """Read another program's checkpoint and write it in the layout of sae-lens, the codes the same.

    Only weights are read: a file that holds pickled code is refused.
    """
    _refuse_absent(checkpoint)
    if out.exists() and not out.is_dir():
        raise UserInputError(f"--out {out} is a file", "give a folder")
    if (out / "cfg.json").exists() and not force:
        raise UserInputError(
            f"there is an SAE at --out {out} already", "add --force to write over it"
        )
    from dermaudit.console import say
    from dermaudit.files import sha256_file

    from ..inference.model import WEIGHTS, load_sae
    from . import family_of, read_foreign
    from .checkpoint import torch_file

    sae = read_foreign(checkpoint, k=k)
    source = _weights(checkpoint, torch_file(checkpoint))
    # Who reads the folder later finds what it came from, without a path of this machine.
    sae.metadata = {
        "imported_from": family_of(checkpoint).NAME,
        **sae.metadata,
        **{name: value for name, value in (("hook_name", site), ("model_name", model)) if value},
        "source_file": source.name,
        "source_sha256": sha256_file(source),
    }
    sae.save(out)
    facts = {
        "out": str(out), "family": "sae-lens", "sha256": sha256_file(out / WEIGHTS),
        **describe(load_sae(out)),
    }  # fmt: skip
    _say(facts)
    if not facts["hook_name"]:
        say("  it has no site yet: import it again with --site to use it in a run")
    return facts


def describe(sae: ThresholdSAE | TopKSAE) -> dict[str, Any]:
    """Return the properties of an SAE for JSON; `metadata` without entries that have their own key."""
    from ..inference.model import ReLUSAE, ThresholdSAE, TopKSAE

    own = ("hook_name", "model_name", "imported_from", "notes", "k", "training_architecture")
    details = sae.metadata
    norms = sae.W_dec.norm(dim=1)
    facts: dict[str, Any] = {
        "imported_from": details.get("imported_from"),
        "architecture": sae.architecture,
        "training_architecture": details.get("training_architecture", sae.architecture),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "hook_name": sae.hook_name,
        "model_name": str(details.get("model_name") or ""),
    }
    facts["k"] = sae.k if isinstance(sae, TopKSAE) else details.get("k")
    if isinstance(sae, ThresholdSAE) and not isinstance(sae, ReLUSAE):
        facts["threshold"] = round(float(sae.threshold.mean()), 6)
        facts["threshold_range"] = _range(sae.threshold)
    return {
        **facts,
        "decoder_norm": round(float(norms.mean()), 6),
        "decoder_norm_range": _range(norms),
        "encoder_bias_range": _range(sae.b_enc),
        "input_bias_norm": round(float(sae.b_dec.norm()), 6),
        "notes": list(details.get("notes", [])),
        "metadata": {name: value for name, value in details.items() if name not in own},
    }


def _range(tensor: Any) -> list[float]:
    return [round(float(tensor.min()), 6), round(float(tensor.max()), 6)]


def _say(facts: dict[str, Any]) -> None:
    from dermaudit.console import say

    for name, value in facts.items():
        if isinstance(value, dict):
            for inner, entry in value.items():
                say(f"  {name}.{inner}: {entry}")
        elif isinstance(value, list) and name == "notes":
            for note in value:
                say(f"  note: {note}")
        elif value not in ("", None):
            say(f"  {name}: {' … '.join(map(str, value)) if isinstance(value, list) else value}")


def _weights(checkpoint: Path, torch_file: Path | None) -> Path:
    """Return the file with the weights, for any family."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    for name in ("sae_weights.safetensors", "sae.safetensors"):
        if (folder / name).is_file() and (checkpoint.is_dir() or checkpoint.suffix != ".pt"):
            return folder / name
    return torch_file or checkpoint


def _refuse_absent(checkpoint: Path) -> None:
    if not checkpoint.exists():
        raise UserInputError(
            f"{checkpoint} does not exist", "give a checkpoint, or the folder that holds it"
        )
