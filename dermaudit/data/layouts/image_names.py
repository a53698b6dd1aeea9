"""Images by name: ids in a table, files in a folder with any suffix and letter case."""

from __future__ import annotations

import os
from pathlib import Path

from ..manifest.tables import IMAGE_SUFFIXES


class ImageNames:
    """The images below `folder`; `find("IMG_1")` is "a/img_1.JPG" (relative to `root`)."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder = folder
        self._exact: dict[str, list[str]] = {}
        self._folded: dict[str, list[str]] = {}
        for where, subfolders, files in os.walk(folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for file in sorted(files):
                stem, suffix = os.path.splitext(file)  # noqa: PTH122 (a million names)
                if suffix.lower() not in IMAGE_SUFFIXES or file.startswith("."):
                    continue
                path = Path(where, file).relative_to(root).as_posix()
                for name in (file, stem):
                    self._exact.setdefault(name, []).append(path)
                    self._folded.setdefault(name.lower(), []).append(path)

    def find(self, name: str) -> tuple[str | None, str]:
        """(path, "") or (None, why not). The name as it is written comes before other letter cases;
        its folder, if it names one, counts too."""
        name = name.replace("\\", "/")
        folder, _, base = name.rpartition("/")
        for found in (self._exact.get(base, []), self._folded.get(base.lower(), [])):
            if folder:
                within = [path for path in found if path.rpartition("/")[0].endswith(folder)]
                found = within or found
            if len(found) == 1:
                return found[0], ""
            if found:
                return None, f"{len(found)} images have this name: {', '.join(found[:3])}"
        return None, f"no image of this name is in {self.folder.name or self.folder}/"
