"""The words a zero-shot classifier is asked with: classes, their names, and templates around them.

Typed, so that a class, its code in HAM10000 and its names stay together. Names are those that
dermatologists write (Tschandl et al., HAM10000, Sci Data 5:180161) and that the captions of the
bundled checkpoints use.
"""

from __future__ import annotations

from dataclasses import dataclass

#: one `{}` each. Kept short and alike: a long template drowns the name in a small text tower.
TEMPLATES: tuple[str, ...] = (
    "a dermoscopic image of {}",
    "dermoscopy of {}",
    "a dermoscopic image showing {}",
    "a skin lesion, {}",
)


@dataclass(frozen=True)
class DiagnosisClass:
    """`code`: the label in HAM10000's tables; `malignant` counts pre-malignant akiec as such."""

    code: str
    names: tuple[str, ...]
    malignant: bool = False


HAM_CLASSES: tuple[DiagnosisClass, ...] = (
    DiagnosisClass("akiec", ("actinic keratosis", "bowen disease"), True),
    DiagnosisClass("bcc", ("basal cell carcinoma",), True),
    DiagnosisClass("bkl", ("benign keratosis", "seborrheic keratosis")),
    DiagnosisClass("df", ("dermatofibroma",)),
    DiagnosisClass("mel", ("melanoma", "malignant melanoma"), True),
    DiagnosisClass("nv", ("melanocytic nevus", "nevus")),
    DiagnosisClass("vasc", ("vascular lesion", "angioma")),
)


def ham_classes() -> dict[str, list[str]]:
    """Return the seven classes: code -> names."""
    return {c.code: list(c.names) for c in HAM_CLASSES}


def melanoma_or_rest() -> dict[str, list[str]]:
    """Two classes: "mel" against the names of the six others under "rest"."""
    rest = [name for c in HAM_CLASSES if c.code != "mel" for name in c.names]
    return {"rest": rest, "mel": ham_classes()["mel"]}
