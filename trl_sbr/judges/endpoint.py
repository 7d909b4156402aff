# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Judge by a model behind an OpenAI-compatible endpoint, such as vLLM's, SGLang's or a provider's."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

from ..anchors.untrusted_files import MAX_TEXT_BYTES, decode_text, read_bounded
from ..metrics.harmful_score.verdicts import Verdict
from .base import Judge, JudgeInfo, check_pairs
from .endpoint_client import EndpointClient
from .formats import GUARDS, RUBRICS, Request, merge_verdicts


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


class EndpointJudge(Judge):
    """
    Model behind an OpenAI-compatible endpoint, asked by a rubric or in a guard model's format.

    What the judge wrote and cannot be read is a verdict of `None`. Faults are met as by [`EndpointClient`].

    Args:
        name (`str`):
            `"strongreject"` (StrongREJECT's rubric, 0 to 1, harmful from 0.5), `"rubric"` (0 to 5, harmful from 3), or
            a guard model of [`~trl_sbr.judges.formats.GUARDS`] that writes.
        model (`str`):
            Model that the endpoint is asked for.
        base_url (`str`):
            Address of the endpoint up to its version, such as `"http://localhost:8000/v1"`.
        cache_path (`str` or `os.PathLike`, *optional*):
            File that keeps the answers, so that none is asked for twice, also after an interruption. One that could not be
            read is asked for again.
        **client_kwargs:
            Further arguments of [`EndpointClient`]: `api_key_env`, `concurrency`, `max_retries`, `timeout` and `first_wait`.

    Raises:
        ValueError: If there is no such format, or it needs the model's probabilities, or the address is none, or the cache
            is no file that could be read.
    """

    def __init__(
        self,
        name: str,
        model: str,
        base_url: str,
        cache_path: str | os.PathLike | None = None,
        **client_kwargs: Any,
    ):
        written = {key: guard for key, guard in GUARDS.items() if guard.kind in ("causal", "multimodal")}
        if name not in RUBRICS and name not in written:
            raise ValueError(
                f"Got the format {name!r}, expected one of: {', '.join([*RUBRICS, *written])}. Other guards are read "
                "from their probabilities, which needs `GuardJudge`."
            )
        self._client = EndpointClient(model, base_url, **client_kwargs)
        self._format = RUBRICS[name] if name in RUBRICS else written[name].format
        self._cache = _AnswerCache(cache_path)
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
        questions = [self._format.render(*pair) for pair in zip(prompts, responses, strict=True)]
        bodies = {key: body for requests in questions for key, body in map(self._keyed_body, requests)}
        cached = {key: self._cache.get(key) for key in bodies}
        # Files of older versions hold some that cannot be read
        answers = {key: text for key, text in cached.items() if text is not None and self._is_readable(text)}
        pending = {key: body for key, body in bodies.items() if key not in answers}

        def report():
            if progress is not None and answers:
                progress(len(answers) * len(questions) // len(bodies), len(questions))

        def keep(key, completion):
            answers[key] = completion.text or ""
            if self._is_readable(answers[key]):
                self._cache.put(key, answers[key])
            report()

        report()
        self._client.ask(pending, keep)
        return [
            merge_verdicts(
                requests, [self._format.parse(answers[self._keyed_body(request)[0]]) for request in requests]
            )
            for requests in questions
        ]

    def _is_readable(self, text: str) -> bool:
        return self._format.parse(text).harmful is not None

    def _keyed_body(self, request: Request) -> tuple[str, dict[str, Any]]:
        question = {"prompt": request.text} if request.messages is None else {"messages": request.messages}
        body = self._client.body(self._format.max_new_tokens, request.variables, **question)
        key = json.dumps([self._client.base_url, body], sort_keys=True)
        return hashlib.sha256(key.encode()).hexdigest(), body
