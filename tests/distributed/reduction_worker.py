# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Run by `accelerate launch`: trains under DDP, which is told that all parameters are used, a model with one that the anchors do
not use; and saves how often gradients are reduced in each optimizer step.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from transformers import TrainerCallback

from tests.tiny import build_model
from tests.trainers.test_sbr_sft_trainer import make_trainer
from trl_sbr import SBRSFTTrainer


class ScaledTrainer(SBRSFTTrainer):
    """Its loss has a parameter of its own, as that of a model with images has a vision tower."""

    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs) * self.model.scale


class CountReductions(TrainerCallback):
    def __init__(self, trainer):
        self.trainer, self.counts = trainer, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.model_wrapped.register_comm_hook(None, self.reduce)

    def on_step_begin(self, args, state, control, **kwargs):
        self.counts.append(0)

    def reduce(self, state, bucket):
        self.counts[-1] += 1
        return allreduce_hook(state, bucket)


if __name__ == "__main__":
    model = build_model("llama")
    model.scale = torch.nn.Parameter(torch.ones(()))
    settings = {"gradient_accumulation_steps": 2, "ddp_find_unused_parameters": False, "learning_rate": 1e-3}
    trainer = make_trainer(sys.argv[1], model, ScaledTrainer, anchor_require_refusal=False, **settings)
    callback = CountReductions(trainer)
    trainer.add_callback(callback)
    trainer.train()
    if trainer.is_world_process_zero():
        Path(sys.argv[1], "reductions.json").write_text(json.dumps(callback.counts))
    dist.barrier()
    dist.destroy_process_group()
