"""The dermaudit command of this environment, for the scripts that measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def dermaudit(*argv: str | Path) -> str:
    """Run a command and return what it prints on stdout. Errors: CalledProcessError."""
    command = [sys.executable, "-m", "dermaudit", *map(str, argv)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
