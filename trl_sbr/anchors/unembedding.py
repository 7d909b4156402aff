# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What the unembedding computes, in one hash: an anchor says nothing of a model that reads its states in another way."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import nn
from torch.distributed.tensor import DTensor

from .bottleneck import get_unembedding


_CHUNK = 2**24  # numbers that are hashed at once

# What architectures do to the logits behind the unembedding: `logit_scale`, `logits_scaling`, `final_logit_softcapping`,
# `lm_head_multiplier`, `output_multiplier`, … and what bears such a name and lies elsewhere
_LOGIT_SETTING = re.compile(r"logit|lm_head|output_multiplier")
_NOT_OF_THE_HEAD = re.compile(r"router|att|keep|init")


def has_sharded_weights(module: nn.Module) -> bool:
    """Whether no process holds the weights of a module whole: under ZeRO-3, FSDP2 and tensor parallelism."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in module.parameters())


def unembedding_sha256(model: nn.Module) -> str:
    """
    Hash what the unembedding computes: the values of weight and bias, and scale and soft cap of the logits.

    Values that are equal have one hash in every dtype that holds them, on every device. A quantized unembedding is hashed as
    it is stored, its scales in bfloat16. One whose weights are sharded, see [`has_sharded_weights`], is gathered: all processes must call this together.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    unembedding = get_unembedding(model)
    digest = hashlib.sha256(json.dumps(_logit_settings(model), sort_keys=True).encode())
    with align_module_device(unembedding), _gathered(unembedding):
        tensors = {k: v for k, v in unembedding.state_dict().items() if isinstance(v, torch.Tensor)}
        # bitsandbytes packs 4-bit weights in a forward on some CPUs, and keeps their scales in bfloat16 from then on
        dtype = torch.float32 if all(t.is_floating_point() for t in tensors.values()) else torch.bfloat16
        for name, tensor in sorted(tensors.items()):
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            digest.update(f"{name} {[size for size in tensor.shape if size > 1]}".encode())
            for chunk in _chunks(tensor, dtype):
                digest.update(chunk)
    return digest.hexdigest()


def _logit_settings(model: nn.Module) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in model.config.get_text_config().to_dict().items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and _LOGIT_SETTING.search(name)
        and not _NOT_OF_THE_HEAD.search(name)
    }


def _gathered(module: nn.Module) -> AbstractContextManager[Any]:
    parameters = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not parameters:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)  # no module of its own to import from


def _chunks(tensor: torch.Tensor, dtype: torch.dtype) -> Iterator[memoryview]:
    """The bytes of a tensor: a floating-point one's in `dtype`. Float32 holds all values of the smaller ones."""
    for chunk in tensor.detach().flatten().split(_CHUNK):
        chunk = chunk.to(dtype) if chunk.is_floating_point() else chunk
        yield memoryview(chunk.cpu().contiguous().view(torch.uint8).numpy())
