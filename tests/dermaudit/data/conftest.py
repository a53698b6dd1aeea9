"""A language model's server, as the tests of captions need it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FakeModel:
    """An OpenAI-compatible server; `replies(caption, n)` gives the n-th reply: a text, or
    (status, headers, body)."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[dict] = []
        self.replies: Callable = lambda caption, n: json.dumps([caption])
        outer, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    caption = body["messages"][-1]["content"]
                    n = outer.asked.count(caption)
                    outer.asked.append(caption)
                    outer.headers.append(dict(self.headers) | {"path": self.path})
                reply = outer.replies(caption, n)
                if isinstance(reply, str):
                    message = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                    reply = (200, {}, json.dumps(message))
                status, headers, text = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def model() -> Iterator[FakeModel]:
    fake = FakeModel()
    yield fake
    fake.server.shutdown()
    fake.server.server_close()
