# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch
from transformers import TrainingArguments


# Next to the task's gradient nothing of a smaller one survives the rounding of float32
_MIN_COEF = torch.finfo(torch.float32).eps ** 2


@dataclass
class AnchorArguments:
    r"""
    The settings of the anchor term, whatever the trainer.

    Parameters:
        > Parameters that control the anchor

        anchor_name_or_path (`str`, *optional*):
            Folder or Hub repository of the [`SafetyAnchor`] to train with: the anchor's own, or that of an adapter that
            carries it. Its commit is recorded in what is trained.
        anchor_revision (`str`, *optional*):
            Branch, tag or commit of that Hub repository.
        anchor_prompts (`list[str]`, *optional*):
            Harmful prompts on which an anchor is captured before training, or one `.txt`, `.jsonl`, `.json` or `.csv` file
            of them.
            With neither anchor nor prompts, eight of the package's pool that the model refuses are captured. With an
            anchor, they must be its prompts.
        anchor_reference (`str`, *optional*, defaults to `"base"`):
            Which model is the aligned one when the model is a [`~peft.PeftModel`]: `"base"`, with its adapters
            disabled, or `"current"`, with its adapters as they are before training.
        anchor_require_refusal (`bool`, *optional*, defaults to `True`):
            Whether the aligned model must refuse every anchor prompt. An anchor that it does not refuse would pin the
            harmful answer.
        anchor_refusal_tokens (`int`, *optional*):
            Number of tokens of the aligned model's refusal whose choice a captured anchor holds, all of it where it is shorter. `1`
            is the paper's. Defaults to 14, and with an anchor to those that it holds.
        anchor_openers (`list[str]`, *optional*):
            Beginnings of an answer, or `"default"` for eight of those that `trl-sbr harden` knows, behind which a captured anchor
            holds each prompt too, where the model refuses it there.
        anchor_system_prompts (`list[str]`, *optional*):
            System prompts, under each of which a captured anchor holds all prompts; `""` is none.
            With an anchor, these three must be what it was captured with, where they are set.

        > Parameters that control the loss

        anchor_loss_coef (`float`, *optional*, defaults to `50.0`):
            Weight of the anchor loss, λ in the [paper](https://huggingface.co/papers/2605.05995). `0.0` is plain
            fine-tuning: nothing is captured, checked or frozen. One so small that it does nothing is an error.
        anchor_target_error (`float`, *optional*):
            Mean relative error `‖h - h_ref‖ / ‖h_ref‖` that is allowed in the states which a step is trained on, e.g. `0.005`. λ
            begins at `anchor_loss_coef`, rises by up to 5 % a step while the error is larger, to 100 times that at most, and falls
            back to it while the error is smaller (dual ascent on log λ). Without it, λ is constant.
        anchor_loss_type (`str`, *optional*, defaults to `"mse"`):
            Distance `d(h, h_ref)` of which the mean over the anchors' points is taken: `"mse"`, `‖h - h_ref‖²` averaged over
            the hidden dimension, as in the authors' code; `"sum"`, `‖h - h_ref‖²`, as in the paper's equation; or
            `"relative"`, `‖h - h_ref‖² / ‖h_ref‖²`, free of the model's scale.
        anchors_per_step (`int`, *optional*):
            Number of anchors that an optimizer step is trained on at most, where a prompt behind each opener and system prompt is
            one of its own; the steps take them in turn, and what they add up to over a cycle is the gradient of all.
            A run with fewer steps than a cycle is an error. Defaults to all.
    """

    anchor_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub repository of the safety anchor to train with."}
    )
    anchor_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the anchor's Hub repository."}
    )
    anchor_prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Harmful prompts on which an anchor is captured before training, or one .txt, .jsonl, .json or .csv "
            "file of them. With neither anchor nor prompts, eight of the package's pool that the model refuses are captured."
        },
    )
    anchor_reference: str = field(
        default="base",
        metadata={
            "help": "Which model is the aligned one when the model is a PEFT model: with its adapters disabled "
            "('base') or as they are before training ('current').",
            "choices": ["base", "current"],
        },
    )
    anchor_require_refusal: bool = field(
        default=True, metadata={"help": "Whether the aligned model must refuse every anchor prompt."}
    )
    anchor_refusal_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Number of tokens of the refusal whose choice a captured anchor holds; 1 is the paper's. Defaults to 14, and "
            "with an anchor to those that it holds."
        },
    )
    anchor_openers: list[str] | None = field(
        default=None,
        metadata={
            "help": "Beginnings of an answer, behind which a captured anchor holds each prompt too; 'default' for eight of those "
            "that `trl-sbr harden` knows."
        },
    )
    anchor_system_prompts: list[str] | None = field(
        default=None,
        metadata={"help": "System prompts under which a captured anchor holds all prompts; an empty one is none."},
    )
    anchor_loss_coef: float = field(
        default=50.0,
        metadata={"help": "Weight of the anchor loss, λ in the paper. 0 is plain, unprotected fine-tuning."},
    )
    anchor_target_error: float | None = field(
        default=None,
        metadata={
            "help": "Mean relative error of the anchors' states that is allowed: λ rises above anchor_loss_coef while it is larger. "
            "Defaults to a constant λ."
        },
    )
    anchor_loss_type: str = field(
        default="mse",
        metadata={
            "help": "Distance between hidden states: squared error averaged over the hidden dimension ('mse', as in "
            "the authors' code), summed ('sum', as in the paper's equation), or divided by the reference's squared "
            "norm ('relative').",
            "choices": ["mse", "sum", "relative"],
        },
    )
    anchors_per_step: int | None = field(
        default=None,
        metadata={
            "help": "Number of anchors (a prompt behind each opener is one of its own), taken in turn, that a step is trained on at most. Defaults to all."
        },
    )

    def __post_init__(self):
        if isinstance(self, TrainingArguments):
            super().__post_init__()
        for name in ("anchor_prompts", "anchor_openers", "anchor_system_prompts"):
            if isinstance(getattr(self, name), str):  # one alone, from YAML
                setattr(self, name, [getattr(self, name)])
        if not 0 <= self.anchor_loss_coef < float("inf"):
            raise ValueError(f"Expected a finite `anchor_loss_coef` of at least 0, found {self.anchor_loss_coef}.")
        if 0 < self.anchor_loss_coef < _MIN_COEF:
            raise ValueError(
                f"Found `anchor_loss_coef={self.anchor_loss_coef}`, which does nothing in float32. Expected 0, which is plain "
                f"fine-tuning, or at least {_MIN_COEF:.0e}; the paper's is 50."
            )
        if self.anchor_target_error is not None and not 0 < self.anchor_target_error < 1:
            raise ValueError(f"Expected `anchor_target_error` between 0 and 1, found {self.anchor_target_error}.")
        if self.anchor_target_error is not None and self.anchor_loss_coef == 0:
            raise ValueError(
                f"Found `anchor_target_error={self.anchor_target_error}` and `anchor_loss_coef=0`, which is plain fine-tuning. Leave one of "
                "them out."
            )
        for name, choices in {
            "anchor_loss_type": ("mse", "sum", "relative"),
            "anchor_reference": ("base", "current"),
        }.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"Expected `{name}` to be one of {choices}, found {getattr(self, name)!r}.")
        if self.anchors_per_step is not None and self.anchors_per_step < 1:
            raise ValueError(f"Expected `anchors_per_step` to be at least 1, found {self.anchors_per_step}.")
        if self.anchor_revision is not None and self.anchor_name_or_path is None:
            raise ValueError("Found `anchor_revision` without `anchor_name_or_path`. Set both, or neither.")


