# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
What hardening trains on: contexts of which several positions are held at states of the aligned model.

A refused prompt stands behind openers, with the beginning of the refusal that the model gives without them, and is held
at the states that the model has there without them. A benign prompt stands plain and behind openers, with the beginning
of the model's own answer, and is held where it is.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..anchors.bottleneck import (
    PromptBatch,
    final_hidden_states,
    get_unembedding,
    pad_right,
    relative_errors,
    share_prefix,
)
from ..anchors.generation import REFUSAL_TOKENS, begin_answers
from ..anchors.prompts import Messages, encode_prompts, get_tokenizer
from ..metrics.harmful_score.refusal import is_refusal


_BATCH_SIZE = 32


@dataclass(frozen=True)
class HeldContext:
    """
    Tokens behind which a model is held.

    Args:
        input_ids (`list[int]`):
            A prompt, perhaps an opener, and the first tokens of an answer but the last.
        reference_ids (`list[int]`):
            Tokens on which the aligned model has the states to hold: the same ones, or those without the opener.
        num_states (`int`):
            Number of positions that are held, the last ones in both: those whose states choose the answer's tokens.
    """

    input_ids: list[int]
    reference_ids: list[int]
    num_states: int


def push_refusals(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Messages],
    openers: Sequence[str],
    openers_per_prompt: int,
    answer_tokens: int,
    seed: int,
) -> tuple[list[HeldContext], list[bool]]:
    """
    Put the refusals of an aligned model behind openers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        prompts (`Sequence[str | list[dict[str, str]]]`):
            Harmful questions, or conversations that end with one. Those that it answers are left out.
        openers (`Sequence[str]`):
            Beginnings of an answer.
        openers_per_prompt (`int`):
            Number of them drawn for each prompt.
        answer_tokens (`int`):
            Number of tokens of the refusal.
        seed (`int`):
            Seed of the draw.

    Returns:
        `tuple[list[HeldContext], list[bool]]`: The contexts, and for each prompt whether it is refused.

    Raises:
        ValueError: If no prompt is refused.
    """
    tokenizer, rng = get_tokenizer(processing_class), random.Random(seed)
    input_ids = encode_prompts(processing_class, prompts)
    answers = begin_answers(model, tokenizer, input_ids, REFUSAL_TOKENS)
    texts = [tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]
    refused = [is_refusal(text) for text in texts]
    if not any(refused):
        listing = "\n".join(f"  {prompt!r} -> {text!r}" for prompt, text in list(zip(prompts, texts, strict=True))[:3])
        raise ValueError(
            f"Expected an aligned model, found one that refuses none of the {len(prompts)} harmful prompts:\n{listing}\n"
            "There is no refusal to put behind openers. Start from an aligned model, or give prompts that it refuses (in "
            "English, whose phrases of refusal are known)."
        )
    contexts = []
    for ids, answer, is_used in zip(input_ids, answers, refused, strict=True):
        answer = answer[:answer_tokens]
        for opener in rng.sample(openers, openers_per_prompt) if is_used else ():
            begun = ids + tokenizer(opener, add_special_tokens=False)["input_ids"]
            contexts.append(HeldContext(begun + answer[:-1], ids + answer[:-1], num_states=len(answer)))
    return contexts, refused


def keep_answers(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Messages],
    openers: Sequence[str],
    openers_per_prompt: int,
    answer_tokens: int,
    seed: int,
) -> list[HeldContext]:
    """
    Keep the model's own answers to benign prompts, plain and behind openers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        prompts (`Sequence[str | list[dict[str, str]]]`):
            Questions, or conversations that end with one.
        openers (`Sequence[str]`):
            Beginnings of an answer.
        openers_per_prompt (`int`):
            Number of them drawn for each prompt.
        answer_tokens (`int`):
            Number of tokens of the answer.
        seed (`int`):
            Seed of the draw.

    Returns:
        `list[HeldContext]`: The contexts.
    """
    tokenizer, rng = get_tokenizer(processing_class), random.Random(seed)
    drawn = [(prompt, opener) for prompt in prompts for opener in ("", *rng.sample(openers, openers_per_prompt))]
    begun = encode_prompts(processing_class, [prompt for prompt, _ in drawn], openers=[opener for _, opener in drawn])
    answers = begin_answers(model, tokenizer, begun, answer_tokens)
    return [
        HeldContext(ids + answer[:-1], ids + answer[:-1], num_states=len(answer))
        for ids, answer in zip(begun, answers, strict=True)
    ]


def lay_out_held(
    input_ids: Sequence[list[int]], num_states: Sequence[int], in_one_row: bool, device: torch.device | str = "cpu"
) -> PromptBatch:
    """
    Lay out token sequences of which the last positions are held: in one row, see [`~trl_sbr.anchors.bottleneck.share_prefix`],
    or in rows padded on the right.

    Args:
        input_ids (`Sequence[list[int]]`):
            Token ids of each.
        num_states (`Sequence[int]`):
            Number of positions that are held of each.
        in_one_row (`bool`):
            Whether they stand in one row. It takes a model whose attention is torch's `scaled_dot_product_attention`.
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Device of the returned tensors.

    Returns:
        [`PromptBatch`]: The sequences, whose `rows` and `columns` are those of all held positions, in order.
    """
    positions = [list(range(len(ids) - count, len(ids))) for ids, count in zip(input_ids, num_states, strict=True)]
    lay_out = share_prefix if in_one_row else pad_right
    return lay_out(list(input_ids), device, positions)


@torch.no_grad()
def read_reference_states(model: nn.Module, contexts: Sequence[HeldContext], in_one_row: bool) -> list[torch.Tensor]:
    """
    Read the states at which contexts are held.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The aligned model.
        contexts (`Sequence[HeldContext]`):
            The contexts.
        in_one_row (`bool`):
            See [`lay_out_held`].

    Returns:
        `list[torch.Tensor]`: The states of each, float32, of shape `(num_states, hidden_size)`, on the CPU.
    """
    unembedding, states = get_unembedding(model), []
    for start in range(0, len(contexts), _BATCH_SIZE):
        part = contexts[start : start + _BATCH_SIZE]
        counts = [context.num_states for context in part]
        batch = lay_out_held([context.reference_ids for context in part], counts, in_one_row, model.device)
        states += final_hidden_states(model, unembedding, batch).cpu().split(counts)
    return states


@torch.no_grad()
def can_share_prefix(model: nn.Module, contexts: Sequence[HeldContext], tolerance: float) -> bool:
    """
    Say whether a model has the same states on contexts in one row as in padded rows.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        contexts (`Sequence[HeldContext]`):
            Contexts to try it on.
        tolerance (`float`):
            Largest relative error of a state that is put down to the numerics.
    """
    if model.config.get_text_config()._attn_implementation != "sdpa":
        return False
    # A sliding window shorter than the row, or positions counted from the mask, show in the states
    padded, packed = (torch.cat(read_reference_states(model, contexts, share)) for share in (False, True))
    return bool(relative_errors(packed, padded).max() <= tolerance)
