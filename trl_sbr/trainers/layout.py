# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The layout in which the anchor prompts are trained on: it must give the states of plain padded rows, whatever is learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from ..anchors.bottleneck import PromptBatch, final_hidden_states, get_unembedding, pad_right, relative_errors
from ..anchors.numerics import numerics_of, tolerance_of
from ..anchors.perturbation import get_movable_parameters, moved
from ..anchors.safety_anchor import SafetyAnchor


_MOVEMENTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of each weight
_VISIBLE = 0.3  # relative change of every state that shows what the weights do


def is_placed_by_engine(trainer: Trainer) -> bool:
    """Whether FSDP or DeepSpeed place, and shard, the model when training starts, or it was sharded when it was loaded."""
    is_sharded = any(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    return trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or is_sharded


@dataclass(frozen=True)
class Turn:
    """
    Anchors that are trained on in one optimizer step.

    Args:
        anchors (`slice`):
            Which anchors.
        points (`slice`):
            Which points are theirs.
    """

    anchors: slice
    points: slice


def divide_into_turns(anchor: SafetyAnchor, anchors_per_step: int | None) -> list[Turn]:
    """
    Divide the anchors into the fewest turns, of nearly equal size. Neighbours, which share a prompt, stay together.

    Args:
        anchor ([`SafetyAnchor`]):
            The anchor.
        anchors_per_step (`int`, *optional*):
            Number of anchors that a turn has at most. Defaults to all.

    Returns:
        `list[Turn]`: The turns, whose points in order are all of the anchor's.

    Raises:
        ValueError: If there are fewer anchors.
    """
    if anchors_per_step is not None and anchors_per_step > len(anchor):
        raise ValueError(
            f"Expected `anchors_per_step` to be at most the number of anchors, {len(anchor)}, found {anchors_per_step}. Leave it "
            "out, to train on all of them in every step."
        )
    num_turns = math.ceil(len(anchor) / (anchors_per_step or len(anchor)))
    bounds = [number * len(anchor) // num_turns for number in range(num_turns + 1)]
    points = [0, *accumulate(anchor.config.points_per_anchor)]
    return [Turn(slice(start, end), slice(points[start], points[end])) for start, end in pairwise(bounds)]


def _shares_a_row(batch: PromptBatch) -> bool:
    return "position_ids" in batch.inputs  # a single prompt stands in a row too, and shares it with none


@torch.no_grad()
def lay_out_for_training(
    anchor: SafetyAnchor, model: nn.Module, wrapped: nn.Module, turns: Sequence[Turn]
) -> list[PromptBatch]:
    """
    Lay out anchors in the cheapest way whose states are those of padded rows, see [`SafetyAnchor.lay_out`]: with the
    weights as they are, and with those moved that may do nothing yet (LoRA's `B` is 0 at first). They have their bits again
    afterwards.

    Args:
        anchor ([`SafetyAnchor`]):
            The anchor.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be trained, not wrapped for distributed training.
        wrapped (`torch.nn.Module`):
            The model as it is called in training.
        turns (`Sequence[Turn]`):
            Which anchors are trained on together, see [`divide_into_turns`].

    Returns:
        `list[PromptBatch]`: The contexts of each turn.
    """
    batches = [anchor.lay_out(model, wrapped, turn.anchors) for turn in turns]
    if not any(_shares_a_row(batch) for batch in batches):
        return batches
    parameters, first = get_movable_parameters(model), turns[0].anchors
    padded = pad_right(anchor.input_ids[first], model.device, anchor.positions[first])
    with moved(parameters, _find_visible_movement(model, wrapped, parameters, padded)):
        return [
            anchor.lay_out(model, wrapped, turn.anchors) if _shares_a_row(batch) else batch
            for turn, batch in zip(turns, batches, strict=True)
        ]


def _find_visible_movement(
    model: nn.Module, wrapped: nn.Module, parameters: list[nn.Parameter], batch: PromptBatch
) -> float:
    """The smallest movement of the weights after which every state shows what they do, or the largest."""
    unembedding = get_unembedding(model)
    before = final_hidden_states(wrapped, unembedding, batch)
    for movement in _MOVEMENTS:
        with moved(parameters, movement):
            change = relative_errors(final_hidden_states(wrapped, unembedding, batch), before).min()
        if change > _VISIBLE:
            break
    return movement


@torch.no_grad()
def check_layout(
    anchor: SafetyAnchor, model: nn.Module, wrapped: nn.Module, batch: PromptBatch, part: slice = slice(None)
) -> None:
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
        part (`slice`, *optional*):
            Which anchors it has. Defaults to all.

    Raises:
        FloatingPointError: If a state is NaN or infinite.
        RuntimeError: If the states differ from those of padded rows.
    """
    unembedding = get_unembedding(model)
    states = final_hidden_states(wrapped, unembedding, batch)
    if not torch.isfinite(states).all():
        raise FloatingPointError(
            "Found final hidden states on the anchor prompts that are NaN or infinite: the training has blown up, and nothing is "
            "saved. Go on from an earlier checkpoint with a smaller learning rate or `anchor_loss_coef`."
        )
    if not _shares_a_row(batch):
        return
    padded = pad_right(anchor.input_ids[part], model.device, anchor.positions[part])
    error = relative_errors(states, final_hidden_states(wrapped, unembedding, padded)).max().item()
    # The layout was taken at one tolerance of the weights of its time; rounding has as much again with others
    tolerance = 2 * tolerance_of(numerics_of(model))
    if not error <= tolerance:
        raise RuntimeError(
            "Found that the anchor prompts, trained on in one row with a shared prefix, have other states in rows of their own "
            f"(relative error {error:.1e}, expected at most {tolerance:.0e}): "
            "what was held is not what the model does. Something that is trained depends on the row or on the position; train "
            "without it, or with `attn_implementation='eager'`, under which the prompts stand in rows of their own."
        )
