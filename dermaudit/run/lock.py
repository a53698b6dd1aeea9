"""One writer at a time: the lock of a run, with its owner.

The lock is the file `.lock` in the run, created exclusively. It names the host, the process and the
command that hold it. A lock whose process has ended (same host) is taken over; a lock of another host
is refused, because nobody here can tell whether its process still runs.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dermaudit.errors import LockedRunError

LOCK_FILE = ".lock"
#: Environment variable that names the holder of a lock to the worker processes that it starts.
HOLDER = "DERMAUDIT_LOCK_HOLDER"
#: A lock that is still empty after this many seconds was left by a process killed while writing it.
WRITING = 2.0


@contextmanager
def run_lock(run: Path, command: Sequence[str]) -> Iterator[None]:
    """Hold the lock of a run. The process that holds it, and processes that it starts, may enter again.

    Raises LockedRunError (exit code 2) if another process holds it.
    """
    path = run / LOCK_FILE
    me = {
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": _process_start(os.getpid()),
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": list(command),
    }
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            owner = _owner(path)
            if owner is None:
                continue  # released meanwhile
            if not owner and _age(path) < WRITING:
                time.sleep(0.02)
                continue
            name = _name(owner)
            if name in (_name(me), os.environ.get(HOLDER)):
                yield  # an outer block, of this process or of its parent, releases the lock
                return
            if not owner or _has_ended(owner):
                path.unlink(missing_ok=True)
                continue
            raise LockedRunError(
                f"the run {run} is being written by process {owner.get('pid')} on {owner.get('host')} "
                f"since {owner.get('started')} ({' '.join(owner.get('command') or ['dermaudit'])})",
                f"wait until it ends; if it does not run any more, remove {path} and start again",
            ) from None
        break
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
            json.dump(me, handle)
        os.environ[HOLDER] = _name(me)
        yield
    finally:
        os.environ.pop(HOLDER, None)
        path.unlink(missing_ok=True)


def _name(owner: dict[str, Any]) -> str:
    return f"{owner.get('host')}:{owner.get('pid')}"


def _owner(path: Path) -> dict[str, Any] | None:
    """Return the owner that a lock names: {} while it is not written yet, None if the lock is gone."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _age(path: Path) -> float:
    """Return the seconds since a file was changed; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


def _has_ended(owner: dict[str, Any]) -> bool:
    pid = owner.get("pid")
    if owner.get("host") != platform.node() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    # The number may belong to a later process by now.
    started = owner.get("process_started")
    return started is not None and _process_start(pid) not in (None, started)


def _process_start(pid: int) -> str | None:
    """Return the start time of a process in clock ticks (Linux); None where it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
