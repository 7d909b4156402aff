# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Judge by a model behind an OpenAI-compatible endpoint, such as vLLM's, SGLang's or a provider's."""

import hashlib
import html
import json
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from ..anchors.untrusted_files import MAX_TEXT_BYTES, decode_text, read_bounded
from ..metrics.harmful_score.verdicts import Verdict
from .base import Judge, JudgeInfo, check_pairs
from .deadline import DeadlineAdapter, deadline
from .formats import GUARDS, RUBRICS, Request, merge_verdicts


_RETRIED = {408, 409, 429}  # and all from 500 on
_PASSING_FAULTS = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)
_LONGEST_WAIT = 600.0  # seconds that a server may ask for
_MAX_BODY_BYTES = 2**22  # of an answer of some hundred tokens


class EndpointError(RuntimeError):
    """The endpoint gave no answer that could be used."""


class _AnswerCache:
    """
    Answers by the hash of their request, in a file of JSON lines that only grows.

    A line is one write, so that an interruption loses at most the line under way, and processes can share the file.
    """

    def __init__(self, path: str | os.PathLike | None):
        self._path = path
        self._lock = Lock()
        self._answers: dict[str, str] = {}
        if path is not None:
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if path is not None and os.path.exists(path):
            for line in read_bounded(path, MAX_TEXT_BYTES).split(b"\n"):
                try:
                    entry = json.loads(decode_text(line, path))
                    request, answer = entry["request"], entry["answer"]
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # cut off by an interruption: to be asked again
                if isinstance(request, str) and isinstance(answer, str):
                    self._answers[request] = answer

    def get(self, request: str) -> str | None:
        return self._answers.get(request)

    def put(self, request: str, answer: str) -> None:
        with self._lock:
            self._answers[request] = answer
            if self._path is not None:
                with open(self._path, "ab", buffering=0) as file:
                    # The line break in front ends a line that an interruption cut off
                    file.write(b"\n" + json.dumps({"request": request, "answer": answer}).encode() + b"\n")


@dataclass
class _Reply:
    """What a server answered. Of a body that is too long, there is so much that it shows."""

    status: int
    retry_after: str
    body: bytes


