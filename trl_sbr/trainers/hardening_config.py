# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import dataclass, field

from transformers import TrainingArguments

from ..anchors.openers import BENIGN_OPENERS, OPENERS


@dataclass
class HardeningConfig(TrainingArguments):
    r"""
    Configuration class for the [`HardeningTrainer`].

    This class includes only the parameters that are specific to hardening. For the others, see
    [`~transformers.TrainingArguments`].

    Parameters:
        > Parameters that control the model

        model_init_kwargs (`dict` or `str`, *optional*):
            Keyword arguments with which `trl-sbr harden` loads the model.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether `trl-sbr harden` may run code that comes with the model.
        chat_template_path (`str`, *optional*):
            Chat template that `trl-sbr harden` uses: a Jinja file, or a folder or Hub repository of a tokenizer.

        > Parameters that control what is held

        openers_per_prompt (`int`, *optional*, defaults to `4`):
            Number of openers, drawn anew for each prompt, behind which it stands in the training data.
        openers_per_benign_prompt (`int`, *optional*, defaults to `2`):
            Number of openers drawn for each benign prompt, which stands there plain too.
        answer_tokens (`int`, *optional*, defaults to `8`):
            Number of tokens of the model's own answer that are held: as many states, which choose them.

    > [!NOTE]
    > These parameters have other default values than in [`~transformers.TrainingArguments`]:
    > - `learning_rate`: Defaults to `5e-4` instead of `5e-5`.
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `max_steps`: Defaults to `100` instead of `-1`.
    > - `per_device_train_batch_size`: Defaults to `18` instead of `8`.
    > - `save_strategy`: Defaults to `"no"` instead of `"steps"`.
    """

    _VALID_DICT_FIELDS = TrainingArguments._VALID_DICT_FIELDS + ["model_init_kwargs"]

    learning_rate: float = field(default=5e-4, metadata={"help": "The initial learning rate."})
    logging_steps: float = field(default=10, metadata={"help": "Log every X updates steps."})
    max_steps: int = field(default=100, metadata={"help": "Number of optimizer steps."})
    per_device_train_batch_size: int = field(default=18, metadata={"help": "Batch size per device for training."})
    save_strategy: str = field(default="no", metadata={"help": "When to leave a checkpoint."})
    model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments with which `trl-sbr harden` loads the model."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Whether `trl-sbr harden` may run code that comes with the model."}
    )
    chat_template_path: str | None = field(
        default=None,
        metadata={"help": "Chat template: a Jinja file, or a folder or Hub repository of a tokenizer."},
    )
    openers_per_prompt: int = field(
        default=4, metadata={"help": "Number of openers, drawn anew for each prompt, behind which it is trained."}
    )
    openers_per_benign_prompt: int = field(
        default=2, metadata={"help": "Number of openers drawn for each benign prompt, which stands there plain too."}
    )
    answer_tokens: int = field(
        default=8, metadata={"help": "Number of tokens of the model's own answer that are held."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name, most in (
            ("openers_per_prompt", len(OPENERS)),
            ("openers_per_benign_prompt", len(OPENERS + BENIGN_OPENERS)),
            ("answer_tokens", 32),
        ):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"Expected `{name}` to be from 1 to {most}, found {getattr(self, name)}.")
