"""The names of pretrained image trunks that a recipe may start from (`model.start`). Nothing heavy is imported.

timm:<name>               weights of timm: from the hub's cache, the hub, or a file (`model.vision_init`)
open_clip:<arch>/<tag>    the image tower of a model of open_clip
package:<name>            weights that a Python package ships, as timm's model of the same architecture
"""

from __future__ import annotations

from dermaudit.towers.loading.packaged import PACKAGES

KINDS = ("timm", "open_clip", "package")


def split_start(start: str) -> tuple[str, str]:
    """Return (kind, name) of `model.start`. ValueError for a kind that there is not, or no name."""
    kind, _, name = start.partition(":")
    if kind not in KINDS or not name:
        raise ValueError("start is timm:<name>, open_clip:<arch>/<tag> or package:<name>")
    if kind == "open_clip" and "/" not in name:
        raise ValueError("start open_clip:<arch>/<tag> needs a tag, such as ViT-B-16/openai")
    if kind == "package" and name not in PACKAGES:
        raise ValueError(f"no package is known for '{name}': there are {', '.join(PACKAGES)}")
    return kind, name
