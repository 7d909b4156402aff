# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Weights moved for a moment: what an adapter does shows only when it does something, and most do nothing at first.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor


def local_part(parameter: nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter that FSDP2 or ZeRO-3 may have split; it shares its memory."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    if parameter.numel() == 0 and hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor
    return parameter.detach()


def gathered(parameters: list[nn.Parameter], write: bool = False):
    """
    Context in which parameters that DeepSpeed's ZeRO-3 has split are whole in every process.

    Args:
        parameters (`list[torch.nn.Parameter]`):
            The parameters, in the same order in every process.
        write (`bool`, *optional*, defaults to `False`):
            Whether they are changed within, by every process alike.
    """
    split = [p for p in parameters if hasattr(p, "ds_id")]
    if not split:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(split, modifier_rank=0 if write else None)


def get_movable_parameters(model: nn.Module) -> list[nn.Parameter]:
    """
    The parameters that may do nothing yet: all that a PEFT method trains, and of a fully trained model its vectors (gates,
    scales, biases). A copy of them is kept while they are moved, which would be too much of all its weights.
    """
    is_peft = isinstance(model, PeftModel)
    return [p for p in model.parameters() if p.requires_grad and (is_peft or p.ndim < 2)]


@contextmanager
def moved(parameters: list[nn.Parameter], scale: float) -> Iterator[None]:
    """
    While active, parameters are moved by up to `scale` in every element; afterwards they have their bits again. The
    movement is the same in every process and takes no random number.

    Args:
        parameters (`list[torch.nn.Parameter]`):
            Parameters, in the same order in every process.
        scale (`float`):
            Largest movement.
    """
    before = []
    with torch.no_grad(), gathered(parameters, write=True):
        for parameter in parameters:
            part = local_part(parameter)
            before.append(part.clone())
            wave = torch.arange(1, part.numel() + 1, device=part.device, dtype=torch.float32).cos_()
            part.add_(wave.mul_(scale).reshape(part.shape).to(part.dtype))
    try:
        yield
    finally:
        with torch.no_grad(), gathered(parameters, write=True):
            for parameter, bits in zip(parameters, before, strict=True):
                local_part(parameter).copy_(bits)
