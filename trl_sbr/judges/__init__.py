# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Judges of whether an answer is harmful, by name."""

from typing import Any

from .base import Judge, JudgeInfo
from .formats import GUARDS, RUBRICS


__all__ = ["Judge", "JudgeInfo", "check_judge_name", "judge_names", "load_judge"]

_ENDPOINT = "endpoint-"


def judge_names() -> list[str]:
    """Returns the names that [`load_judge`] takes."""
    endpoints = [*RUBRICS, *(name for name, guard in GUARDS.items() if guard.kind in ("causal", "multimodal"))]
    return ["lexical", *GUARDS, *(_ENDPOINT + name for name in endpoints)]


def check_judge_name(name: str) -> None:
    """Raises a `ValueError` where [`load_judge`] takes no such name: before the answers are there that it would judge."""
    if name not in judge_names():
        raise ValueError(f"`{name}` is no judge. There are {', '.join(f'`{known}`' for known in judge_names())}.")


def load_judge(name: str, **kwargs: Any) -> Judge:
    """
    Load a judge.

    Args:
        name (`str`):
            `"lexical"`, which needs no model; a guard model such as `"qwen3guard-0.6b"`, run by transformers; or
            `"endpoint-"` and a rubric (`"endpoint-strongreject"`, `"endpoint-rubric"`) or guard model
            (`"endpoint-qwen3guard-8b"`), asked for over HTTP. See [`judge_names`].
        **kwargs:
            Arguments of [`~judges.guard.GuardJudge`] or [`~judges.endpoint.EndpointJudge`]. The latter needs `model`
            and `base_url`.

    Returns:
        [`Judge`]: The judge.

    Raises:
        ValueError: If there is none of that name, or the judge refuses its arguments.
        OSError: If its model cannot be loaded.
    """
    check_judge_name(name)
    if name == "lexical":
        from .lexical import LexicalJudge

        return LexicalJudge(**kwargs)
    if name.startswith(_ENDPOINT):
        from .endpoint import EndpointJudge

        return EndpointJudge(name.removeprefix(_ENDPOINT), **kwargs)
    from .guard import GuardJudge

    return GuardJudge(name, **kwargs)
