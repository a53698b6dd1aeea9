"""The verified files of the reference that a bundled model ships (`checkpoints/<model>/reference`).

`reference.json` names every file with its sha256; a changed file is refused. `docs/scripts/reference.py` makes it
from runs. What the files hold is known to those who read them: SAEs in sae/training/reference.py, recipes and heads
in concepts/inference/reference.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from dermaudit.errors import AlteredArtifactError, unknown
from dermaudit.files import read_json, sha256_file, sha256_json

from .names import bundled_folder, bundled_names

FORMAT_VERSION = 2
_AGAIN = "install dermaudit again"


@dataclass(frozen=True)
class ReferenceFiles:
    """The files of the reference of a bundled model.

    `sha256` is that of everything in it, `fingerprint` that of the model. `made_from`: name and number of images, and
    the licence of the data set.
    """

    model: str
    folder: Path
    files: dict[str, str]
    made_from: dict[str, Any]
    fingerprint: str
    sha256: str

    @classmethod
    def load(cls, model: str) -> Self:
        """Return the reference of a bundled model. UserInputError for a model without one."""
        with_one = [name for name in sorted(bundled_names()) if _file(name).is_file()]
        if model not in with_one:
            raise unknown("model with a reference", model, with_one)
        path = _file(model)
        raw = read_json(path, "reference")
        if not isinstance(raw, dict) or raw.get("sha256") != sha256_json(raw.get("body")):
            raise AlteredArtifactError(f"{path} was altered", _AGAIN)
        body = raw["body"]
        fingerprint = body["model"]["fingerprint"]
        return cls(model, path.parent, body["files"], body["made_from"], fingerprint, raw["sha256"])

    @classmethod
    def of_model(cls, model: str) -> Self | None:
        """Return the reference of a model, or None where it has none."""
        bundled = model in bundled_names() and _file(model).is_file()
        return cls.load(model) if bundled else None

    def file(self, name: str) -> Path:
        """Return a file of the reference, verified."""
        path = self.folder / name
        if not path.is_file() or sha256_file(path) != self.files[name]:
            raise AlteredArtifactError(f"{path} is missing or was altered", _AGAIN)
        return path


def _file(model: str) -> Path:
    return bundled_folder() / model / "reference" / "reference.json"
