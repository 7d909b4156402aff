# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
unsloth cannot be imported without a GPU. A tiny Llama whose head is that of its patched forwards (`unsloth/models/llama.py`,
`CausalLM_fast_forward`, and `unsloth_zoo/compiler.py`, 2026.10.9) stands in for it.
"""

import os
import types

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from trl_sbr import SafetyAnchor, protect

from ..tiny import build_model, build_tokenizer
from ..trainers.test_sbr_sft_trainer import LORA, SETTINGS, history


RETURN_HIDDEN_STATES = "UNSLOTH_RETURN_HIDDEN_STATES"
EMPTY_LOGITS = torch.empty(0)


def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **kwargs):
    outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
    hidden_states, lm_head = outputs[0], self.lm_head.weight
    batch_size, length, _ = hidden_states.shape
    loss = None
    if os.environ.get(RETURN_HIDDEN_STATES, "0") == "1":
        logits = hidden_states
    elif batch_size == 1 and length == 1:
        logits = torch.mv(lm_head, hidden_states.ravel()).unsqueeze(0).unsqueeze(0)
    elif labels is not None:  # the fused loss: the head is not called
        logits, scores = EMPTY_LOGITS, hidden_states[:, :-1] @ lm_head.T
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        loss = loss / (num_items_in_batch or labels[:, 1:].numel())
    else:
        logits = self.lm_head(hidden_states)
    return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def build(patched=True):
    model = build_model("llama")
    if patched:
        model.forward = types.MethodType(forward, model)
    return model


@pytest.fixture(scope="module")
def anchor():
    return SafetyAnchor.capture(build(patched=False), build_tokenizer(), require_refusal=False)


def protected_trainer(folder, model, anchor):
    rows = [{"input_ids": list(range(i, i + 8)), "labels": list(range(i, i + 8))} for i in range(10, 18)]
    args = TrainingArguments(folder, **SETTINGS)
    trainer = Trainer(
        get_peft_model(model, LoraConfig(**LORA)),
        args,
        train_dataset=Dataset.from_list(rows),
        processing_class=build_tokenizer(),
    )
    return protect(trainer, anchor, require_refusal=False)


def test_states_are_read_beside_the_fused_loss(tmp_path, anchor):
    losses = [[], []]
    for patched in (False, True):
        torch.manual_seed(0)
        trainer = protected_trainer(tmp_path / str(patched), build(patched), anchor)
        trainer.train()
        losses[patched] = history(trainer, "anchor_loss")
    assert losses[True][0] == 0 and losses[True][-1] > 0
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_one_prompt_is_captured():
    found = SafetyAnchor.capture(build(), build_tokenizer(), ["How?"], require_refusal=False)
    expected = SafetyAnchor.capture(build(patched=False), build_tokenizer(), ["How?"], require_refusal=False)
    assert torch.equal(found.hidden_states, expected.hidden_states)


def test_no_step_is_trained_without_the_states(tmp_path, anchor, monkeypatch):
    trainer = protected_trainer(tmp_path, build(), anchor)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    monkeypatch.setenv(RETURN_HIDDEN_STATES, "1")
    with pytest.raises(RuntimeError, match=r"to call its unembedding .* once, found 0 calls"):
        trainer.train()
    assert all(torch.equal(before[name], parameter) for name, parameter in trainer.model.named_parameters())
    with pytest.raises(RuntimeError, match="found 0 calls"):
        protected_trainer(tmp_path / "other", build(), anchor)
