# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import os
from functools import partial
from typing import Any

from datasets import Dataset, IterableDataset
from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments
from trl import GRPOTrainer

from ..anchors.clock import CLOCK, pin_clock
from ..anchors.prompts import get_chat_template
from ..anchors.provenance import PAPER
from ..anchors.safety_anchor import SafetyAnchor
from .anchor_mixin import SafetyAnchorMixin
from .preconditions import check_rows
from .rendering import find_rendering
from .sbr_grpo_config import SBRGRPOConfig


class SBRGRPOTrainer(SafetyAnchorMixin, GRPOTrainer):
    r"""
    Trainer for Group Relative Policy Optimization under Safety Bottleneck Regularization (SBR): a reward that nobody has to
    trust does not teach the model to comply with the anchored harm.

    It is [`~trl.GRPOTrainer`] with the anchor term of [`SBRSFTTrainer`], which enters once per optimizer step, however often a
    batch of generations is used.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The safety-aligned model to fine-tune, see [`~trl.GRPOTrainer`].
        reward_funcs (`Callable`, `str`, [`~transformers.PreTrainedModel`] or a list of them, *optional*):
            See [`~trl.GRPOTrainer`].
        args ([`SBRGRPOConfig`], *optional*):
            Training arguments. [`~trl.GRPOConfig`] and [`~transformers.TrainingArguments`] are converted.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts, as [`~trl.GRPOTrainer`] takes them.
        *trainer_args, **trainer_kwargs:
            All other arguments of [`~trl.GRPOTrainer`].
        anchor ([`SafetyAnchor`], `str` or `os.PathLike`, *optional*):
            The anchor, or the folder or Hub repository that it lies in. Defaults to the one that `args` names, or else is captured
            on `model` before training.
    """

    _tag_names = ["trl", "grpo", "sbr"]
    _name = "SBR"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        reward_funcs: Any = None,
        args: SBRGRPOConfig | TrainingArguments | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *trainer_args: Any,
        anchor: SafetyAnchor | str | os.PathLike | None = None,
        **trainer_kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SBRGRPOConfig(f"{name.split('/')[-1]}-SBR-GRPO")
        args = SBRGRPOConfig.from_training_arguments(args)
        check_rows(train_dataset)
        anchor = self._find_anchor(model, args, args, anchor, (*trainer_args, *trainer_kwargs.values()))
        super().__init__(model, reward_funcs, args, train_dataset, *trainer_args, **trainer_kwargs)
        rendering = self._on_main_process(partial(find_rendering, args, anchor, self.processing_class))
        # The rows are rendered when they are trained on
        self.chat_template_kwargs = {name: value for name, value in rendering.items() if name != CLOCK}
        if CLOCK in rendering:
            template = self.chat_template or get_chat_template(self.processing_class)
            self.chat_template = pin_clock(template, rendering[CLOCK])
        self._hold_anchor(args, anchor, rendering)
