# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Client of an OpenAI-compatible endpoint, such as vLLM's, SGLang's or a provider's: greedy answers, several at a time."""

import html
import json
import os
import random
import re
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from .deadline import DeadlineAdapter, deadline


_RETRIED = {408, 409, 429}  # and all from 500 on
_PASSING_FAULTS = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)
_LONGEST_WAIT = 600.0  # seconds that a server may ask for
_MAX_BODY_BYTES = 2**22  # of an answer of some hundred tokens


class EndpointError(OSError):
    """The endpoint gave no answer that could be used."""


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


@dataclass(frozen=True)
class Completion:
    """
    What a model wrote.

    Args:
        text (`str`, *optional*):
            The text; `None` where the server kept it back, as a provider's filter does.
        prompt_tokens (`int`, *optional*):
            Length of the prompt, if the server tells it.
    """

    text: str | None
    prompt_tokens: int | None


def _read_completion(body: bytes) -> Completion:
    """`ValueError` if the body holds none."""
    if len(body) > _MAX_BODY_BYTES:
        raise ValueError(f"more than {_MAX_BODY_BYTES} bytes")
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (KeyError, IndexError, TypeError, RecursionError) as error:
        raise ValueError("no completion") from error
    if not isinstance(text, str | None):
        raise ValueError("no text")
    usage = content.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    if text is not None:
        text = text.encode("utf-8", "replace").decode("utf-8")  # half a character could not be kept in a file
    return Completion(text, count if isinstance(count, int) else None)


def _hide(key: str, text: str) -> str:
    """Replaces a key in a text, also where some of its characters are written as JSON, URLs or HTML write them."""

    def any_spelling(char: str) -> str:
        code = ord(char)
        spellings = (char, f"u{code:04x}", f"%{code:02x}", f"&#{code};", f"&#x{code:x};", html.escape(char))
        return rf"\\*(?:{'|'.join(map(re.escape, spellings))})"

    return re.sub("".join(map(any_spelling, key)), "***", text, flags=re.IGNORECASE) if key else text


class EndpointClient:
    """
    Asks a model behind an OpenAI-compatible endpoint for greedy answers, several at a time.

    Passing faults (timeouts, lost connections, broken bodies and the statuses 408, 409, 429 and from 500 on) are tried
    again, after the time that the server asks for or growing ones.

    Args:
        model (`str`):
            Model that the endpoint is asked for.
        base_url (`str`):
            Address of the endpoint up to its version, such as `"http://localhost:8000/v1"`.
        api_key_env (`str`, *optional*, defaults to `"OPENAI_API_KEY"`):
            Environment variable that holds the key. Without it, none is sent.
        concurrency (`int`, *optional*, defaults to `8`):
            Requests under way at once.
        max_retries (`int`, *optional*, defaults to `6`):
            Further tries of a request.
        timeout (`float`, *optional*, defaults to `60.0`):
            Seconds after which a try is given up that has no whole answer.
        first_wait (`float`, *optional*, defaults to `1.0`):
            Seconds to wait before the first further try. Doubles with each, up to a minute.

    Raises:
        ValueError: If the address is none.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        max_retries: int = 6,
        timeout: float = 60.0,
        first_wait: float = 1.0,
    ):
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
            raise ValueError(
                "Expected a `base_url` such as 'http://localhost:8000/v1', without user, password and query: the key "
                f"belongs in the environment variable {api_key_env}. Found the scheme {url.scheme!r} and the host "
                f"{url.hostname!r}."
            )
        self.model = model
        self.base_url = base_url.rstrip("/")
        self._api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout = timeout
        self._first_wait = first_wait

    def body(self, max_tokens: int, variables: dict[str, Any] | None = None, **question: Any) -> dict[str, Any]:
        """
        Body of a request for a greedy answer.

        Args:
            max_tokens (`int`):
                Length of the answer at which it is cut.
            variables (`dict[str, Any]`, *optional*):
                Further variables of the chat template, which vLLM and SGLang hand to it.
            **question:
                `messages`, for the model's chat template, or `prompt`, a text.

        Returns:
            `dict[str, Any]`: The body.
        """
        template = {"chat_template_kwargs": variables} if variables else {}
        return {"model": self.model, "temperature": 0, "max_tokens": max_tokens, **template, **question}

    def ask(self, bodies: Mapping[Hashable, dict[str, Any]], keep: Callable[[Any, Completion], None]) -> None:
        """
        Ask for answers.

        Args:
            bodies (`Mapping[Hashable, dict[str, Any]]`):
                What to ask, see [`EndpointClient.body`].
            keep (`Callable[[Any, Completion], None]`):
                Called with the key and the answer of each, as they come, one at a time, from other threads.

        Raises:
            EndpointError: If a request fails for good. Answers that are under way are kept.
        """
        self._api_key()  # now, not in a thread
        stop, lock = Event(), Lock()

        def ask_one(key: Hashable, body: dict[str, Any]) -> None:
            completion = self._ask(client, body, stop)
            with lock:
                keep(key, completion)

        with requests.Session() as client, ThreadPoolExecutor(self._concurrency) as pool:
            client.auth = self._authorize
            client.headers["Accept-Encoding"] = "identity"
            client.mount(self.base_url, DeadlineAdapter(pool_maxsize=self._concurrency))
            try:
                for future in as_completed([pool.submit(ask_one, key, body) for key, body in bodies.items()]):
                    future.result()
            except BaseException:
                stop.set()  # nobody waits for a further try
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, client: requests.Session, body: dict[str, Any], stop: Event) -> Completion:
        url = self.base_url + ("/completions" if "prompt" in body else "/chat/completions")
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
                        return _read_completion(reply.body)
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
            f"{self.model!r} and the key in the environment variable {self._api_key_env}"
            f"{'' if self._api_key() else ' (not set)'}, then run again: what was answered is not asked for twice."
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
