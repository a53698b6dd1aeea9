"""The language model that takes captions apart, against a real HTTP server in a thread."""

from __future__ import annotations

import json
import threading

import pytest

from dermaudit.data.captions.decompose import Decomposer, check_answer
from dermaudit.errors import UserInputError

PLAQUE = "A 2.5 cm red plaque on the arm. It is scaly."


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def make(model, tmp_path, waits, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def make(**options) -> Decomposer:
        given = {"url": model.url, "key": "secret", "sleep": waits.append, **options}
        return Decomposer("small", tmp_path / "cache", 8, **given)

    return make


def test_split_in_the_order_of_the_captions_with_the_key(make, model):
    parts = {PLAQUE: ["A 2.5 cm red plaque.", "It is scaly."], "A nevus.": ["A nevus."]}
    model.replies = lambda caption, n: json.dumps(parts[caption])
    split = make()
    assert list(split.split(list(parts))) == list(parts.values())
    assert split.counts.asked == 2 and split.counts.cached == 0 and split.counts.invalid == {}
    assert {h["Authorization"] for h in model.headers} == {"Bearer secret"}
    assert {h["path"] for h in model.headers} == {"/v1/chat/completions"}


def test_split_answers_are_kept_and_not_asked_again(make, model, tmp_path):
    captions = [f"Papule {word}." for word in ("one", "two", "three")]
    first = list(make().split(captions))
    again = make()
    assert list(again.split(captions)) == first and len(model.asked) == 3
    assert again.counts.cached == 3 and again.counts.asked == 0
    kept = list((tmp_path / "cache").rglob("*.json"))
    assert len(kept) == 3 and not any("secret" in file.read_text() for file in kept)
    kept[0].write_text("{ cut off")
    assert list(make().split(captions)) == first and len(model.asked) == 4
    list(make().split([*captions, "Another papule."]))
    assert len(model.asked) == 5, "only what is new"


def test_split_a_refused_run_continues_where_it_stopped(make, model):
    captions = [f"Papule {word}." for word in ("one", "two", "three")]
    model.replies = lambda caption, n: (
        (401, {}, "no") if "three" in caption and n == 0 else json.dumps([caption])
    )
    with pytest.raises(UserInputError, match="refuses: HTTP 401") as caught:
        list(make(workers=1).split(captions))
    assert "DERMAUDIT_LLM_KEY" in caught.value.hint and "secret" not in str(caught.value)
    assert list(make().split(captions)) == [[c] for c in captions]
    assert sorted(model.asked) == sorted([*captions, captions[2]])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_split_busy_servers_are_asked_again_with_growing_waits(make, model, waits, status):
    model.replies = lambda caption, n: (status, {}, "busy") if n < 3 else json.dumps(["Red."])
    split = make()
    assert list(split.split(["Red."])) == [["Red."]]
    assert waits == [1.0, 2.0, 4.0] and split.counts.retried == 3 and split.counts.asked == 1


def test_split_waits_as_long_as_the_server_asks(make, model, waits):
    model.replies = lambda caption, n: (
        (429, {"Retry-After": ["17", "1e9", "soon"][n]}, "") if n < 3 else json.dumps(["Red."])
    )
    assert list(make().split(["Red."])) == [["Red."]]
    assert waits == [17.0, 60.0, 4.0]


def test_split_asks_again_after_an_answer_that_is_no_chat_completion(make, model, waits):
    replies = [(200, {}, "<html>"), (200, {}, '{"choices": []}'), (200, {}, "")]
    model.replies = lambda caption, n: replies[n] if n < 3 else json.dumps(["Red."])
    assert list(make().split(["Red."])) == [["Red."]] and len(waits) == 3


def test_split_a_server_that_never_answers(make, model, waits, tmp_path):
    model.replies = lambda caption, n: (503, {}, "down")
    with pytest.raises(UserInputError, match="did not answer in 6 tries: HTTP 503") as caught:
        list(make().split(["Red."]))
    assert len(waits) == 5 and "not asked again" in caught.value.hint
    assert not list((tmp_path / "cache").rglob("*.json"))


def test_split_a_refusal_ends_the_waits_of_the_other_workers(make, model):
    """Without it the worker that waits for a busy server would hold the error back for a minute."""
    model.replies = lambda caption, n: (
        (429, {"Retry-After": "60"}, "") if caption == "Red." else (403, {}, "")
    )
    split = make(workers=2, sleep=None)
    with pytest.raises(UserInputError, match="HTTP 403"):
        list(split.split(["Blue.", "Red."]))
    assert model.asked.count("Red.") <= 1


def test_split_timeouts_and_refused_connections_are_asked_again(make, model, waits):
    gate = threading.Event()

    def slow(caption: str, n: int) -> str:
        if n == 0:
            gate.wait(5)
        return json.dumps(["Red."])

    model.replies = slow
    assert list(make(timeout=0.3).split(["Red."])) == [["Red."]] and waits == [1.0]
    gate.set()
    with pytest.raises(UserInputError, match="did not answer"):
        list(make(url="http://127.0.0.1:9/v1").split(["Blue."]))


def test_split_the_key_follows_no_redirect(make, model):
    model.replies = lambda caption, n: (302, {"Location": "http://127.0.0.1:9/v1"}, "")
    with pytest.raises(UserInputError, match="refuses: HTTP 302") as caught:
        list(make().split(["Red."]))
    assert "redirects" in caught.value.hint and len(model.asked) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Sure! A red plaque.", "not JSON"),
        ("", "not JSON"),
        ('{"a": 1}', "not a list of texts"),
        ("[1, 2]", "not a list of texts"),
        ("[]", "empty"),
        ('["A red plaque.", " "]', "empty"),
        ('["2.5"]', "empty"),
        (json.dumps(["Red."] * 9), "too many sentences"),
        ('["A melanoma with regression."]', "not in the caption"),
        ('["A 3.5 cm red scaly plaque on the arm."]', "not in the caption"),
        ('__import__("os").getcwd()', "not JSON"),
    ],
)
def test_split_answers_of_no_use_are_counted(make, model, answer, why):
    model.replies = lambda caption, n: answer
    split = make()
    assert list(split.split([PLAQUE])) == [None]
    assert split.counts.invalid == {why: 1} and len(model.asked) == 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            '["There is a red plaque of 2.5 cm.", "It is scaly."]',
            ["There is a red plaque of 2.5 cm.", "It is scaly."],
        ),
        ('```json\n["A red  plaque."]\n```', ["A red plaque."]),
        ('["Scaly.", "Scaly."]', ["Scaly."]),
        ('["Red plaques on the arm."]', ["Red plaques on the arm."]),
    ],
)
def test_check_answer_accepts_words_of_the_caption(answer, expected):
    assert check_answer(answer, PLAQUE, 8) == expected


def test_an_endpoint_must_be_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DERMAUDIT_LLM_URL", raising=False)
    with pytest.raises(UserInputError, match="DERMAUDIT_LLM_URL is not set"):
        Decomposer("small", tmp_path, 8)
    monkeypatch.setenv("DERMAUDIT_LLM_URL", "file:///etc")
    with pytest.raises(UserInputError, match="which is not a web address"):
        Decomposer("small", tmp_path, 8)
