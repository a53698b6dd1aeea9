"""The rank of this process among workers that torchrun or SLURM started.

Workers share a folder and nothing else: no collectives, so none waits for another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from dermaudit.errors import UserInputError


@dataclass(frozen=True)
class WorkerRank:
    """Worker `rank` of `size`, which makes the shards i with i % size == rank."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> WorkerRank:
        """Return the rank of this process, from its environment."""
        return cls.of(os.environ)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> WorkerRank:
        """Read RANK and WORLD_SIZE (torchrun), or SLURM_PROCID and SLURM_NTASKS (srun).

        An sbatch script sees the numbers of the whole job but is one process: without a step id it
        works alone. UserInputError if the numbers do not name a worker.
        """
        names = ("RANK", "WORLD_SIZE")
        if not set(names) <= environment.keys():
            names = ("SLURM_PROCID", "SLURM_NTASKS")
            script = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
            if script or not set(names) <= environment.keys():
                return cls()
            if "SLURM_STEP_NUM_TASKS" in environment:
                names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
        rank, size = (environment[name] for name in names)
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise UserInputError(
                f"{names[0]}={rank} and {names[1]}={size} do not name a worker",
                f"ranks count from 0; unset {names[0]} and {names[1]} to work alone",
            )
        return cls(int(rank), int(size))
