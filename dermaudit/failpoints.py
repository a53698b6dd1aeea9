"""Named places where a test can kill or fail the process: DERMAUDIT_FAILPOINT=name[:count].

Kills in tests go through these, not through sleeps: `hit` is called between two units of work, and
the process ends there at once, as kill -9 would, on the `count`-th visit (1 without a count).
`name=interrupt` raises KeyboardInterrupt instead, as Ctrl-C would.
"""

from __future__ import annotations

import os

_visits: dict[str, int] = {}


def hit(name: str) -> None:
    """End this process if the environment asks for it at this point."""
    wanted = os.environ.get("DERMAUDIT_FAILPOINT")
    if not wanted:
        return
    wanted, _, count = wanted.partition(":")
    wanted, _, action = wanted.partition("=")
    if wanted != name:
        return
    _visits[name] = _visits.get(name, 0) + 1
    if _visits[name] < int(count or 1):
        return
    if action == "interrupt":
        raise KeyboardInterrupt
    os._exit(137)