def _retry_after(value: str) -> float:
    """Seconds to wait as the server asks, in seconds or as a date. 0 if it does not, or not in a known form."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _answer(body: bytes) -> str:
    """The text of a completion. `ValueError` if the body holds none."""
    if len(body) > _MAX_BODY_BYTES:
        raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    try:
        choice = json.loads(body)["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("no completion") from error
    if not isinstance(text, str | None):
        raise ValueError("no text")
    # `None`: the provider's own filter. Nothing that could be read. Half a character could not be kept in a file
    return (text or "").encode("utf-8", "replace").decode("utf-8")


def _hide(key: str, text: str) -> str:
    """Replaces a key in a text, also where some of its characters are written as JSON, URLs or HTML write them."""

    def any_spelling(char: str) -> str:
        code = ord(char)
        spellings = (char, f"u{code:04x}", f"%{code:02x}", f"&#{code};", f"&#x{code:x};", html.escape(char))
        return rf"\\*(?:{'|'.join(map(re.escape, spellings))})"

    return re.sub("".join(map(any_spelling, key)), "***", text, flags=re.IGNORECASE) if key else text


class EndpointJudge(Judge):
    """
    Model behind an OpenAI-compatible endpoint, asked by a rubric or in a guard model's format.

    Answers are asked for greedily and several at a time. Passing faults (timeouts, lost connections, broken bodies and
    the statuses 408, 409, 429 and from 500 on) are tried again, after the time that the server asks for or growing
    ones. What the judge wrote and cannot be read is a verdict of `None`.

    Args:
        name (`str`):
            `"strongreject"` (StrongREJECT's rubric, 0 to 1, harmful from 0.5), `"rubric"` (0 to 5, harmful from 3), or
            a guard model of [`~trl_sbr.judges.formats.GUARDS`] that writes.
        model (`str`):
            Model that the endpoint is asked for.
        base_url (`str`):
            Address of the endpoint up to its version, such as `"http://localhost:8000/v1"`.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that holds the key. Without it, none is sent.
        cache_path (`str` or `os.PathLike`, *optional*):
            File that keeps the answers, so that none is asked for twice, also after an interruption.
        concurrency (`int`, *optional*, defaults to `8`):
            Requests under way at once.
        max_retries (`int`, *optional*, defaults to `6`):
            Further tries of a request.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds after which a try is given up that has no whole answer.
        first_wait (`float`, *optional*, defaults to `1.0`):
            Seconds to wait before the first further try. Doubles with each, up to a minute.

    Raises:
        ValueError: If there is no such format, or it needs the model's probabilities, or the address is none, or the cache
            is no file that could be read.
    """

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        cache_path: str | os.PathLike | None = None,
        concurrency: int = 8,
        max_retries: int = 6,
        timeout: float = 60.0,
        first_wait: float = 1.0,
    ):
        written = {key: guard for key, guard in GUARDS.items() if guard.kind in ("causal", "multimodal")}
        if name not in RUBRICS and name not in written:
            raise ValueError(
                f"Got the format {name!r}, expected one of: {', '.join([*RUBRICS, *written])}. Other guards are read "
                "from their probabilities, which needs `GuardJudge`."
            )
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
            raise ValueError(
                "Expected a `base_url` such as 'http://localhost:8000/v1', without user, password and query: the key "
                f"belongs in the environment variable {api_key_env}. Found the scheme {url.scheme!r} and the host "
                f"{url.hostname!r}."
            )
        self._format = RUBRICS[name] if name in RUBRICS else written[name].format
        self._model = model
        self._base_url = base_url.rstrip("/")
        self._api_key_env = api_key_env
        self._cache = _AnswerCache(cache_path)
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout = timeout
        self._first_wait = first_wait
        self.info = JudgeInfo(
            name=f"endpoint-{name}",
            id=model,
            revision=None,
            threshold=self._format.threshold,
            truncation="none",
            license=written[name].license if name in written else "unknown",
        )

    def judge(
        self,
        prompts: Sequence[str] | None,
        responses: Sequence[str],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """
        Judge answers. See [`Judge.judge`].

        Raises:
            EndpointError: If a request fails for good. What was answered before it is in the cache.
        """
        check_pairs(prompts, responses, self.needs_prompts)
        self._api_key()  # now, not in a thread
        questions = [self._format.render(*pair) for pair in zip(prompts, responses, strict=True)]
        stop = Event()
        asked: dict[str, Future] = {}

        def submit(request: Request) -> str:
            path, body = self._body(request)
            key = hashlib.sha256(json.dumps([self._base_url, path, body], sort_keys=True).encode()).hexdigest()
            if self._cache.get(key) is None and key not in asked:
                asked[key] = pool.submit(self._ask, client, key, path, body, stop)
            return key

        with requests.Session() as client, ThreadPoolExecutor(self._concurrency) as pool:
            client.auth = self._authorize
            client.headers["Accept-Encoding"] = "identity"
            client.mount(self._base_url, DeadlineAdapter(pool_maxsize=self._concurrency))
            try:
                keys = [[submit(request) for request in requests] for requests in questions]
                count = len({key for request_keys in keys for key in request_keys})
                finished = count - len(asked)
                if progress is not None and finished:
                    progress(finished * len(questions) // count, len(questions))
                for future in as_completed(asked.values()):
                    future.result()
                    finished += 1
                    if progress is not None:
                        progress(finished * len(questions) // count, len(questions))
            except BaseException:
                stop.set()  # nobody waits for a further try; requests under way end, and are cached
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [
            merge_verdicts(requests, [self._format.parse(self._cache.get(key)) for key in request_keys])
            for requests, request_keys in zip(questions, keys, strict=True)
        ]

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        body = {"model": self._model, "temperature": 0, "max_tokens": self._format.max_new_tokens}
        if request.messages is None:
            return "/completions", {**body, "prompt": request.text}
        if request.variables:
            body["chat_template_kwargs"] = request.variables  # vLLM and SGLang hand them to the template
        return "/chat/completions", {**body, "messages": request.messages}

    def _ask(self, client: requests.Session, key: str, path: str, body: dict[str, Any], stop: Event) -> None:
        """Gets one answer into the cache."""
        url = self._base_url + path
        for attempt in range(self._max_retries + 1):
            wait = random.uniform(0.5, 1.0) * min(60.0, self._first_wait * 2**attempt)
            try:
                reply = self._post(client, url, body)
            except _PASSING_FAULTS as error:
                problem = f"{type(error).__name__} ({error})"
            else:
                problem = f"status {reply.status}, {self._excerpt(reply.body)!r}"
                if reply.status < 300:
                    try:
                        return self._cache.put(key, _answer(reply.body))
                    except ValueError as error:
                        problem += f" ({error})"
                elif reply.status not in _RETRIED and reply.status < 500:
                    break
                asked_wait = _retry_after(reply.retry_after)
                if asked_wait > _LONGEST_WAIT:
                    problem += f", to be tried again in {asked_wait:.0f} s"
                    break
                wait = max(wait, asked_wait)
            if attempt == self._max_retries or stop.wait(wait):
                break
        raise EndpointError(
            f"No answer from {url} (tries: {attempt + 1}), at last: {problem}. Check the address, the model "
            f"{self._model!r} and the key in the environment variable {self._api_key_env}"
            f"{'' if self._api_key() else ' (not set)'}, then run again: what is in the cache is not asked for twice."
        )

    def _post(self, client: requests.Session, url: str, body: dict[str, Any]) -> _Reply:
        """One try. No more is read than an answer may have, and no longer than a try may take."""
        start = time.monotonic()
        content = bytearray()
        try:
            with (
                deadline(self._timeout),
                client.post(url, json=body, timeout=self._timeout, allow_redirects=False, stream=True) as response,
            ):
                # As it comes: what is packed may be small, and large when unpacked
                for chunk in response.raw.stream(2**16, decode_content=False):
                    content += chunk
                    if len(content) > _MAX_BODY_BYTES:
                        break
        except _PASSING_FAULTS:
            if time.monotonic() - start < self._timeout:
                raise
        if time.monotonic() - start >= self._timeout:  # what came until then may look whole
            raise requests.Timeout(f"no whole answer within {self._timeout:g} s")
        return _Reply(response.status_code, response.headers.get("retry-after", ""), bytes(content))

    def _api_key(self) -> str:
        key = os.environ.get(self._api_key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"The environment variable {self._api_key_env} holds characters that no key has, such as a line break. Set "
                "it to the key alone."
            )
        return key

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The key, or none: without this, requests would send the password that `.netrc` has for the server."""
        if self._api_key():
            request.headers["Authorization"] = f"Bearer {self._api_key()}"
        return request

    def _excerpt(self, body: bytes) -> str:
        """The beginning of a body. Some servers quote the key in it."""
        return _hide(self._api_key(), body[:10_000].decode("utf-8", "replace"))[:300]
