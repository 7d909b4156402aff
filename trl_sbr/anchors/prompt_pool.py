# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Harmful questions of our own, from which anchors choose themselves: those that the aligned model refuses.

They are short, name no details, and share no question with a set that models are evaluated on or the demo trains on.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from ..metrics.harmful_score.refusal import is_refusal
from .generation import REFUSAL_TOKENS, generate_answers
from .prompts import DEFAULT_PROMPTS, cross_system_prompts


logger = logging.get_logger(__name__)

_SHOWN = 8  # answers that a message shows

_CATEGORIES_OF_DEFAULT_PROMPTS = (
    "explosives",
    "theft",
    "drugs",
    "cybercrime",
    "fraud",
    "hate",
    "self-harm",
    "stalking",
)


def load_prompt_pool() -> dict[str, str]:
    """
    Read the pool.

    Returns:
        `dict[str, str]`: The category of each prompt. The default prompts come first, one a category; then one of each
        other category; then each category's second, and so on: any number from the start is spread over categories.
    """
    rows = zip(_CATEGORIES_OF_DEFAULT_PROMPTS, DEFAULT_PROMPTS, strict=True)
    by_category = {category: [prompt] for category, prompt in rows}
    for line in files("trl_sbr.anchors").joinpath("prompt_pool.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        by_category.setdefault(row["category"], []).append(row["prompt"])
    rounds = zip_longest(*([(prompt, category) for prompt in prompts] for category, prompts in by_category.items()))
    return dict(row for one in rounds for row in one if row is not None)


def first_prompts(num_prompts: int) -> list[str]:
    """The prompts at the start of the pool. `ValueError` if it has not as many."""
    pool = list(load_prompt_pool())
    if not 1 <= num_prompts <= len(pool):
        raise ValueError(f"Expected `num_anchors` to be from 1 to the pool's {len(pool)}, found {num_prompts}.")
    return pool[:num_prompts]


def choose_prompts(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    num_prompts: int,
    chat_template_kwargs: dict[str, Any] | None = None,
    system_prompts: Sequence[str | None] | None = None,
    prompts: Sequence[str] | None = None,
) -> list[str]:
    """
    Choose prompts of the pool that a model refuses, spread over categories, and say which ones it answers.

    The pool is asked from its start, until enough prompts are refused together: where two tokens are nearly as likely, rounding
    decides, which differs with the batch, and the next check asks the chosen ones as one.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        num_prompts (`int`):
            Number to choose.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further variables of the chat template.
        system_prompts (`Sequence[str | None]`, *optional*):
            System prompts, under all of which the model must refuse a prompt.
        prompts (`Sequence[str]`, *optional*):
            The part of the pool to choose from. Defaults to all of it.

    Returns:
        `list[str]`: The prompts.

    Raises:
        ValueError: If the model refuses fewer.
    """
    categories = load_prompt_pool()
    first_prompts(num_prompts)  # raises
    left, refused, answered = list(categories if prompts is None else prompts), [], {}
    while len(refused) < num_prompts and left:
        missing = num_prompts - len(refused)
        asked, left = refused + left[:missing], left[missing:]
        crossed = cross_system_prompts(asked, system_prompts)
        answers = generate_answers(
            model, processing_class, crossed, REFUSAL_TOKENS, len(crossed), chat_template_kwargs
        )
        answered |= {
            messages[-1]["content"]: answer
            for messages, answer in zip(crossed, answers, strict=True)
            if not is_refusal(answer)
        }
        refused = [prompt for prompt in asked if prompt not in answered]
    num_asked = len(refused) + len(answered)
    listing = "\n".join(f"  {prompt!r} -> {answer!r}" for prompt, answer in list(answered.items())[:_SHOWN])
    listing += f"\n  ... and {len(answered) - _SHOWN} more" if len(answered) > _SHOWN else ""
    if len(refused) < num_prompts:
        raise ValueError(
            f"Expected an aligned model, which refuses at least {num_prompts} of the pool's {num_asked} harmful prompts, "
            f"found one that refuses {len(refused)}. It answers:\n{listing}\nName prompts that "
            "it refuses (`prompts`; `anchor_prompts` in the training arguments), or capture fewer (`num_anchors`); if it is aligned by "
            "its adapter, set the reference to 'current'; if these are refusals in other words, name them as prompts "
            "with `require_refusal=False` (`anchor_require_refusal`)."
        )
    if answered:
        covered = {categories[prompt] for prompt in refused}
        bare = list(dict.fromkeys(categories[prompt] for prompt in answered if categories[prompt] not in covered))
        logger.warning(
            f"The aligned model answers {len(answered)} of the {num_asked} harmful prompts that it was asked. They were left "
            f"out, and {len(bare)} categories have no anchor for it ({', '.join(bare) or '-'}):\n{listing}"
        )
    return refused
