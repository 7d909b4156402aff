# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import os
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from trl import SFTTrainer

from ..anchors.clock import CLOCK, pin_clock
from ..anchors.prompts import get_chat_template
from ..anchors.provenance import PAPER
from ..anchors.safety_anchor import SafetyAnchor
from .anchor_mixin import SafetyAnchorMixin
from .preconditions import check_rows
from .rendering import check_rows_can_be_rendered, find_rendering, with_rendering
from .sbr_config import SBRConfig


class SBRSFTTrainer(SafetyAnchorMixin, SFTTrainer):
    r"""
    Trainer for supervised fine-tuning under Safety Bottleneck Regularization (SBR).

    It adds one term to the loss of [`~trl.SFTTrainer`] and inherits the rest:

    $$ L = L_\mathrm{SFT} + \lambda \cdot \frac{1}{K} \sum_{k=1}^{K} d(h_\theta(x_k), h_\mathrm{ref}(x_k)) $$

    where `h` is the input of the unembedding at the last token of anchor prompt `x_k` (see [`SafetyAnchor`]). The term
    enters once per optimizer step, so its gradient depends on the model, the anchor and λ alone. The unembedding is
    not trained: full fine-tuning freezes it, and a PEFT configuration that trains it is an error.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The safety-aligned model to fine-tune, see [`~trl.SFTTrainer`].
        args ([`SBRConfig`], *optional*):
            Training arguments. [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`] are converted.
        data_collator ([`~transformers.DataCollator`], *optional*):
            See [`~trl.SFTTrainer`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset to fine-tune on, which nobody has to trust.
        *trainer_args, **trainer_kwargs:
            All other arguments of [`~trl.SFTTrainer`].
        anchor ([`SafetyAnchor`], `str` or `os.PathLike`, *optional*):
            The anchor, or the folder or Hub repository that it lies in. Defaults to the one that `args` names, or else is captured
            on `model` before training.

    Attributes:
        anchor ([`SafetyAnchor`] or `None`):
            The anchor trained with; `None` when `anchor_loss_coef` is 0.
        dataset_names (`list[str]`):
            Datasets of the Hub that the card names: the rows do not say where they come from.

    Example:

    ```python
    >>> trainer = SBRSFTTrainer(
    ...     model="Qwen/Qwen2.5-7B-Instruct",
    ...     args=SBRConfig(output_dir="qwen-sbr"),
    ...     train_dataset=load_dataset("org/untrusted", split="train"),
    ...     peft_config=LoraConfig(r=16, target_modules="all-linear"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "sft", "sbr"]
    _name = "SBR"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SBRConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *trainer_args: Any,
        anchor: SafetyAnchor | str | os.PathLike | None = None,
        **trainer_kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SBRConfig(f"{name.split('/')[-1]}-SBR")
        args = SBRConfig.from_training_arguments(args)
        check_rows(train_dataset)
        anchor = self._find_anchor(model, args, args, anchor, (*trainer_args, *trainer_kwargs.values()))
        self._given_anchor, self._rendering = anchor, None
        super().__init__(model, args, data_collator, train_dataset, *trainer_args, **trainer_kwargs)
        rendering = self._render_rows_as_anchors(self.processing_class, args)  # where no dataset was prepared
        check_rows_can_be_rendered(train_dataset, rendering)
        self._hold_anchor(args, anchor, rendering)

    def _prepare_dataset(self, dataset, processing_class, args, *others, **kwargs):
        rendering = self._render_rows_as_anchors(processing_class, args)
        return super()._prepare_dataset(with_rendering(dataset, rendering), processing_class, args, *others, **kwargs)

    def _render_rows_as_anchors(
        self, processing_class: PreTrainedTokenizerBase | ProcessorMixin, args: SBRConfig
    ) -> dict[str, Any]:
        """The variables of the chat template, found out once. The time among them is told to TRL's template too."""
        if self._rendering is None:
            self._rendering = self._on_main_process(
                partial(find_rendering, args, self._given_anchor, processing_class)
            )
            if CLOCK in self._rendering:
                template = self.chat_template or get_chat_template(processing_class)
                self.chat_template = pin_clock(template, self._rendering[CLOCK])
        return self._rendering
