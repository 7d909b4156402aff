# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Trainer

from ..anchors.bottleneck import PromptBatch, final_hidden_states, freeze_unembedding, get_unembedding
from ..anchors.numerics import numerics_of, tolerance_of
from ..anchors.openers import BENIGN_OPENERS, OPENERS
from ..anchors.prompts import Messages, as_messages
from .hardening_config import HardeningConfig
from .held_contexts import can_share_prefix, keep_answers, lay_out_held, push_refusals, read_reference_states


class HardeningTrainer(Trainer):
    r"""
    Trainer that makes an aligned model refuse where its answer has been begun for it.

    A chat model that refuses a harmful question mostly answers it behind an opener such as "Sure! ", for alignment
    decides the first tokens of an answer alone. Before anybody's data come, this trainer pushes the refusals that the
    model has behind openers: in the context "prompt, opener, first tokens of the model's own refusal" the final hidden
    states are held at those that the model has without the opener. The model's own answers to benign prompts, plain and
    behind openers, are held where they are. The loss is the relative squared error over the held positions of a batch,

    $$ L = \frac{1}{N} \sum_{i=1}^{N} \frac{\|h_\theta(c_i) - h_\mathrm{ref}(c_i)\|^2}{\|h_\mathrm{ref}(c_i)\|^2} $$

    and the unembedding is not trained, as in [`SBRSFTTrainer`]. The result is an aligned model to capture a
    [`SafetyAnchor`] on, and to fine-tune.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The aligned model.
        args ([`HardeningConfig`]):
            Training arguments.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor, with the chat template that it is used with.
        harmful_prompts (`Sequence[str | list[dict[str, str]]]`):
            Harmful questions, or conversations that end with one. Those that the model answers are left out.
        benign_prompts (`Sequence[str | list[dict[str, str]]]`):
            Questions that the model is to go on answering.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train. Without one, the whole model is trained.
        **trainer_kwargs:
            All other arguments of [`~transformers.Trainer`].

    Attributes:
        refused (`list[bool]`):
            For each harmful prompt, whether the model refused it before training, and so whether it is used.

    Example:

    ```python
    >>> lora = LoraConfig(r=16, target_modules="all-linear")
    >>> trainer = HardeningTrainer(model, HardeningConfig("hardening"), tokenizer, harmful, benign, lora)
    >>> trainer.train()
    >>> model = trainer.model.merge_and_unload()
    ```
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: HardeningConfig,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin,
        harmful_prompts: Sequence[str | Messages],
        benign_prompts: Sequence[str | Messages],
        peft_config: PeftConfig | None = None,
        **trainer_kwargs: Any,
    ):
        if isinstance(model, PeftModel):
            raise TypeError(
                "Found a `PeftModel`, expected the aligned model itself. Merge the adapter that aligns it "
                "(`merge_and_unload`), and give the adapter to train as `peft_config`."
            )
        if args.push_to_hub:
            raise ValueError(
                "Found `push_to_hub`, with which `Trainer` publishes checkpoints and training arguments. Save the model, and push it: "
                "`trl-sbr harden` takes `push_to_hub` and does so."
            )
        _check_prompts(harmful_prompts, benign_prompts)
        model = model if peft_config is None else get_peft_model(model, peft_config)
        super().__init__(model, args, self._collate, processing_class=processing_class, **trainer_kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Found FSDP or DeepSpeed, which shard the model: it cannot be asked for its own answers, which are held. "
                "Harden in one process, or in several under DDP."
            )
        self.model_accepts_loss_kwargs = False  # the loss is a mean over the micro-batch
        freeze_unembedding(self.model)
        self._unembedding = get_unembedding(self.model)
        held, self.refused = push_refusals(
            self.model,
            processing_class,
            harmful_prompts,
            OPENERS,
            args.openers_per_prompt,
            args.answer_tokens,
            args.seed,
        )
        held += keep_answers(
            self.model,
            processing_class,
            benign_prompts,
            OPENERS + BENIGN_OPENERS,
            args.openers_per_benign_prompt,
            args.answer_tokens,
            args.seed,
        )
        with self.accelerator.autocast():  # the numerics of a training step
            longest = sorted(held, key=lambda context: len(context.input_ids))[-args.train_batch_size :]
            self._share_prefix = can_share_prefix(self.model, longest, tolerance_of(numerics_of(self.model)))
            states = read_reference_states(self.model, held, self._share_prefix)
        self.train_dataset = [
            {"input_ids": context.input_ids, "states": reference}
            for context, reference in zip(held, states, strict=True)
        ]

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["input_ids", "states"]  # else `Trainer` drops the states, which no forward takes

    def _collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        states = [example["states"] for example in examples]
        batch = lay_out_held(
            [example["input_ids"] for example in examples], list(map(len, states)), self._share_prefix
        )
        return {**batch.inputs, "rows": batch.rows, "columns": batch.columns, "states": torch.cat(states)}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        reference, rows, columns = (inputs.pop(name) for name in ("states", "rows", "columns"))
        states = final_hidden_states(model, self._unembedding, PromptBatch(inputs, rows, columns))
        loss = ((states - reference).pow(2).sum(dim=-1) / reference.pow(2).sum(dim=-1)).mean()
        return (loss, {"states": states}) if return_outputs else loss


def _check_prompts(harmful: Sequence[str | Messages], benign: Sequence[str | Messages]) -> None:
    for name, prompts in (("harmful", harmful), ("benign", benign)):
        if not prompts:
            raise ValueError(f"Expected at least one {name} prompt, found none.")
    harmful = [as_messages(prompt) for prompt in harmful]
    for prompt in map(as_messages, benign):
        if prompt in harmful:
            raise ValueError(
                f"Found {prompt[-1]['content']!r} among the harmful and the benign prompts: it cannot be refused and "
                "answered. Remove it from one of them."
            )
