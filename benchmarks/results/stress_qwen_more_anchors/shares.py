# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Prints which share of the adapters' inputs the anchors of these cells take, at commit 4cd1707: `shares.py QWEN_FOLDER > shares.json`."""

import json
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.prompt_pool import choose_prompts
from trl_sbr.anchors.subspace import find_bases


model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
shares = {}
for number in (8, 16, 24):
    prompts = choose_prompts(model, tokenizer, number)
    adapted = get_peft_model(model, LoraConfig(r=16, target_modules=targets))
    bases = find_bases(adapted, SafetyAnchor.capture(adapted, tokenizer, prompts, require_refusal=False))
    shares[number] = sum(basis.shape[1] / basis.shape[0] for basis in bases) / len(bases)
    model = adapted.unload()
print(json.dumps(shares, indent=2))
