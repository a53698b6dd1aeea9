"""The service of `dermaudit serve`: predictions over HTTP, with limits on what one request may cost.

Requests are decoded in threads and predicted together, as many as wait, by one thread that owns the model. At most
`queue` images wait; the next one is refused at once (503), so that memory is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from torch import Tensor

from dermaudit import __version__
from dermaudit.data import BadImage
from dermaudit.data.images.decode import ImageLimits, decode_image
from dermaudit.sae.embed.shard import site_values
from dermaudit.sae.run_data import POOLED

from .images import BATCH, Embedded
from .opened import Opened
from .prediction_table import table_of

NOTE = "Research use, not a medical device."
_STATUS_OF_KIND = {"huge": 413}  # of a BadImage; any other is 415


@dataclass(frozen=True)
class ServiceLimits:
    """`max_bytes` of a request, and of all requests that are being received, `max_total`; `max_pixels` of an image;
    `seconds` to send a request; `queue`: images that may wait.
    """

    max_bytes: int = 20_000_000
    max_total: int = 500_000_000
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    queue: int = 256


class Refused(Exception):
    """A request that is not answered with a prediction: an HTTP status, and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass
class Metrics:
    """What has happened since the start, in the text format of Prometheus."""

    started: float = field(default_factory=time.monotonic)
    statuses: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0
    images: int = 0
    batches: int = 0
    fired: int = 0
    unlike: int = 0

    def text(self, waiting: int) -> str:
        """Return all of them."""
        lines = [
            f'dermaudit_requests_total{{status="{status}"}} {n}'
            for status, n in sorted(self.statuses.items())
        ]
        for name, value in (
            ("request_seconds_total", self.seconds),
            ("images_total", self.images),
            ("batches_total", self.batches),
            ("embeddings_changed_total", self.fired),
            ("unlike_total", self.unlike),
            ("waiting", waiting),
            ("uptime_seconds", time.monotonic() - self.started),
        ):
            lines.append(f"dermaudit_{name} {value:g}")
        return "\n".join(lines) + "\n"


@dataclass
class _Waiting:
    x: Tensor  # (3, s, s), as the tower takes it
    sha256: str
    answer: asyncio.Future[dict[str, Any]]


class Service:
    """The model behind a queue."""

    def __init__(self, opened: Opened, limits: ServiceLimits) -> None:
        self.opened, self.limits, self.metrics = opened, limits, Metrics()
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue(limits.queue)
        self._decoding = 0
        self._received = 0  # bytes of requests that are not decoded yet
        self._model = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")

    def facts(self) -> dict[str, Any]:
        """Return what is served."""
        model = self.opened.model
        return {
            "status": "ok",
            "dermaudit": __version__,
            "note": NOTE,
            "model": model.tower.name,
            "concepts": [recipe.body["concept"] for recipe in self.opened.recipes],
            "recipes": [recipe.sha256 for recipe in self.opened.recipes],
            "accepted_limits": [recipe.body["accepted_limits"] for recipe in self.opened.recipes],
            "classes": model.head.classes,
            "target": model.target,
        }

    @property
    def waiting(self) -> int:
        """How many images are being decoded, or wait for the model."""
        return self._decoding + self._queue.qsize()

    async def predict(self, request: Request) -> dict[str, Any]:
        """Return the row of the table of predictions for the image in the body of a request."""
        if self.waiting >= self.limits.queue:
            raise Refused(503, f"{self.waiting} images wait already; try again later")
        self._decoding += 1
        data = bytearray()
        try:
            await self._receive(request, data)
            loop = asyncio.get_running_loop()
            x, digest = await loop.run_in_executor(self._decoders, self._decode, bytes(data))
            answer: asyncio.Future[dict[str, Any]] = loop.create_future()
            self._queue.put_nowait(_Waiting(x, digest, answer))
        except asyncio.QueueFull as error:
            raise Refused(503, "too many images wait; try again later") from error
        finally:
            self._decoding -= 1
            self._received -= len(data)
        return await answer

    async def _receive(self, request: Request, data: bytearray) -> None:
        """Append the body of a request to `data`."""
        most = self.limits.max_bytes
        too_large = Refused(413, f"the request has more than {most} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for chunk in request.stream():
                    data += chunk
                    self._received += len(chunk)
                    if len(data) > most:
                        raise too_large
                    if self._received > self.limits.max_total:
                        raise Refused(503, "too many bytes are being received; try again later")
        except TimeoutError as error:
            raise Refused(
                408, f"the request did not end within {self.limits.seconds:g} seconds"
            ) from error
        if not data:
            raise Refused(415, "the body is empty: send the bytes of an image file")

    def _decode(self, data: bytes) -> tuple[Tensor, str]:
        """Return the image as the tower takes it, so that what waits is small, and the sha256 of the file."""
        limits = ImageLimits(max_pixels=self.limits.max_pixels, max_bytes=self.limits.max_bytes)
        try:
            pixels = decode_image(data, limits=limits, name="the image")
        except BadImage as error:
            raise Refused(
                _STATUS_OF_KIND.get(error.kind, 415), f"the image: {error.reason}"
            ) from error
        x = self.opened.model.tower.preprocess([pixels])[0]
        return x, hashlib.sha256(data).hexdigest()

    async def work(self) -> None:
        """Predict what waits, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            while len(batch) < BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                rows = await loop.run_in_executor(self._model, self._rows, batch)
            except Exception as error:  # the next request is served all the same
                for one in batch:
                    if not one.answer.done():
                        one.answer.set_exception(error)
                continue
            self.metrics.batches += 1
            for one, row in zip(batch, rows, strict=True):
                self.metrics.images += 1
                self.metrics.fired += row["fired"]
                self.metrics.unlike += row["unlike"]
                if not one.answer.done():  # the client has gone
                    one.answer.set_result(row)

    def _rows(self, batch: list[_Waiting]) -> list[dict[str, Any]]:
        model = self.opened.model
        values = site_values(model.tower, torch.stack([one.x for one in batch]), {POOLED: "pooled"})
        x = values[POOLED].cpu().numpy()
        images = Embedded([""] * len(batch), [one.sha256 for one in batch], x)
        rows = table_of(images, model.predict_rows(x), model).drop_columns(["image"]).to_pylist()
        return [{**row, "note": NOTE} for row in rows]

    def close(self) -> None:
        """End the threads."""
        self._model.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)


def application(opened: Opened, limits: ServiceLimits) -> FastAPI:
    """Return the application: POST /predict, GET /health, GET /metrics."""
    service = Service(opened, limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(service.work())
        yield
        worker.cancel()
        service.close()

    app = FastAPI(title="dermaudit", version=__version__, description=NOTE, lifespan=lifespan)

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        """Predict before and after suppression: send the bytes of one image file as the body."""
        started, status = time.monotonic(), 200
        try:
            content = await service.predict(request)
        except Refused as refused:
            status, content = refused.status, {"error": refused.message}
        except Exception as error:
            status, content = 500, {"error": f"internal error: {type(error).__name__}"}
        service.metrics.statuses[status] += 1
        service.metrics.seconds += time.monotonic() - started
        headers = {"Retry-After": "1"} if status == 503 else {}
        if status in (408, 413):  # what the client still sends is not read
            headers["Connection"] = "close"
        return JSONResponse(content, status, headers=headers)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return what is served, with the hashes of the recipes."""
        return service.facts()

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Return counters in the text format of Prometheus."""
        return PlainTextResponse(service.metrics.text(service.waiting))

    return app
