"""`embed --workers N`: the same command N times on this machine, each with its rank.

A worker is an ordinary `dermaudit embed` that finds RANK and WORLD_SIZE in its environment, as
under torchrun; so what is tested here is what runs on a cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from dermaudit.errors import DermauditError, UserInputError

if TYPE_CHECKING:
    from .embed import Job

_LOOK_EVERY = 0.1  # seconds


def by_processes(argv: list[str], n: int) -> Callable[[list[Job]], None]:
    """The engine that starts `dermaudit *argv` for ranks 0 … n - 1 and waits for all of them.

    Errors: the error of the first worker that fails, as if it were one's own; the others are ended,
    and what they have finished is kept.
    """

    def engine(jobs: list[Job]) -> None:
        workers = [_start(argv, rank, n) for rank in range(n)]
        try:
            running = dict(enumerate(workers))
            while running:
                time.sleep(_LOOK_EVERY)
                for rank in [rank for rank, worker in running.items() if worker.poll() is not None]:
                    said, _ = running[rank].communicate()
                    if code := running.pop(rank).returncode:
                        raise _failure(rank, n, code, said)
        finally:
            for worker in workers:
                with suppress(ProcessLookupError):
                    worker.terminate()
            for worker in workers:
                worker.wait()

    return engine


def _start(argv: list[str], rank: int, n: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(n)}
    if rank:
        environment["DERMAUDIT_QUIET"] = "1"  # one progress bar is enough
    return subprocess.Popen(
        [sys.executable, "-m", "dermaudit", *argv, "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def _failure(rank: int, n: int, code: int, said: str) -> DermauditError:
    who = f"worker {rank} of {n}"
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(said)["error"]
        kind = UserInputError if code == 2 else DermauditError
        return kind(f"{who}: {error['message']}", error["hint"])
    how = f"was killed (signal {-code})" if code < 0 else f"ended with {code}"
    return UserInputError(
        f"{who} {how} before its shards were done",
        "run the same command again: what was finished is kept",
    )
