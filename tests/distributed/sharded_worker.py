# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Run by `accelerate launch`: shards a model with FSDP2 (torch's own `fully_shard`, which runs on a CPU where accelerate's does not)
and compares states, gradients of the anchor loss and the unembedding's hash with those of the whole model.
"""

import copy

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.tiny import build_model, build_tokenizer
from tests.trainers.test_gradient import PROMPTS, drifted_lora_model
from trl_sbr.anchors.bottleneck import final_hidden_states, freeze_unembedding, get_unembedding, pad_right
from trl_sbr.anchors.prompts import encode_prompts
from trl_sbr.anchors.unembedding import has_sharded_weights, unembedding_sha256


def anchor_states(model, batch):
    states = final_hidden_states(model, get_unembedding(model), batch)
    states.pow(2).mean().backward()
    return states.detach()


def check(build, base_model, layers) -> None:
    batch = pad_right(encode_prompts(build_tokenizer(), PROMPTS), "cpu")
    whole = build()
    freeze_unembedding(whole)
    sharded = copy.deepcopy(whole)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in layers(base_model(sharded)):
        fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert has_sharded_weights(get_unembedding(sharded))
    assert unembedding_sha256(sharded) == unembedding_sha256(whole)
    expected, found = anchor_states(whole, batch), anchor_states(sharded, batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    assert gradients
    for name, parameter in sharded.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad.full_tensor(), gradients[name], rtol=1e-5, atol=1e-7)


def full_model():
    return build_model("llama")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    check(full_model, lambda model: model, lambda model: model.model.layers)
    check(drifted_lora_model, lambda model: model.get_base_model(), lambda model: model.model.layers)
    # Tied embeddings are one parameter of the root's group
    check(lambda: build_model("llama-tied"), lambda model: model, lambda model: model.model.layers)
    dist.barrier()
    dist.destroy_process_group()
