# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The layout in which the anchor prompts are trained on: it must give the states of plain padded rows, whatever is learned."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from ..anchors.bottleneck import PromptBatch, final_hidden_states, get_unembedding, pad_right, relative_errors
from ..anchors.perturbation import get_movable_parameters, moved
from ..anchors.safety_anchor import SafetyAnchor


_MOVEMENTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of each weight
_VISIBLE = 0.3  # relative change of every state that shows what the weights do


def is_placed_by_engine(trainer: Trainer) -> bool:
    """Whether FSDP or DeepSpeed place, and shard, the model when training starts, or it was sharded when it was loaded."""
    is_sharded = any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or is_sharded


def _shares_a_row(batch: PromptBatch) -> bool:
    return len(batch.inputs["input_ids"]) == 1


@torch.no_grad()
def lay_out_for_training(anchor: SafetyAnchor, model: nn.Module, wrapped: nn.Module) -> PromptBatch:
    """
    Lay out the anchor prompts in the cheapest way whose states are those of padded rows, see [`SafetyAnchor.lay_out`]: with the
    weights as they are, and with those moved that may do nothing yet (LoRA's `B` is 0 at first). They have their bits again
    afterwards.

    Args:
        anchor ([`SafetyAnchor`]):
            The anchor.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, not wrapped for distributed training.
        wrapped (`torch.nn.Module`):
            The model as it is called in training.

    Returns:
        [`PromptBatch`]: The prompts.
    """
    batch = anchor.lay_out(model, wrapped)
    padded, unembedding = pad_right(anchor.input_ids, model.device, anchor.positions), get_unembedding(model)
    before, parameters = None, get_movable_parameters(model)
    for movement in _MOVEMENTS:
        if not _shares_a_row(batch) or len(anchor) == 1:
            break
        if before is None:
            before = final_hidden_states(wrapped, unembedding, padded)
        with moved(parameters, movement):
            batch = anchor.lay_out(model, wrapped)
            change = relative_errors(final_hidden_states(wrapped, unembedding, padded), before).min()
        if change > _VISIBLE:
            break
    return batch


@torch.no_grad()
def check_layout(anchor: SafetyAnchor, model: nn.Module, wrapped: nn.Module, batch: PromptBatch) -> None:
    """
    Make sure that the trained model's states, in the layout in use, are finite and still those of plain padded rows.

    Args:
        anchor ([`SafetyAnchor`]):
            The anchor.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.
        wrapped (`torch.nn.Module`):
            The model as it is called.
        batch ([`PromptBatch`]):
            The layout in use, from [`lay_out_for_training`].

    Raises:
        FloatingPointError: If a state is NaN or infinite.
        RuntimeError: If the states differ from those of padded rows.
    """
    if not torch.isfinite(final_hidden_states(wrapped, get_unembedding(model), batch)).all():
        raise FloatingPointError(
            "Found final hidden states on the anchor prompts that are NaN or infinite: the training has blown up, and nothing is "
            "saved. Go on from an earlier checkpoint with a smaller learning rate or `anchor_loss_coef`."
        )
    if _shares_a_row(batch) and not _shares_a_row(anchor.lay_out(model, wrapped)):
        raise RuntimeError(
            "Found that the anchor prompts, trained on in one row with a shared prefix, have other states in rows of their own: "
            "what was held is not what the model does. Something that is trained depends on the row or on the position; train "
            "without it, or with `attn_implementation='eager'`, under which the prompts stand in rows of their own."
        )
