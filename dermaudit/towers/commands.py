"""`dermaudit models`: which models can be opened by name, and under which licence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dermaudit.console import say, table

from .cards import read_card
from .names import architectures, bundled_folder, bundled_names


@dataclass(frozen=True)
class HubModel:
    name: str
    what: str
    licence: str
    note: str


HUB_MODELS: tuple[HubModel, ...] = (
    HubModel(
        "hf-hub:redlessone/DermLIP_ViT-B-16",
        "DermLIP, ViT-B/16 (Derm1M, arXiv 2503.14911)",
        "CC BY-NC 4.0",
        "",
    ),
    HubModel(
        "hf-hub:redlessone/DermLIP_PanDerm-base-w-PubMed-256",
        "DermLIP with PanDerm-base and PubMedBERT (arXiv 2503.14911)",
        "CC BY-NC 4.0",
        "",
    ),
    HubModel(
        "hf-hub:redlessone/DermFM-Zero",
        "DermFM-Zero-Open, PanDerm-large and PubMedBERT (arXiv 2602.10624)",
        "CC BY-NC-ND 4.0",
        "1.7 GB",
    ),
    HubModel("hf-hub:xieji-x/MAKE", "MAKE, ViT-B/16 (arXiv 2505.09372)", "see its card", ""),
)


def models() -> dict[str, Any]:
    """List the models that can be opened by name."""
    folder = bundled_folder()
    bundled = []
    for name in bundled_names():
        size = sum(p.stat().st_size for p in (folder / name).iterdir() if p.is_file())
        bundled.append(
            {"name": name, "mb": round(size / 1e6, 1), "licence": read_card(folder / name).licence}
        )
    hub = [
        {"name": m.name, "what": m.what, "licence": m.licence, "note": m.note} for m in HUB_MODELS
    ]
    table(
        "Bundled checkpoints",
        ("name", "MB", "licence"),
        [(m["name"], m["mb"], m["licence"]) for m in bundled] or [("none installed", "", "")],
    )
    table(
        "On the Hugging Face hub (a gated one needs `hf auth login` and its terms accepted)",
        ("name", "licence", "what", "note"),
        [(m["name"], m["licence"], m["what"], m["note"]) for m in hub],
    )
    count = len(architectures())
    say(
        "\n  Also local-dir:<folder>, any hf-hub:<org>/<repo> in the format of open_clip, and the\n"
        f"  {count} architectures of open_clip as <architecture>/<tag>, such as ViT-B-16/openai."
    )
    return {"bundled": bundled, "hub": hub, "open_clip_architectures": count}
