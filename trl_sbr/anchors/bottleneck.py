# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The geometric bottleneck: the input of the unembedding.

A causal LM chooses its next token by `softmax(W h)`, with `h` the final hidden state that enters the unembedding `W`.
Whatever fine-tuning does to the parameters below, it reaches the output only through `h`. This module reads `h` at chosen
positions of contexts (the last prompt token, if none are named), and says whether `W` can still be trained round it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import is_compiled_module
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel

from .adapters import base_tensors
from .supported import check_model_is_supported


def get_unembedding(model: nn.Module) -> nn.Module:
    """
    Return the unembedding (LM head) of a causal LM.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.

    Returns:
        `torch.nn.Module`: The module that maps the final hidden states to the logits.

    Raises:
        ValueError: If the model has none, or is of a kind that cannot be held.
    """
    check_model_is_supported(model)
    unembedding = model.get_output_embeddings()
    if unembedding is None:
        raise ValueError(
            f"`{type(model).__name__}` has no output embeddings, so there is no final hidden state to anchor. Load the "
            "model with its language-modeling head, e.g. with `AutoModelForCausalLM`."
        )
    return unembedding


@contextmanager
def unembedding_input(unembedding: nn.Module, replace: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While active, `unembedding` receives `replace(hidden_states)` in place of `hidden_states`."""

    def pre_hook(module, args):
        return (replace(args[0]), *args[1:])

    # Before the hooks of DeepSpeed's ZeRO-3, whose backward would otherwise take the states for the unembedding's own
    handle = unembedding.register_forward_pre_hook(pre_hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class PromptBatch:
    """
    Prompts in the form in which one forward takes them all.

    Args:
        inputs (`dict[str, torch.Tensor]`):
            What the model is called with.
        rows (`torch.Tensor` of shape `(num_points,)`):
            Row in which each point lies, the token whose state is read, int64. Points stand in the order of the prompts.
        columns (`torch.Tensor` of shape `(num_points,)`):
            Column in which it lies, int64.
    """

    inputs: dict[str, torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor


def last_positions(input_ids: list[list[int]]) -> list[list[int]]:
    """The positions of the paper's anchor: of each prompt the last token's."""
    return [[len(ids) - 1] for ids in input_ids]


def pad_right(
    input_ids: list[list[int]], device: torch.device | str, positions: list[list[int]] | None = None
) -> PromptBatch:
    """
    Lay out prompts as padded rows, one a prompt, which any model takes. The padding stands on the right, whichever side
    the tokenizer pads: behind its last token it cannot reach a causal model's state, so neither position ids nor a pad
    token matter.

    Args:
        input_ids (`list[list[int]]`):
            Token ids of each prompt.
        device (`torch.device` or `str`):
            Device of the returned tensors.
        positions (`list[list[int]]`, *optional*):
            Positions in each prompt whose states are read. Defaults to the last.

    Returns:
        [`PromptBatch`]: `input_ids` and `attention_mask`, int64, of shape `(num_prompts, longest_prompt)`.
    """
    length = max(map(len, input_ids))
    inputs = {
        "input_ids": [ids + [0] * (length - len(ids)) for ids in input_ids],
        "attention_mask": [[1] * len(ids) + [0] * (length - len(ids)) for ids in input_ids],
    }
    points = [(row, i) for row, of_row in enumerate(positions or last_positions(input_ids)) for i in of_row]
    return PromptBatch(
        {name: torch.tensor(values, device=device) for name, values in inputs.items()},
        rows=torch.tensor([row for row, _ in points], device=device),
        columns=torch.tensor([i for _, i in points], device=device),
    )


def share_prefix(
    input_ids: list[list[int]], device: torch.device | str, positions: list[list[int]] | None = None
) -> PromptBatch:
    """
    Lay out prompts in a single row, as a tree: tokens with which several of them begin (the template's, a system prompt's, a
    question that stands behind openers too) stand there once, and each token attends to those before it in its prompt.

    Args:
        input_ids (`list[list[int]]`):
            Token ids of each prompt.
        device (`torch.device` or `str`):
            Device of the returned tensors.
        positions (`list[list[int]]`, *optional*):
            Positions in each prompt whose states are read. Defaults to the last.

    Returns:
        [`PromptBatch`]: `input_ids` and `position_ids`, int64, of shape `(1, num_tokens)`, and `attention_mask`, bool, of
        shape `(1, 1, num_tokens, num_tokens)`.
    """
    nodes: dict[tuple[int, int], int] = {}  # the column of a token behind the one in a column, -1 at the beginning
    columns = []
    for ids, points in zip(input_ids, positions or last_positions(input_ids), strict=True):
        path = [-1]
        for token in ids:
            path.append(nodes.setdefault((path[-1], token), len(nodes)))
        columns += [path[i + 1] for i in points]
    visible = torch.eye(len(nodes), dtype=torch.bool)
    for column, (before, _) in enumerate(nodes):
        if before >= 0:
            visible[column] |= visible[before]
    return PromptBatch(
        {
            "input_ids": torch.tensor([[token for _, token in nodes]], device=device),
            "position_ids": (visible.sum(dim=-1) - 1).unsqueeze(0).to(device),
            "attention_mask": visible[None, None].to(device),
        },
        rows=torch.zeros(len(columns), dtype=torch.long, device=device),
        columns=torch.tensor(columns, device=device),
    )


def final_hidden_states(model: nn.Module, unembedding: nn.Module, batch: PromptBatch) -> torch.Tensor:
    """
    Read the input of the unembedding at each point of the prompts, differentiably.

    Only these states go on through the unembedding, so the logits are of shape `(num_points, 1, vocab_size)`, and no
    other hidden state is kept. The forward runs in eval mode: dropout, NEFTune and router noise would make the state
    of an unchanged model differ from its reference.

    Args:
        model (`torch.nn.Module`):
            Causal language model as it is called in training, i.e. wrapped by DDP, FSDP or DeepSpeed if it is. Left in
            the mode (train or eval) in which it came.
        unembedding (`torch.nn.Module`):
            Unembedding of `model`, see [`get_unembedding`].
        batch ([`PromptBatch`]):
            The prompts, from [`pad_right`] or [`share_prefix`].

    Returns:
        `torch.Tensor` of shape `(num_points, hidden_size)`: The final hidden states, float32.

    Raises:
        RuntimeError: If the model's forward does not pass through `unembedding`.
        ValueError: If a parameter that is trained acts on the logits behind the states, where no anchor can hold it. Only
            where gradients are enabled.
    """
    states = []

    def keep_points(hidden_states):
        points = hidden_states[batch.rows.to(hidden_states.device), batch.columns.to(hidden_states.device)]
        states.append(points)
        return points.unsqueeze(1)

    was_training = unembedding.training  # DeepSpeed's engine does not keep the mode of its own
    model.eval()
    # A compiled model runs as it was written: a graph compiled without the hook, or with it, would be taken again
    as_written = torch.compiler.set_stance("force_eager") if _is_compiled(model) else nullcontext()
    try:
        with unembedding_input(unembedding, keep_points), as_written:
            logits = model(**batch.inputs, use_cache=False, **without_router_loss(model)).logits
    finally:
        model.train(was_training)
    if len(states) != 1:
        raise RuntimeError(
            f"Expected the forward of `{type(model).__name__}` to call its unembedding (`get_output_embeddings()`) "
            f"once, found {len(states)} calls. The final hidden state of this model cannot be anchored."
        )
    _check_nothing_is_trained_behind(model, states[0], logits)
    return states[0].float()


def _is_compiled(model: nn.Module) -> bool:
    return any(is_compiled_module(m) or m._compiled_call_impl is not None for m in model.modules())


def without_router_loss(model: nn.Module) -> dict[str, bool]:
    """
    Arguments of a forward for a mixture of experts, whose load-balancing loss takes neither the mask of a shared row nor one that
    is longer than the tokens, as in generation.
    """
    config = next(m for m in model.modules() if isinstance(m, PreTrainedModel)).config.get_text_config()
    return {"output_router_logits": False} if hasattr(config, "output_router_logits") else {}


def _check_nothing_is_trained_behind(model: nn.Module, states: torch.Tensor, logits: torch.Tensor) -> None:
    """Walk the logits' graph back to the states: no leaf may be met on the way."""
    seen, queue, found = {states.grad_fn}, [logits.grad_fn], []
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        queue += [following for following, _ in node.next_functions]
    if found:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        found = sorted(names.get(id(leaf), f"one of shape {tuple(leaf.shape)}") for leaf in found)
        listing = ", ".join(f"`{name}`" for name in found[:3]) + (f" and {len(found) - 3} more" if found[3:] else "")
        raise ValueError(
            f"Found parameters that act on the logits behind the anchored hidden states, or round them, and are trained: "
            f"{listing}. They open a way round the anchors: freeze them, with `requires_grad_(False)`, and train those below "
            "the unembedding alone."
        )


@torch.no_grad()
def lay_out(
    model: nn.Module,
    input_ids: list[list[int]],
    tolerance: float,
    wrapped: nn.Module | None = None,
    positions: list[list[int]] | None = None,
) -> PromptBatch:
    """
    Lay out prompts in the cheapest way that this model takes: in one row that shares prefixes where its attention is
    torch's `scaled_dot_product_attention` and the states come out as those of padded rows, else in padded rows.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.
        input_ids (`list[list[int]]`):
            Token ids of each prompt.
        tolerance (`float`):
            Largest relative error of a state that is put down to the numerics.
        wrapped (`torch.nn.Module`, *optional*):
            The model as it is called in training, see [`final_hidden_states`]. Defaults to `model`.
        positions (`list[list[int]]`, *optional*):
            Positions in each prompt whose states are read. Defaults to the last.

    Returns:
        [`PromptBatch`]: The prompts.
    """
    padded = pad_right(input_ids, model.device, positions)
    if len(input_ids) == 1 or model.config.get_text_config()._attn_implementation != "sdpa":
        return padded
    # A sliding window shorter than the row, or positions counted from the mask, show in the states
    packed, unembedding = share_prefix(input_ids, model.device, positions), get_unembedding(model)
    wrapped = model if wrapped is None else wrapped
    expected, found = (final_hidden_states(wrapped, unembedding, batch) for batch in (padded, packed))
    return packed if relative_errors(found, expected).max() <= tolerance else padded


def relative_errors(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """
    Compare vectors row by row.

    Args:
        found (`torch.Tensor` of shape `(n, size)`):
            Vectors.
        expected (`torch.Tensor` of shape `(n, size)`):
            What they should be.

    Returns:
        `torch.Tensor` of shape `(n,)`: `‖found - expected‖ / ‖expected‖`.
    """
    return (found - expected).norm(dim=-1) / expected.norm(dim=-1)


@torch.no_grad()
def prove_bottleneck(
    model: nn.Module, input_ids: list[list[int]], positions: list[list[int]], states: torch.Tensor, tolerance: float
) -> None:
    """
    Prove that the final hidden states alone decide the model's logits: those of an ordinary, unpadded forward, fed to the
    unembedding while the model reads something else, must give (with the model's own logit scale and soft cap) the logits of
    that forward. And `states` must be those.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, in eval mode.
        input_ids (`list[list[int]]`):
            Token ids of each prompt.
        positions (`list[list[int]]`):
            Positions in each prompt of the states.
        states (`torch.Tensor` of shape `(num_points, hidden_size)`):
            Final hidden states there, float32.
        tolerance (`float`):
            Largest relative error that is put down to the numerics.

    Raises:
        ValueError: If the logits or the states differ.
    """
    unembedding, own, logits = get_unembedding(model), [], []

    def keep(hidden_states):
        own.append(hidden_states)
        return hidden_states

    with unembedding_input(unembedding, keep):
        for ids, points in zip(input_ids, positions, strict=True):
            logits.append(
                model(input_ids=torch.tensor([ids], device=states.device), use_cache=False).logits[0, points]
            )
            own[-1] = own[-1][0, points]
    own, expected = torch.cat(own), torch.cat(logits).float()
    # Two tokens: a single one is a step of decoding, for which some forwards do without the unembedding's module
    something_else = torch.tensor([input_ids[0][:1] * 2] * len(states), device=states.device)
    with unembedding_input(unembedding, lambda hidden: own.to(hidden.device).unsqueeze(1)):
        found = model(input_ids=something_else, use_cache=False).logits[:, 0].float()
    error = relative_errors(found, expected).max().item()
    if not error <= tolerance:
        raise ValueError(
            f"The final hidden states of `{type(model).__name__}` do not determine its logits: pushed through the "
            f"unembedding they differ from the model's own by {error:.2e} relative, expected at most {tolerance:.0e}. "
            "This architecture has a way round the unembedding's input and cannot be protected by SBR."
        )
    error = relative_errors(states, own.float().to(states.device)).max().item()
    if not error <= 2 * tolerance:  # the layout that the states were read in may differ by as much again
        raise ValueError(
            f"The final hidden states of `{type(model).__name__}` on the anchor prompts are not those of an ordinary forward: they "
            f"differ by {error:.2e} relative, expected at most {2 * tolerance:.0e}. Something depends on the padding or the layout "
            "of a row; capture with `attn_implementation='eager'`."
        )


def _shares_weight_with_input_embeddings(model: nn.Module, unembedding: nn.Module) -> bool:
    embeddings = model.get_input_embeddings()
    if isinstance(embeddings, AuxiliaryTrainingWrapper):
        embeddings = embeddings.original_module
    elif isinstance(embeddings, BaseTunerLayer):
        embeddings = embeddings.get_base_layer()
    return getattr(embeddings, "weight", None) is unembedding.weight


def freeze_unembedding(model: nn.Module) -> bool:
    """
    Make sure that training cannot go round the final hidden states by changing the unembedding.

    A fully fine-tuned model has its unembedding frozen. A PEFT model must leave it alone already: what PEFT was told to
    train there is an error, not a thing to undo in silence.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model, not wrapped for distributed training.

    Returns:
        `bool`: Whether the input embeddings share the unembedding's weight, and so are frozen with it.

    Raises:
        ValueError: If PEFT trains the unembedding, or the input embeddings that share its weight.
    """
    unembedding = get_unembedding(model)
    if isinstance(model, PeftModel):
        check_unembedding_is_untouched(model)
    else:
        unembedding.requires_grad_(False)
    return _shares_weight_with_input_embeddings(model, unembedding)


def check_unembedding_is_untouched(model: PeftModel) -> None:
    """
    Make sure that no adapter goes round the final hidden states, whoever trained it.

    Args:
        model ([`~peft.PeftModel`]):
            Causal language model with its adapters.

    Raises:
        ValueError: If an adapter changes the unembedding, or the input embeddings that share its weight, or is trained
            together with weights of the base model.
    """
    unembedding = get_unembedding(model)
    adapters = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if isinstance(unembedding, adapters) or any(p.requires_grad for p in unembedding.parameters()):
        raise ValueError(
            "The PEFT configuration trains the unembedding (`lm_head`), which opens a way round the anchored hidden "
            "states. Remove it from `target_modules`, `modules_to_save` and `trainable_token_indices`."
        )
    tied = _shares_weight_with_input_embeddings(model, unembedding)
    if tied and isinstance(model.get_input_embeddings(), adapters):
        raise ValueError(
            "The PEFT configuration trains the input embeddings, whose weight is tied to the unembedding: merged, the "
            "adapter would open a way round the anchored hidden states. Remove the embeddings from `target_modules`, "
            "`modules_to_save` and `trainable_token_indices`."
        )
    _check_adapters_hold_what_is_trained(model)


def _check_adapters_hold_what_is_trained(model: PeftModel) -> None:
    """With the adapters switched off, the model must be the aligned one: whatever else is trained stays on."""
    for name, config in model.peft_config.items():
        bias = getattr(config, "bias", "none")
        if bias != "none":
            raise ValueError(
                f"The PEFT configuration {name!r} trains biases of the base model (`bias={bias!r}`), which stay trained where "
                "the adapter is switched off: nobody could tell the aligned model from the fine-tuned one. Set `bias='none'`; "
                "`lora_bias=True` gives the adapter a bias of its own."
            )
    trained = [name for name, tensor in base_tensors(model).items() if tensor.requires_grad]
    if trained:
        listing = ", ".join(f"`{name}`" for name in trained[:3]) + (
            f" and {len(trained) - 3} more" if trained[3:] else ""
        )
        raise ValueError(
            f"Found weights of the base model that are trained beside its adapter: {listing}. They are not in the adapter that is "
            "saved, and stay trained where it is switched off. Freeze them, or name their modules in `modules_to_save`."
        )
