"""`dermaudit serve`: suppression as a service."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dermaudit.console import say
from dermaudit.errors import UserInputError
from dermaudit.options import Options, option

from ..inputs import THREADS_HELP
from .options import SuppressOptions


@dataclass(frozen=True, kw_only=True)
class ServeOptions(Options):
    """What is served, where, and what one request may cost."""

    recipe: tuple[Path, ...] = option((), "a recipe file; repeat it for several", "--recipe")
    concept: tuple[str, ...] = option(
        (), "instead: a concept of a run or of a bundled model", "--concept"
    )
    run: Path | None = option(None, "folder of the run (default: the newest)", "--run")
    model: str | None = option(None, "instead of a run: a bundled model")
    head: str | None = option(None, "a head of the run, a head file (.safetensors), or zeroshot")
    target: str | None = option(None, "the class whose logit changes are listed")
    host: str = option("127.0.0.1", "address to listen at; the default is this machine only")
    port: int = option(8600, "port to listen at; 0: any that is free", minimum=0, maximum=65535)
    max_mb: float = option(20.0, "largest request, in MB", minimum=0.001)
    max_megapixels: float = option(50.0, "largest image, in millions of pixels", minimum=0.001)
    timeout: float = option(30.0, "seconds within which a request must have been sent", minimum=0.1)
    queue: int = option(256, "images that may wait; more are refused (503)", minimum=1)
    threads: int = option(1, THREADS_HELP, minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recipe and not self.concept:
            raise UserInputError(
                "--recipe is missing: nothing would be suppressed",
                "run: dermaudit serve --recipe ruler.recipe.json, or dermaudit serve --concept ruler",
            )

    def of_suppress(self) -> SuppressOptions:
        """Return the options of `suppress` that open the same model."""
        return SuppressOptions(
            recipe=self.recipe,
            concept=self.concept,
            run=self.run,
            model=self.model,
            head=self.head,
            target=self.target,
            threads=self.threads,
            images="-",
            dry_run=True,
        )


def serve(options: ServeOptions) -> dict[str, Any]:
    """Serve predictions with concepts suppressed over HTTP."""
    opening = options.of_suppress()
    with _listen(options.host, options.port) as listening:
        import uvicorn

        from .opened import open_model
        from .service import ServiceLimits, application

        limits = ServiceLimits(
            max_bytes=int(options.max_mb * 1e6),
            max_pixels=int(options.max_megapixels * 1e6),
            seconds=options.timeout,
            queue=options.queue,
        )
        app = application(open_model(opening), limits)
        host, port = listening.getsockname()[:2]
        say(f"http://{host}:{port}/predict (POST an image file), /health, /metrics; Ctrl-C ends it")
        config = uvicorn.Config(
            app,
            log_level="warning",
            timeout_graceful_shutdown=5,
            # A client that never ends its headers holds a connection, but no place in the queue.
            limit_concurrency=4 * options.queue + 64,
        )
        uvicorn.Server(config).run(sockets=[listening])
    return {"host": host, "port": port}


def _listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. UserInputError where the address cannot be used."""
    try:
        return socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        raise UserInputError(
            f"cannot listen at {host}:{port} ({error})", "give another --host or --port"
        ) from error
