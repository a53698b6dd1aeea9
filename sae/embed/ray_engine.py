"""`embed --engine ray`: the parts of a store as a Ray data set, one tower an actor.

The actors call the same `embed_shard` and write into the store's folder, which all nodes must see;
images may lie in object storage (paths that are URIs). The driver puts the store together.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermaudit.errors import DermauditError, UserInputError

if TYPE_CHECKING:
    from .embed import Engine, Job


class ShardMaker:
    """An actor: opens the tower once, then makes a shard a row."""

    def __init__(self, model: str, threads: int, device: str, batch: int, strict: bool) -> None:
        import torch

        from dermaudit.towers import load_model

        torch.set_num_threads(threads)
        self.tower = load_model(model, device)
        self.batch = batch
        self.strict = strict

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the shard of one row, and return how many images it has, or the error."""
        from .shard import embed_shard

        part, sites = _from_text(row["job"])
        try:
            embed_shard(self.tower, part, sites, batch=self.batch, strict=self.strict)
        except DermauditError as error:
            # As data: Ray would wrap it in its own exception, and start the actor again.
            return {"made": 0, "error": error.message, "hint": error.hint or ""}
        return {"made": len(part.ids), "error": "", "hint": ""}


def _as_text(job: Job) -> str:
    """A job as JSON: a row that needs no pickling, with paths that hold in any working directory."""
    part, sites = job
    paths = [path if "://" in path else str(Path(path).absolute()) for path in part.paths]
    places = [[str(s.folder.absolute()), asdict(s.identity), s.facts] for s in sites]
    return json.dumps([{**asdict(part), "paths": paths}, places])


def _from_text(text: str) -> Job:
    from ..store.activation_store import Identity
    from ..store.shard_plan import ShardPart, StoreTarget

    part, sites = json.loads(text)
    lists: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in part.items()}
    return ShardPart(**lists), [
        StoreTarget(Path(folder), Identity(**identity), facts) for folder, identity, facts in sites
    ]


def on_ray(
    model: str, *, workers: int, threads: int, device: str, batch: int, strict: bool
) -> Engine:
    """The engine of `workers` actors, each with `threads` cores (and a GPU where `device` is one).

    A cluster is found by RAY_ADDRESS; without, Ray is started on this machine. Errors:
    UserInputError when Ray is not installed, and those of `embed_shard`.
    """
    try:
        import ray.data
    except ImportError as error:
        raise UserInputError(
            "--engine ray: Ray is not installed", "pip install 'dermaudit[cluster]'"
        ) from error

    def engine(jobs: list[Job]) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        mine = not ray.is_initialized()
        if mine:
            cpus = None if "RAY_ADDRESS" in os.environ else max(1, workers * threads)
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        try:
            _make(jobs)
        finally:
            if mine:
                ray.shutdown()

    def _make(jobs: list[Job]) -> None:
        from dermaudit.console import Meter

        ray.data.DataContext.get_current().enable_progress_bars = False  # ours is shown
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"job": _as_text(job)} for job in jobs]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            ShardMaker,  # type: ignore[arg-type]  # Ray's annotation lacks classes, which it takes
            fn_constructor_args=(model, threads, device, batch, strict),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(jobs))),
            num_cpus=threads,
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        with Meter("embedding (ray)", sum(len(part.ids) for part, _ in jobs)) as meter:
            for row in data.iter_rows():
                if row["error"]:
                    raise UserInputError(row["error"], row["hint"] or None)
                meter.advance(row["made"])

    return engine
