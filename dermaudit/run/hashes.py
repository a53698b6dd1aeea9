"""The sha256 of files that are read again and again, computed once while a file is unchanged.

A digest is kept under the file's size, modification and change time and inode, in the memory of the
process and in the user's cache folder ($XDG_CACHE_HOME/dermaudit). It is never kept inside a run: a
run can be copied, and its files can be compared byte by byte.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

from dermaudit.files import sha256_file, sha256_json, write_json

#: A file changed within this many seconds may change again without a new time stamp.
SETTLED = 2.0

Stat = tuple[int, int, int, int]


class FileHashes:
    """Digests of the files below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, tuple[Stat, str]] | None = None
        self._changed = False

    def digest(self, name: str) -> str | None:
        """Return the sha256 of a file (path relative to the folder), None if there is no such file."""
        path = self.folder / name
        try:
            stat = path.stat()
        except OSError:
            return None
        if not path.is_file():
            return None
        key = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        known = self._load().get(name)
        if known is not None and known[0] == key:
            return known[1]
        digest = sha256_file(path)
        if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED:
            self._load()[name] = (key, digest)
            self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was computed for the next command. A cache that cannot be written is left out."""
        if not self._changed:
            return
        with suppress(Exception):
            known = {name: [list(stat), digest] for name, (stat, digest) in self._load().items()}
            write_json(self._cache_file(), known)
        self._changed = False

    def _cache_file(self) -> Path:
        root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        name = sha256_json(str(self.folder.resolve()))[:32]
        return Path(root) / "dermaudit" / "hashes" / f"{name}.json"

    def _load(self) -> dict[str, tuple[Stat, str]]:
        if self._known is None:
            self._known = {}
            # Whatever is wrong with a cache, the file itself is hashed instead.
            with suppress(Exception):
                entries = json.loads(self._cache_file().read_text(encoding="utf-8"))
                for name, (stat, digest) in entries.items():
                    self._known[name] = (tuple(stat), digest)
        return self._known
