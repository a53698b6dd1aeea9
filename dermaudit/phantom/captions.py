"""Captions of phantoms: one sentence over everything, and MAKE-style sub-captions, a fact each.

The wording has its own random streams, so that it never moves a pixel.
"""

from __future__ import annotations

import numpy as np

from .scene import Scene
from .seeds import stream
from .vocabulary import ARTIFACTS, CONCEPTS

# MAKE's manifests have subcaption_1 .. subcaption_8.
MAX_SUBCAPTIONS = 8

DIAGNOSIS_WORDS = {
    "akiec": ("actinic keratosis", "intraepithelial carcinoma", "Bowen's disease"),
    "bcc": ("basal cell carcinoma", "BCC"),
    "bkl": ("benign keratosis", "seborrheic keratosis", "solar lentigo"),
    "df": ("dermatofibroma",),
    "mel": ("melanoma", "malignant melanoma"),
    "nv": ("melanocytic nevus", "nevus", "benign mole"),
    "vasc": ("vascular lesion", "hemangioma", "angioma"),
}

CONCEPT_WORDS = {
    "asymmetry": ("asymmetry", "an asymmetric shape", "asymmetric structure and colour"),
    "irregular_border": ("an irregular border", "jagged edges", "an irregular, notched border"),
    "color_black": ("black", "black pigment", "jet black areas"),
    "color_blue_gray": ("blue-gray", "blue-gray areas", "gray-blue colour"),
    "color_red": ("red", "reddish areas", "red colour"),
    "color_white": ("white", "white areas", "whitish colour"),
    "color_light_brown": ("light brown", "tan", "light brown pigment"),
    "color_dark_brown": ("dark brown", "dark brown pigment", "deep brown"),
    "pigment_network_typical": ("a typical pigment network", "a regular pigment network"),
    "pigment_network_atypical": ("an atypical pigment network", "an irregular pigment network"),
    "globules": ("globules", "round globules", "dots and globules"),
    "streaks": ("streaks", "radial streaks", "streaks at the periphery"),
    "milia_like_cyst": ("milia-like cysts", "milia like cysts", "bright milia-like cysts"),
    "blue_whitish_veil": ("a blue-whitish veil", "a blue white veil"),
    "regression": ("regression structures", "regression with peppering", "scar-like regression"),
    "scale": ("scale", "scaling", "white surface scale"),
    "ulceration": ("ulceration", "an ulcerated area", "ulceration with crust"),
    "arborising_vessels": ("arborising vessels", "arborizing vessels", "branching vessels"),
}

ARTIFACT_WORDS = {
    "ruler": ("a ruler", "ruler markings", "a measuring scale"),
    "ink": ("ink", "purple pen marks", "surgical ink markings"),
    "hair": ("hair", "hairs over the skin", "dark hairs"),
    "gel_bubble": ("gel bubbles", "air bubbles in the gel", "bubbles"),
    "gel_border": ("a gel border", "the edge of the immersion gel", "a gel edge"),
    "dark_corner": ("dark corners", "a dark vignette", "black corners"),
    "patch": ("a coloured patch", "a colour calibration patch", "a sticker"),
}

_SKIN = (
    "Fitzpatrick type {roman} skin",
    "Fitzpatrick skin type {roman}",
    "{tone} skin, Fitzpatrick type {roman}",
)
_ROMAN = ("I", "II", "III", "IV", "V", "VI")
_TONE = ("very fair", "fair", "medium", "olive", "brown", "dark brown")

_SEES = ("showing {}", "with {}", "featuring {}")
_OVERLAY = ("{} can be seen in the image.", "The image also contains {}.", "Artifacts: {}.")
_ONE = {
    "dx": (
        "This is {}.",
        "Dermoscopy of {}.",
        "The diagnosis is {}.",
        "A dermoscopic image of {}.",
    ),
    "skin": ("The lesion lies on {}.", "Background: {}.", "Skin: {}."),
    "colors": ("The colours are {}.", "The lesion shows {}.", "Colours: {}."),
    "concept": ("There is {}.", "The lesion shows {}.", "Dermoscopy reveals {}.", "{} present."),
    "artifact": ("The photograph shows {}.", "{} in the image.", "There is {} in the picture."),
}


def caption(scene: Scene) -> str:
    """One or two sentences that name the diagnosis, every concept and every artifact."""
    rng = stream(scene.seed, scene.index, "caption")
    name = _pick(rng, DIAGNOSIS_WORDS[scene.diagnosis])
    seen = [_pick(rng, CONCEPT_WORDS[c]) for c in CONCEPTS if scene.concepts[c]]
    rng.shuffle(seen)
    text = f"{_pick(rng, ('A dermoscopic image of', 'Dermoscopy of', 'Dermoscopic photograph of'))}"
    text += f" {_article(name)} on {_skin(rng, scene)}"
    text += f" {_pick(rng, _SEES).format(_join(seen))}."
    laid = [_pick(rng, ARTIFACT_WORDS[a]) for a in ARTIFACTS if scene.artifacts[a]]
    if laid:
        rng.shuffle(laid)
        text += " " + _sentence(_pick(rng, _OVERLAY).format(_join(laid)))
    return text


def subcaptions(scene: Scene) -> list[str]:
    """Up to MAX_SUBCAPTIONS short sentences, shuffled; every fact is in one of them."""
    rng = stream(scene.seed, scene.index, "subcaptions")
    colors = [c for c in CONCEPTS if scene.concepts[c] and c.startswith("color_")]
    others = [c for c in CONCEPTS if scene.concepts[c] and not c.startswith("color_")]
    laid = [a for a in ARTIFACTS if scene.artifacts[a]]
    fixed = [
        _say(rng, "dx", _article(_pick(rng, DIAGNOSIS_WORDS[scene.diagnosis]))),
        _say(rng, "skin", _skin(rng, scene)),
        _say(rng, "colors", _join([_pick(rng, CONCEPT_WORDS[c]) for c in colors])),
    ]
    # What does not fit one to a sentence shares sentences, two or three facts in each.
    room = MAX_SUBCAPTIONS - len(fixed)
    for_artifacts = min(len(laid), max(room - len(others), 2))
    texts = [
        _say(rng, "artifact", _join([_pick(rng, ARTIFACT_WORDS[a]) for a in part]))
        for part in _deal(rng, laid, for_artifacts)
    ]
    texts += [
        _say(rng, "concept", _join([_pick(rng, CONCEPT_WORDS[c]) for c in part]))
        for part in _deal(rng, others, room - len(texts))
    ]
    texts += fixed
    rng.shuffle(texts)
    return texts


def _deal(rng: np.random.Generator, facts: list[str], hands: int) -> list[list[str]]:
    facts = [facts[k] for k in rng.permutation(len(facts))]
    hands = min(hands, len(facts))
    return [facts[k::hands] for k in range(hands)]


def _say(rng: np.random.Generator, kind: str, words: str) -> str:
    return _sentence(_pick(rng, _ONE[kind]).format(words))


def _skin(rng: np.random.Generator, scene: Scene) -> str:
    at = scene.skin_type - 1
    return _pick(rng, _SKIN).format(roman=_ROMAN[at], tone=_TONE[at])


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
