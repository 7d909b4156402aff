# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Greedy answers to prompts, in batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .bottleneck import unembedding_input, without_router_loss
from .prompts import Messages, encode_prompts, get_tokenizer


# Tokens after which the rows that have ended leave the batch. Measured: `benchmarks/generation_speed.py`.
STRIDE = 16

REFUSAL_TOKENS = 32  # enough of an answer to tell a refusal

_BATCH_SIZE = 32  # of `begin_answers`

_ROWS_CAN_LEAVE = {DynamicLayer, DynamicSlidingWindowLayer}


@dataclass
class BatchSize:
    """
    Number of prompts that are answered at once. Where memory runs out, it is halved, and stays so.

    Args:
        value (`int`):
            The number to begin with.
    """

    value: int


def generate_answers(
    model: nn.Module,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin,
    prompts: Sequence[str | Messages],
    max_new_tokens: int = 64,
    batch_size: int = 16,
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    openers: Sequence[str] | None = None,
) -> list[str]:
    """
    Answer prompts greedily.

    Of the model's own generation settings the tokens that end an answer are taken, and no other. Prompts are batched by
    length and padded on the left.

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
            Number of prompts that are answered at once, halved where memory runs out.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further variables of the chat template.
        progress (`Callable[[int, int], None]`, *optional*):
            Called after each batch with the number of prompts answered, and of all.
        openers (`Sequence[str]`, *optional*):
            For each prompt, text with which the answer has begun, or `""`.

    Returns:
        `list[str]`: The answers, in the order of the prompts, without openers, special tokens and surrounding white space.

    Raises:
        ValueError: If the chat template drops part of a prompt, or a text is given for the list of prompts.
    """
    tokenizer = get_tokenizer(processing_class)
    input_ids = encode_prompts(processing_class, prompts, chat_template_kwargs, openers)
    answers = {}
    for batch in generate_token_ids(model, tokenizer, input_ids, max_new_tokens, BatchSize(batch_size)):
        for i, token_ids in batch.items():
            answers[i] = tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        if progress is not None:
            progress(len(answers), len(input_ids))
    return [answers[i] for i in range(len(input_ids))]


def begin_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[list[int]], num_tokens: int
) -> list[list[int]]:
    """
    Returns the first tokens of the model's own greedy answers.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer.
        input_ids (`Sequence[list[int]]`):
            Token ids of each prompt, and of the opener behind it if there is one.
        num_tokens (`int`):
            Number of tokens at which an answer is cut.
    """
    answers = {}
    for batch in generate_token_ids(model, tokenizer, input_ids, num_tokens, BatchSize(_BATCH_SIZE)):
        answers.update(batch)
    return [answers[i] for i in range(len(input_ids))]


@contextmanager
def without_generation_settings(model: nn.Module) -> Iterator[Any]:
    """
    While active, the model has no generation settings of its own: `generate` would put them wherever ours are unset.

    Yields:
        [`~transformers.GenerationConfig`] or `None`: What it has.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    holders = [module for module in {base, *model.modules()} if "generation_config" in vars(module)]
    kept = [module.generation_config for module in holders]
    own = getattr(base, "generation_config", None)
    for module in (base, *holders):
        module.generation_config = GenerationConfig()
    try:
        yield own
    finally:
        del base.generation_config  # where it had none
        for module, config in zip(holders, kept, strict=True):
            module.generation_config = config


@torch.no_grad()
def generate_token_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    input_ids: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: BatchSize,
) -> Iterator[dict[int, list[int]]]:
    """
    Continue token sequences greedily, in batches of similar lengths, the shortest first.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model. Left in the mode (train or eval) in which it came.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, for the tokens that pad and that end an answer.
        input_ids (`Sequence[Sequence[int]]`):
            Token ids of each prompt.
        max_new_tokens (`int`):
            Length of an answer, in tokens, at which it is cut.
        batch_size ([`BatchSize`]):
            Number of prompts that are answered at once.

    Yields:
        `dict[int, list[int]]`: After each batch, the new token ids of its prompts by their position in `input_ids`,
        with the token that ended the answer, if one did.
    """
    pending = sorted(range(len(input_ids)), key=lambda i: len(input_ids[i]))
    was_training = model.training
    model.eval()
    try:
        while pending:
            batch = pending[: batch_size.value]
            try:
                with without_generation_settings(model) as own, _states_in_one_piece(model):
                    eos_token_ids = _eos_token_ids(own, tokenizer)
                    prompts = [input_ids[i] for i in batch]
                    outputs = _continue_batch(model, tokenizer, prompts, max_new_tokens, eos_token_ids)
            except RuntimeError as error:
                if batch_size.value == 1 or not should_reduce_batch_size(error):
                    raise
                outputs = None
            if outputs is None:  # outside of the handler, whose traceback holds the tensors
                batch_size.value //= 2
                clear_device_cache(garbage_collection=True)
                continue
            pending = pending[len(batch) :]
            yield dict(zip(batch, outputs, strict=True))
    finally:
        model.train(was_training)


def _states_in_one_piece(model: nn.Module) -> AbstractContextManager:
    """A CPU multiplies the slice of states of which `generate` wants logits by a copy of the frozen unembedding for each row."""
    unembedding = model.get_output_embeddings()
    return nullcontext() if unembedding is None else unembedding_input(unembedding, torch.Tensor.contiguous)


def _eos_token_ids(own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer: the model's, or else the tokenizer's."""
    eos_token_id = None if own is None else own.eos_token_id
    if eos_token_id is None:
        eos_token_id = tokenizer.eos_token_id
    return {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())


def _continue_batch(
    model, tokenizer, prompts: list[Sequence[int]], max_new_tokens: int, eos_token_ids: set[int]
) -> list[list[int]]:
    """Continues one batch by [`STRIDE`] tokens at a time; after each, the rows that have ended leave it."""
    pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    sequences = torch.tensor(
        [[pad_token_id] * pad + list(prompt) for prompt, pad in zip(prompts, padding, strict=True)],
        device=model.device,
    )
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding], device=model.device)
    outputs: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    cache = None
    steps, steps_left = min(STRIDE, max_new_tokens), max_new_tokens
    while True:
        output = model.generate(
            input_ids=sequences,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=steps,
                eos_token_id=sorted(eos_token_ids) or None,
                pad_token_id=pad_token_id,
                use_cache=True,
                return_dict_in_generate=True,
            ),
            **without_router_loss(model),
        )
        alive = []
        for position, (row, new) in enumerate(
            zip(rows, output.sequences[:, sequences.shape[1] :].tolist(), strict=True)
        ):
            end = next((i + 1 for i, token in enumerate(new) if token in eos_token_ids), None)
            outputs[row] += new[:end]
            if end is None:
                alive.append(position)
        steps_left -= steps
        if not alive or not steps_left:
            return outputs
        cache = output.get("past_key_values")
        if type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= _ROWS_CAN_LEAVE:
            steps = min(STRIDE, steps_left)
            cache.batch_select_indices(torch.tensor(alive, device=model.device))
        else:  # a state of another kind: it is computed anew, once
            cache, steps = None, steps_left
        rows = [rows[position] for position in alive]
        sequences = output.sequences[alive]
        mask = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)[alive]