@dataclass
class SBRArguments(AnchorArguments):
    r"""
    The settings of the anchor term in a trainer that renders its rows with the chat template. A configuration is derived from
    this class and from that of TRL's trainer, in this order: the latter's fields stand first.

    Parameters:
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Variables with which the chat template renders the anchor prompts and the training rows (whose own
            `chat_template_kwargs` come first), e.g. `{"enable_thinking": False}`. With an anchor, they must be its own.
            If the template writes the date (`strftime_now`) into the prompts, the moment of the capture is recorded
            among them and used again; `{"strftime_now": "2026-11-25"}` is another one.
    """

    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "Variables with which the chat template renders the anchor prompts and the training rows; JSON on the "
            "command line."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise ValueError(
                'Expected `chat_template_kwargs` to be variables of the chat template, e.g. {"enable_thinking": false}, '
                f"found {self.chat_template_kwargs!r}."
            )

    @classmethod
    def from_training_arguments(cls, args: TrainingArguments) -> Self:
        """
        Convert a trainer's own configuration, [`~transformers.TrainingArguments`] or a class derived from them to this
        configuration, with the defaults for all that they lack. Fields of a derived class are kept as attributes.

        Args:
            args ([`~transformers.TrainingArguments`]):
                Arguments to convert.

        Returns:
            The arguments themselves if they are of this class already.
        """
        if isinstance(args, cls):
            return args
        # Not `to_dict`, which masks every field whose name ends in `_token`
        values: dict[str, Any] = {f.name: getattr(args, f.name) for f in fields(args) if f.init}
        known = {f.name for f in fields(cls)}
        converted = cls(**{name: value for name, value in values.items() if name in known})
        for name in values.keys() - known:
            setattr(converted, name, values[name])
        return converted
