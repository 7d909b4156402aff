# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Greedy answers to prompts, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin

from .prompts import Messages, encode_prompts, get_tokenizer


@torch.no_grad()
def generate_answers(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Messages],
    max_new_tokens: int = 64,
    batch_size: int = 16,
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """
    Answer prompts greedily.

    The model's own sampling settings and repetition penalty are left aside. Prompts are batched by length and padded
    on the left.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model. Left in the mode (train or eval) in which it came.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Tokenizer or processor with a chat template.
        prompts (`Sequence[str | list[dict[str, str]]]`):
            Questions, or conversations that end with the user's turn.
        max_new_tokens (`int`, *optional*, defaults to `64`):
            Length of an answer, in tokens, at which it is cut.
        batch_size (`int`, *optional*, defaults to `16`):
            Number of prompts that are answered at once.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further variables of the chat template.
        progress (`Callable[[int, int], None]`, *optional*):
            Called after each batch with the number of prompts answered, and of all.

    Returns:
        `list[str]`: The answers, in the order of the prompts, without special tokens and surrounding white space.
    """
    tokenizer = get_tokenizer(processing_class)
    input_ids = encode_prompts(processing_class, prompts, chat_template_kwargs)
    eos_token_id = model.generation_config.eos_token_id
    if eos_token_id is None:
        eos_token_id = tokenizer.eos_token_id
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        use_cache=True,
    )
    by_length = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]))
    answers = [""] * len(input_ids)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            indices = by_length[start : start + batch_size]
            length = max(len(input_ids[i]) for i in indices)
            padding = [length - len(input_ids[i]) for i in indices]
            output = model.generate(
                input_ids=torch.tensor(
                    [[pad_token_id] * pad + input_ids[i] for i, pad in zip(indices, padding, strict=True)],
                    device=model.device,
                ),
                attention_mask=torch.tensor(
                    [[0] * pad + [1] * (length - pad) for pad in padding], device=model.device
                ),
                generation_config=generation_config,
            )
            texts = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                answers[i] = text.strip()
            if progress is not None:
                progress(start + len(indices), len(by_length))
    finally:
        model.train(was_training)
    return answers
