# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import copy
import os
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import DataCollator, PreTrainedModel, TrainingArguments
from trl import DPOTrainer

from ..anchors.clock import CLOCK, pin_clock
from ..anchors.prompts import get_chat_template
from ..anchors.provenance import PAPER
from ..anchors.safety_anchor import SafetyAnchor
from .anchor_mixin import SafetyAnchorMixin
from .preconditions import check_rows
from .rendering import check_rows_can_be_rendered, find_rendering, with_rendering
from .sbr_dpo_config import SBRDPOConfig


class SBRDPOTrainer(SafetyAnchorMixin, DPOTrainer):
    r"""
    Trainer for Direct Preference Optimization under Safety Bottleneck Regularization (SBR): preference pairs that nobody has to
    trust do not teach the model to comply with the anchored harm.

    It is [`~trl.DPOTrainer`] with the anchor term of [`SBRSFTTrainer`], which enters once per optimizer step.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The safety-aligned model to fine-tune, see [`~trl.DPOTrainer`].
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            DPO's own reference model, see [`~trl.DPOTrainer`]. The anchor's reference is the aligned model, whatever this is.
        args ([`SBRDPOConfig`], *optional*):
            Training arguments. [`~trl.DPOConfig`] and [`~transformers.TrainingArguments`] are converted.
        data_collator ([`~transformers.DataCollator`], *optional*):
            See [`~trl.DPOTrainer`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Preference pairs, as [`~trl.DPOTrainer`] takes them.
        *trainer_args, **trainer_kwargs:
            All other arguments of [`~trl.DPOTrainer`].
        anchor ([`SafetyAnchor`], `str` or `os.PathLike`, *optional*):
            The anchor, or the folder or Hub repository that it lies in. Defaults to the one that `args` names, or else is captured
            on `model` before training.
    """

    _tag_names = ["trl", "dpo", "sbr"]
    _name = "SBR"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        ref_model: PreTrainedModel | None = None,
        args: SBRDPOConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *trainer_args: Any,
        anchor: SafetyAnchor | str | os.PathLike | None = None,
        **trainer_kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SBRDPOConfig(f"{name.split('/')[-1]}-SBR-DPO")
        args = SBRDPOConfig.from_training_arguments(args)
        check_rows(train_dataset)
        anchor = self._find_anchor(model, args, args, anchor, (*trainer_args, *trainer_kwargs.values()))
        self._given_anchor, self._rendering = anchor, None
        super().__init__(model, ref_model, args, data_collator, train_dataset, *trainer_args, **trainer_kwargs)
        rendering = self._find_rendering(self.processing_class, args)
        check_rows_can_be_rendered(train_dataset, rendering)
        self._hold_anchor(args, anchor, rendering)

    def _prepare_dataset(self, dataset, processing_class, args, *others, **kwargs):
        rendering = self._find_rendering(processing_class, args)
        if CLOCK in rendering:  # TRL renders with the template of the tokenizer
            template = pin_clock(get_chat_template(processing_class), rendering[CLOCK])
            processing_class = copy.copy(processing_class)
            processing_class.chat_template = template
        return super()._prepare_dataset(with_rendering(dataset, rendering), processing_class, args, *others, **kwargs)

    def _find_rendering(self, processing_class, args: SBRDPOConfig) -> dict[str, Any]:
        """The variables of the chat template, found out once."""
        if self._rendering is None:
            self._rendering = self._on_main_process(
                partial(find_rendering, args, self._given_anchor, processing_class)
            )
        return self._rendering
