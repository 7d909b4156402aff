# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Trainers of every kind that an anchor is held in, built alike."""

import copy

from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from trl_sbr import SBRDPOConfig, SBRDPOTrainer, SBRGRPOConfig, SBRGRPOTrainer, protect
from trl_sbr.trainers.anchor_mixin import SafetyAnchorMixin

from ..tiny import build_tokenizer, conversation_rows


# Class and configuration; those of TRL and transformers are protected by `protect`
KINDS = {
    cls.__name__: (cls, config)
    for cls, config in [
        (Trainer, TrainingArguments),
        (DPOTrainer, DPOConfig),
        (GRPOTrainer, GRPOConfig),
        (SBRDPOTrainer, SBRDPOConfig),
        (SBRGRPOTrainer, SBRGRPOConfig),
    ]
}

SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "gradient_checkpointing": False,
}
_ARGUMENTS = ("callbacks", "optimizers", "processing_class")
GENERATION = {"num_generations": 2, "max_completion_length": 4}


def preference_rows(count: int) -> list[dict]:
    """Preference pairs of different lengths."""
    answers = ([{"role": "assistant", "content": text}] for text in ("no, never", "yes"))
    chosen, rejected = answers
    return [{"prompt": r["prompt"], "chosen": chosen, "rejected": rejected} for r in conversation_rows(count)]


def tokenized_rows(count: int) -> list[dict]:
    """Rows as a plain [`~transformers.Trainer`] takes them."""
    tokenizer = build_tokenizer()
    rows = []
    for row in conversation_rows(count):
        text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        rows.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids})
    return rows


def reward(completions, **kwargs):
    """Of no meaning, and different for most pairs of completions."""
    return [float(sum(map(ord, completion[0]["content"])) % 7) for completion in completions]


def build(
    kind: str,
    output_dir,
    model,
    anchor=None,
    coef: float = 50.0,
    target_error: float | None = None,
    loss_type: str = "mse",
    reference: str = "base",
    require_refusal: bool = False,
    peft_config=None,
    num_rows: int = 8,
    cls=None,
    **settings,
) -> Trainer:
    """
    A trainer of one of `KINDS`, or of `cls`, which is derived from it, that holds an anchor as [`protect`] says; at a λ of 0,
    none. `settings` are those of its configuration, and `_ARGUMENTS` of its own.
    """
    own, config = KINDS[kind]
    cls = own if cls is None else cls
    arguments = {name: settings.pop(name) for name in _ARGUMENTS if name in settings}
    arguments.setdefault("processing_class", build_tokenizer())
    settings = {**SETTINGS, **settings}
    if issubclass(cls, DPOTrainer):
        arguments |= {"train_dataset": Dataset.from_list(preference_rows(num_rows)), "peft_config": peft_config}
        if peft_config is None and not isinstance(model, PeftModel):
            arguments["ref_model"] = copy.deepcopy(model)  # TRL would load it, from no folder
    elif issubclass(cls, GRPOTrainer):
        rows = Dataset.from_list(conversation_rows(num_rows)).select_columns("prompt")
        arguments |= {"train_dataset": rows, "peft_config": peft_config, "reward_funcs": reward}
        settings = {**GENERATION, **settings}
    else:
        arguments["train_dataset"] = Dataset.from_list(tokenized_rows(num_rows))
        arguments["data_collator"] = DataCollatorForSeq2Seq(build_tokenizer())
        model = model if peft_config is None else get_peft_model(model, peft_config)
    is_ours = issubclass(own, SafetyAnchorMixin)
    if is_ours:
        arguments["anchor"] = anchor
        settings |= {"anchor_loss_coef": coef, "anchor_loss_type": loss_type, "anchor_reference": reference}
        settings |= {"anchor_require_refusal": require_refusal, "anchor_target_error": target_error}
    trainer = cls(model=model, args=config(output_dir, **settings), **arguments)
    if is_ours or coef == 0:
        return trainer
    held = {
        "target_error": target_error,
        "coef": coef,
        "loss_type": loss_type,
        "reference": reference,
        "require_refusal": require_refusal,
    }
    return protect(trainer, anchor, **held)
