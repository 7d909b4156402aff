# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The contexts in which anchors hold a model: prompts, plain and behind openers, with the beginning of the model's own refusal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils import logging

from ..metrics.harmful_score.refusal import is_refusal
from .generation import REFUSAL_TOKENS, begin_answers
from .openers import are_default, resolve_openers
from .prompts import Messages, encode_prompts, get_tokenizer


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Context:
    """
    Tokens behind which a model is held.

    Args:
        prompt (`list[dict[str, str]]`):
            The conversation.
        opener (`str`):
            With what its answer has begun, or `""`.
        input_ids (`list[int]`):
            Their tokens, and the first ones of the model's refusal but the last.
        positions (`list[int]`):
            Where the states are held that choose the tokens of the refusal.
    """

    prompt: Messages
    opener: str
    input_ids: list[int]
    positions: list[int]


def name_context(question: str, opener: str) -> str:
    """A question, and the opener behind which it is asked, as messages show them."""
    return f"{question!r} behind {opener!r}" if opener else repr(question)


def make_contexts(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[Messages],
    chat_template_kwargs: dict[str, Any],
    openers: str | Sequence[str] | None,
    refusal_tokens: int,
    require_refusal: bool,
) -> list[Context]:
    """
    Make the contexts of anchors: each prompt plain and behind each opener. A prompt that is answered behind an opener is left
    out there, and what is left out is said.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        prompts (`Sequence[list[dict[str, str]]]`):
            Harmful conversations.
        chat_template_kwargs (`dict[str, Any]`):
            Further variables of the chat template.
        openers (`str` or `Sequence[str]`, *optional*):
            Beginnings of an answer, or `"default"`, see [`~trl_sbr.anchors.openers.resolve_openers`].
        refusal_tokens (`int`):
            Number of tokens of the model's own greedy answer that are chosen by states that are held; all of it where it is
            shorter, the token that ends it among them.
        require_refusal (`bool`):
            Whether only refusals are held.

    Returns:
        `list[Context]`: The contexts, those of a prompt one after another.

    Raises:
        ValueError: If a context stands there twice or is too long; if a prompt is answered, or all are behind one opener (behind
            every one, if they are the default ones); or if an argument is out of bounds.
    """
    _check_arguments(prompts, refusal_tokens)
    crossed = [(prompt, opener) for prompt in prompts for opener in ("", *resolve_openers(openers))]
    begun = encode_prompts(
        processing_class,
        [prompt for prompt, _ in crossed],
        chat_template_kwargs,
        openers=[opener for _, opener in crossed],
    )
    names = [name_context(prompt[-1]["content"], opener) for prompt, opener in crossed]
    _check_token_ids(names, begun, refusal_tokens, model)
    held, answers = range(len(begun)), [[]] * len(begun)
    if require_refusal or refusal_tokens > 1:
        tokenizer = get_tokenizer(processing_class)
        answers = begin_answers(model, tokenizer, begun, REFUSAL_TOKENS)
        texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
        if require_refusal:
            held = _find_refused(crossed, names, texts, are_default(openers))
    contexts = []
    for i in held:
        read = answers[i][:refusal_tokens][:-1]  # the last one is chosen, and not read
        input_ids = begun[i] + read
        contexts.append(Context(*crossed[i], input_ids, list(range(len(begun[i]) - 1, len(input_ids)))))
    return contexts


def check_refused(names: Sequence[str], answers: Sequence[str]) -> None:
    """
    Make sure that answers are refusals.

    Args:
        names (`Sequence[str]`):
            What was asked, see [`name_context`].
        answers (`Sequence[str]`):
            The answers.

    Raises:
        ValueError: If one is none; the error shows it.
    """
    answered = [(name, answer) for name, answer in zip(names, answers, strict=True) if not is_refusal(answer)]
    if answered:
        listing = "\n".join(f"  {name} -> {answer!r}" for name, answer in answered)
        raise ValueError(
            f"Expected the aligned model to refuse every anchor prompt, found {len(answered)} of {len(names)} that "
            f"it answers:\n{listing}\nSuch an anchor would pin the harmful answer. Choose prompts that the model "
            "refuses; if it is aligned by its adapter, set the reference to 'current'; if these are refusals in "
            "other words, set `require_refusal=False` (`anchor_require_refusal` in the training arguments)."
        )


def _find_refused(
    crossed: list[tuple[Messages, str]], names: list[str], answers: list[str], some_openers_do: bool
) -> list[int]:
    """The contexts to hold: plain ones, which must be refused, and those behind openers that are, behind each or behind some."""
    plain = [i for i, (_, opener) in enumerate(crossed) if not opener]
    check_refused([names[i] for i in plain], [answers[i] for i in plain])
    left_out = [i for i, answer in enumerate(answers) if not is_refusal(answer)]
    by_opener: dict[str, list[int]] = {}
    for i in left_out:
        by_opener.setdefault(crossed[i][1], []).append(i)
    some_are_held = some_openers_do and len(plain) + len(left_out) < len(crossed)
    for opener, answered in by_opener.items():
        if len(answered) == len(plain) and not some_are_held:
            raise ValueError(
                f"Found no anchor prompt that the aligned model refuses behind the opener {opener!r}, e.g. "
                f"{names[answered[0]]} -> {answers[answered[0]]!r}: there is no refusal to hold. Harden the model first "
                "(`trl-sbr harden`), or leave the opener out."
            )
    if left_out:
        listing = "\n".join(f"  {opener!r}: {len(found)} of {len(plain)}" for opener, found in by_opener.items())
        logger.warning(
            f"The aligned model answers {len(left_out)} of the {len(crossed) - len(plain)} anchor prompts behind openers. They "
            f"are left out there, and what it says there is not held:\n{listing}"
        )
    return sorted(set(range(len(crossed))) - set(left_out))


def _check_arguments(prompts: Sequence[Messages], refusal_tokens: int) -> None:
    if not prompts:
        raise ValueError("Expected at least one anchor prompt, found none.")
    if not 1 <= refusal_tokens <= REFUSAL_TOKENS:
        raise ValueError(f"Expected `refusal_tokens` to be from 1 to {REFUSAL_TOKENS}, found {refusal_tokens}.")


def _check_token_ids(names: list[str], begun: list[list[int]], refusal_tokens: int, model: nn.Module) -> None:
    seen = {}
    for number, (name, ids) in enumerate(zip(names, begun, strict=True)):
        first = seen.setdefault(tuple(ids), number)
        if first != number:
            raise ValueError(f"Anchor prompts {first} and {number} are the same: {name}. Remove one.")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(map(len, begun)) + refusal_tokens - 1
    if limit is not None and longest > limit:
        raise ValueError(
            f"An anchor prompt has {longest} tokens, expected at most the model's {limit} positions. Shorten it."
        )
