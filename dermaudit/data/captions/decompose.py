"""A language model that splits captions into sentences: any OpenAI-compatible endpoint, cached on disk.

Address and key come from DERMAUDIT_LLM_URL and DERMAUDIT_LLM_KEY. An answer must be JSON; it is used
only if it adds nothing to the caption. Every answer is stored under the hash of its request, so that a
run that was killed does not ask again. The key is written nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any

from dermaudit.errors import UserInputError
from dermaudit.files import sha256_json, write_json

PROMPT_VERSION = 1
_PROMPT = (
    "You split the caption of a skin image into short factual statements. Each statement is one "
    "sentence about one thing (a sign, a colour, a body site, a diagnosis, a symptom) and uses the "
    "words of the caption. Add nothing, drop guesses about what is not written. Answer with a JSON "
    "array of at most {most} strings and nothing else."
)
_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
_TRIES = 6
_LONGEST_WAIT = 60.0  # seconds
_ANSWER_BYTES = 1 << 20
_GROUNDED = 0.7  # share of a sentence's words that the caption must have
_GRAMMAR = {
    "there", "this", "that", "these", "those", "with", "have", "has", "had", "seen", "shows",
    "shown", "show", "image", "photo", "patient", "skin", "lesion", "from", "into", "which",
    "were", "been", "located", "present", "diagnosis", "diagnosed", "appears", "visible", "the",
    "are", "and", "its",
}  # fmt: skip
_WORD = re.compile(r"[^\W_]+(?:\.\d+)?")


@dataclass
class AnswerCounts:
    """Counts of the captions that were sent to the model."""

    cached: int = 0
    asked: int = 0
    retried: int = 0
    invalid: dict[str, int] = field(default_factory=dict)  # {reason: unusable answers}


class Decomposer:
    """`split(captions)` yields the sentences of each, or None if the answer cannot be used.

    `url` is the base of the endpoint ("http://localhost:8000/v1"), `cache` a folder for the answers.
    """

    def __init__(
        self,
        model: str,
        cache: Path,
        most: int,
        *,
        url: str | None = None,
        key: str | None = None,
        workers: int = 4,
        timeout: float = 60.0,
        sleep: Callable[[float], Any] | None = None,
    ) -> None:
        url = url or os.environ.get("DERMAUDIT_LLM_URL", "")
        if not url:
            raise UserInputError(
                "--llm needs the address of an endpoint: DERMAUDIT_LLM_URL is not set",
                "set it to an OpenAI-compatible base, such as http://localhost:8000/v1",
            )
        if not url.startswith(("http://", "https://")):
            raise UserInputError(
                f"DERMAUDIT_LLM_URL is '{url}', which is not a web address", "begin it with http://"
            )
        self.url = url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
        self._key = key if key is not None else os.environ.get("DERMAUDIT_LLM_KEY", "")
        self.model, self.cache, self.most = model, Path(cache), most
        self.workers, self.timeout = workers, timeout
        self.counts = AnswerCounts()
        self._lock = threading.Lock()
        self._stop = threading.Event()  # cuts waits short once a run ends early
        self.sleep = sleep or self._stop.wait
        # No redirect is followed: the key goes to the address that was given and nowhere else.
        self._opener = urllib.request.build_opener(_NoRedirect)

    def split(self, captions: Sequence[str]) -> Iterator[list[str] | None]:
        """Yield the sentences of each caption, in order.

        Errors: UserInputError when the endpoint refuses, or does not answer after all tries; earlier answers
        are kept.
        """
        self._stop.clear()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for caption, text in zip(captions, pool.map(self._answer, captions), strict=True):
                    try:
                        yield check_answer(text, caption, self.most)
                    except ValueError as error:
                        why = str(error)
                        self.counts.invalid[why] = self.counts.invalid.get(why, 0) + 1
                        yield None
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _answer(self, caption: str) -> str:
        asked = {
            "model": self.model,
            "caption": caption,
            "most": self.most,
            "prompt": PROMPT_VERSION,
        }
        digest = sha256_json(asked)
        file = self.cache / digest[:2] / f"{digest}.json"
        try:
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["asked"] == asked and isinstance(kept["answer"], str):
                self._count("cached")
                return kept["answer"]
        except (OSError, json.JSONDecodeError, KeyError, TypeError):
            pass  # missing or altered: asked again
        answer = self._ask(caption)
        write_json(file, {"asked": asked, "answer": answer})
        self._count("asked")
        return answer

    def _ask(self, caption: str) -> str:
        body = json.dumps(
            {
                "model": self.model,
                "temperature": 0,
                "messages": [
                    {"role": "system", "content": _PROMPT.format(most=self.most)},
                    {"role": "user", "content": caption},
                ],
            }
        ).encode()
        headers = {"Content-Type": "application/json", **self._authorised()}
        last_error = ""
        for attempt in range(_TRIES):
            if self._stop.is_set():  # also right after a wait that was cut short
                break
            wait = min(2.0**attempt, _LONGEST_WAIT)
            request = urllib.request.Request(self.url, body, headers)
            try:
                with self._opener.open(request, timeout=self.timeout) as response:
                    return _content(response.read(_ANSWER_BYTES))
            except urllib.error.HTTPError as error:
                error.close()
                last_error = f"HTTP {error.code} {error.reason}"
                if error.code not in _RETRIED:
                    raise UserInputError(
                        f"{self.url} refuses: {last_error}", _http_hint(error.code)
                    ) from error
                wait = max(wait, _asked_wait(error.headers))
            except (OSError, http.client.HTTPException) as error:  # no route, cut off, timed out
                last_error = str(getattr(error, "reason", error)) or type(error).__name__
            except ValueError as error:
                last_error = str(error)
            if attempt + 1 < _TRIES:
                self._count("retried")
                self.sleep(wait)
        raise UserInputError(
            f"{self.url} did not answer in {_TRIES} tries: {last_error}",
            "run the same command again later: what was answered is kept and not asked again",
        )

    def _count(self, what: str) -> None:
        with self._lock:
            setattr(self.counts, what, getattr(self.counts, what) + 1)

    def _authorised(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"} if self._key else {}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl) -> None:
        return None


def check_answer(answer: str, caption: str, most: int) -> list[str]:
    """Return the sentences of an answer.

    Errors: ValueError with a short reason when it is not a JSON list of 1 to `most` texts, each with a word,
    or when a sentence has words or numbers that the caption lacks.
    """
    text = answer.strip()
    if text.startswith("```"):  # many models add a code fence
        text = text.strip("`").removeprefix("json").strip()
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise ValueError("not a list of texts")
    found = [" ".join(one.split()) for one in found]
    if not found or not all(re.search(r"[^\W\d_]{2}", one) for one in found):
        raise ValueError("empty")
    if len(found) > most:
        raise ValueError("too many sentences")
    known = {_fold(word) for word in _WORD.findall(caption)}
    if not all(_is_grounded(one, known) for one in found):
        raise ValueError("not in the caption")
    return list(dict.fromkeys(found))


def _is_grounded(sentence: str, known: set[str]) -> bool:
    words = [_fold(word) for word in _WORD.findall(sentence)]
    if any(word[0].isdigit() and word not in known for word in words):
        return False  # a size or an age that the caption lacks
    content_words = [word for word in words if len(word) > 2 and word not in _GRAMMAR]
    return sum(word in known for word in content_words) >= _GROUNDED * len(content_words)


def _fold(word: str) -> str:
    word = word.casefold()
    return word[:-1] if len(word) > 3 and word.endswith("s") and word not in _GRAMMAR else word


def _content(raw: bytes) -> str:
    """Return the text of a chat completion, "" if it has none. Errors: ValueError for anything else."""
    try:
        text = json.loads(raw)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("an answer that is no chat completion") from error
    return text if isinstance(text, str) else ""


def _asked_wait(headers: Message) -> float:
    """Return the seconds that the server asks to wait (Retry-After), 0 if it does not ask."""
    try:
        return min(max(float(headers.get("Retry-After", "0")), 0.0), _LONGEST_WAIT)
    except (ValueError, AttributeError):
        return 0.0


def _http_hint(code: int) -> str:
    if code in (401, 403):
        return "set DERMAUDIT_LLM_KEY to a key that it accepts"
    if code == 404:
        return "check DERMAUDIT_LLM_URL (it ends in /v1 for most servers) and the name after --llm"
    if 300 <= code < 400:
        return "it redirects: set DERMAUDIT_LLM_URL to the address that it points to"
    return "check DERMAUDIT_LLM_URL and the name after --llm"
