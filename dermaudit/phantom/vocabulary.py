"""The words of a phantom: clinical concepts, artifacts, diagnoses (the seven of HAM10000)."""

from __future__ import annotations

CONCEPTS: tuple[str, ...] = (
    "asymmetry",
    "irregular_border",
    "color_black",
    "color_blue_gray",
    "color_red",
    "color_white",
    "color_light_brown",
    "color_dark_brown",
    "pigment_network_typical",
    "pigment_network_atypical",
    "globules",
    "streaks",
    "milia_like_cyst",
    "blue_whitish_veil",
    "regression",
    "scale",
    "ulceration",
    "arborising_vessels",
)

# In the order in which they are laid over the image: what lies on the skin first, the optics last.
ARTIFACTS: tuple[str, ...] = (
    "ruler",
    "ink",
    "hair",
    "gel_bubble",
    "gel_border",
    "dark_corner",
    "patch",
)

DIAGNOSES: tuple[str, ...] = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")

SKIN_TYPES: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
