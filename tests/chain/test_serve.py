"""`dermaudit serve` as its clients meet it: predictions, limits, requests that are no image, and its end."""

from __future__ import annotations

import http.client
import io
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow


def picture(seed: int, side: int = 96, kind: str = "PNG") -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(data, kind)
    return data.getvalue()


class Server:
    """A running `dermaudit serve`."""

    def __init__(self, *flags: str, folder) -> None:
        command = [sys.executable, "-m", "dermaudit", "serve", "--concept", "ruler", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, *flags], stderr=subprocess.PIPE, text=True, cwd=folder
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("http://127.0.0.1:"), line + self.process.stderr.read()
        self.port = int(line.split(":")[2].split("/")[0])

    def ask(self, method: str, path: str, body: bytes | None = None, timeout: float = 60):
        """(status, headers, body as JSON or text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            text = answer.read().decode()
            json_like = answer.getheader("content-type", "").startswith("application/json")
            return answer.status, dict(answer.getheaders()), json.loads(text) if json_like else text
        finally:
            connection.close()

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    flags = ("--max-mb", "0.2", "--max-megapixels", "0.5", "--timeout", "2", "--queue", "16")
    running = Server(*flags, folder=tmp_path_factory.mktemp("empty"))
    yield running
    running.end()


def test_health_says_what_is_served(server):
    status, _, facts = server.ask("GET", "/health")
    assert status == 200 and facts["status"] == "ok" and facts["concepts"] == ["ruler"]
    assert len(facts["recipes"][0]) == 64 and "not a medical device" in facts["note"]


def test_a_prediction_is_the_row_of_the_table(server, cli, tmp_path):
    (tmp_path / "images").mkdir()
    for seed in range(6):
        (tmp_path / "images" / f"{seed}.png").write_bytes(picture(seed))
    flags = ("--images", "images", "--out", "p.jsonl")
    assert cli("suppress", "--concept", "ruler", *flags, cwd=tmp_path).rc == 0
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        wanted = json.loads(line)
        body = (tmp_path / "images" / wanted.pop("image")).read_bytes()
        status, _, row = server.ask("POST", "/predict", body)
        assert status == 200 and "not a medical device" in row.pop("note")
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            # A batch of one and a batch of six differ in the last bits.
            exact = not isinstance(value, float)
            assert row[name] == (value if exact else pytest.approx(value, abs=5e-6)), name


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 415, "the body is empty"),
        (b"not an image at all", 415, "not an image"),
        (picture(0)[:300], 415, "the image"),
        (b"\xff" * 300_000, 413, "more than 200000 bytes"),
        (picture(0, 800, "JPEG"), 413, "the image"),
    ],
)
def test_what_is_no_image_or_too_large_is_one_sentence(server, body, status, message):
    answered, _, content = server.ask("POST", "/predict", body)
    assert answered == status and message in content["error"]
    assert server.ask("GET", "/health")[0] == 200


def test_wrong_addresses_and_methods(server):
    assert server.ask("GET", "/nothing")[0] == 404
    assert server.ask("GET", "/predict")[0] == 405


def test_a_request_that_never_ends_is_given_up(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\nabc")
        started = time.monotonic()
        answer = client.recv(4096)
        assert b"408" in answer.split(b"\r\n")[0] and time.monotonic() - started < 15
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
        answer = b""
        for _ in range(100):
            try:
                client.sendall(chunk)
            except OSError:  # the server has closed it
                break
        while b"413" not in answer and (more := client.recv(4096)):
            answer += more
        assert b"413" in answer.split(b"\r\n")[0]
    assert server.ask("POST", "/predict", picture(1))[0] == 200


def test_a_full_queue_refuses_at_once_and_then_goes_on(server):
    """Requests that are being sent hold a place; with all places held, the next is told to come again."""
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(16)]
    for client in clients:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    time.sleep(0.5)
    status, headers, content = server.ask("POST", "/predict", picture(2))
    assert status == 503 and headers["retry-after"] == "1" and "try again" in content["error"]
    for client in clients:
        client.close()
    until = time.monotonic() + 20
    while (status := server.ask("POST", "/predict", picture(2))[0]) == 503:
        assert time.monotonic() < until
        time.sleep(0.1)
    assert status == 200


def test_eight_clients_at_once_all_get_their_own_answer(server):
    bodies = [picture(seed) for seed in range(64)]
    alone = [server.ask("POST", "/predict", body)[2] for body in bodies[:8]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: server.ask("POST", "/predict", body), bodies))
    assert [status for status, _, _ in answers] == [200] * 64
    assert len({content["sha256"] for _, _, content in answers}) == 64
    for one, (_, _, content) in zip(alone, answers[:8], strict=True):
        assert one["sha256"] == content["sha256"]
        assert one["p_after:mel"] == pytest.approx(content["p_after:mel"], abs=5e-6)
    metrics = dict(line.rsplit(" ", 1) for line in server.ask("GET", "/metrics")[2].splitlines())
    assert float(metrics['dermaudit_requests_total{status="200"}']) >= 72
    assert float(metrics["dermaudit_images_total"]) >= 72 > float(metrics["dermaudit_waiting"])


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "--recipe is missing"),
        (("--concept", "ruler", "--port", "99999"), 2, "less than or equal to 65535"),
        (("--concept", "ruler", "--host", "256.1.1.1"), 2, "cannot listen at 256.1.1.1"),
        (("--recipe", "none.json"), 2, "none.json does not exist"),
        (("--concept", "patch"), 3, "n too small"),
    ],
)
def test_what_cannot_be_served_is_said_before_it_starts(main, flags, code, message, tmp_path):
    done = main("serve", *flags, "--json", cwd=tmp_path)
    assert done.rc == code and message in done.json()["error"]["message"]


def test_ctrl_c_ends_it(tmp_path):
    assert Server(folder=tmp_path).end() in (0, 130)
