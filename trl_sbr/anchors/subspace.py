# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Adapters kept off the inputs that their layers read on an anchor's tokens.

A layer with LoRA computes `W x + s B A x`. Where `A x = 0` for every input `x` that it has on the tokens of the anchors in the
aligned model, it gives there what the aligned model gives, and so does the layer behind it: all states on the anchors stay the
aligned model's, whatever is trained. As null-space adapters do (LoRA-Null, 2503.02659; GuardSpace), with the anchors' inputs.
"""

import itertools
from collections.abc import Iterator

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from .bottleneck import final_hidden_states, get_unembedding
from .safety_anchor import SafetyAnchor


_RANK_TOLERANCE = 1e-6  # of the singular values, relative to the largest
_MIN_OVERLAP = 1e-5  # ‖A U‖ / ‖A‖ that float32 leaves


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Yields the layers of a model that have LoRA, with their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _downs(layer: LoraLayer) -> list[nn.Parameter]:
    """`A` of each active adapter."""
    return [layer.lora_A[name].weight for name in layer.active_adapters if name in layer.lora_A]


def check_can_be_kept_off(model: nn.Module) -> None:
    """
    Make sure that all that is trained are `A` and `B` of plain LoRA on linear layers: what else moves, moves on the anchors.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model.

    Raises:
        ValueError: If something else is trained, or nothing is.
    """
    way_out = "Use LoRA (or rsLoRA) on linear layers alone, or hold the anchors by `anchor_method='loss'`."
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"Found `anchor_method='subspace'` for a model without an adapter (`{type(model).__name__}`), expected one with LoRA: it "
            f"is its `A` that is kept off the anchors' inputs. {way_out}"
        )
    kept = set()
    for name, layer in adapted_layers(model):
        for adapter in set(layer.active_adapters) & layer.lora_A.keys():
            down, up = layer.lora_A[adapter], layer.lora_B[adapter]
            is_linear = type(down) is nn.Linear and type(up) is nn.Linear and not isinstance(layer, ParamWrapper)
            if adapter in layer.lora_variant or not is_linear:
                kind = type(layer.lora_variant.get(adapter, layer)).__name__
                raise ValueError(
                    f"Found `{name}` with `{kind}`, which is no plain LoRA on a linear layer: where `A x = 0` it may act all the same. "
                    f"{way_out}"
                )
            kept |= {id(down.weight), id(up.weight)}
    others = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in kept]
    if others or not kept:
        found = f"`{others[0]}` trained" if others else "no LoRA on the model"
        raise ValueError(f"Found {found}, which no `A x = 0` keeps off the anchors. {way_out}")


@torch.no_grad()
def _read_inputs(model: PeftModel, anchor: SafetyAnchor) -> dict[str, list[torch.Tensor]]:
    """
    The inputs of the adapted layers of the aligned model on an anchor's tokens, by the layers' names: one tensor of shape
    `(..., in_features)` a call. An expert of a mixture that no token comes to has none.
    """
    layers = dict(adapted_layers(model))
    found = {name: [] for name in layers}
    with anchor.reference_model(model):
        batch = anchor.lay_out(model, model)
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: found[name].append(args[0]))
            for name, layer in layers.items()
        ]
        try:
            final_hidden_states(model, get_unembedding(model), batch)
        finally:
            for hook in hooks:
                hook.remove()
    return found


def find_bases(model: PeftModel, anchor: SafetyAnchor) -> list[torch.Tensor]:
    """
    Find what the adapted layers of the aligned model read on an anchor's tokens.

    Args:
        model ([`~peft.PeftModel`]):
            The model, not wrapped for distributed training.
        anchor ([`SafetyAnchor`]):
            The anchor.

    Returns:
        `list[torch.Tensor]`: For each layer of [`adapted_layers`] an orthonormal basis of its inputs, of shape
        `(in_features, rank)`, float32, on the CPU. Layers with the same input share one.

    Raises:
        ValueError: If the anchor's tokens take all inputs of a layer: its adapter could learn nothing.
    """
    layers, inputs, bases = dict(adapted_layers(model)), _read_inputs(model, anchor), {}
    for name, calls in inputs.items():
        key = tuple(map(id, calls))
        if key not in bases:
            none = torch.empty(0, layers[name].in_features)
            bases[key] = orthonormal_basis(torch.cat([none, *(x.flatten(0, -2).cpu() for x in calls)]))
        if bases[key].shape[0] == bases[key].shape[1]:
            raise ValueError(
                f"Found that the anchor's tokens take all {len(bases[key])} inputs of `{name}`, expected fewer: kept off them, its "
                "adapter could learn nothing. Use fewer or shorter anchors (prompts, openers, tokens of the refusal), or hold them "
                "by `anchor_method='loss'`."
            )
    return [bases[tuple(map(id, calls))] for calls in inputs.values()]


@torch.no_grad()
def find_overlap(model: PeftModel, anchor: SafetyAnchor) -> float:
    """
    Find how far a model's adapters act on an anchor's tokens: the largest `‖A x‖ / (‖A‖ ‖x‖)` over the inputs `x` that their layers
    have there in the aligned model. 0 up to rounding where they are kept off.

    Args:
        model ([`~peft.PeftModel`]):
            The model with its adapters, whoever trained them.
        anchor ([`SafetyAnchor`]):
            The anchor.
    """
    layers, largest = dict(adapted_layers(model)), 0.0
    for name, calls in _read_inputs(model, anchor).items():
        for x, a in itertools.product(calls, _downs(layers[name])):
            x, a = nn.functional.normalize(x.float(), dim=-1), a.float() / a.float().norm()
            with torch.autocast(model.device.type, enabled=False):
                largest = max(largest, (x @ a.T).norm(dim=-1).max().item())
    return largest


def orthonormal_basis(inputs: torch.Tensor) -> torch.Tensor:
    """
    Find an orthonormal basis of what vectors span.

    Args:
        inputs (`torch.Tensor` of shape `(num_vectors, size)`):
            The vectors.

    Returns:
        `torch.Tensor` of shape `(size, rank)`: The basis, float32, on the CPU.
    """
    inputs = nn.functional.normalize(
        inputs.double(), dim=-1
    )  # the first token's state is a thousand times as large as others
    _, values, vectors = torch.linalg.svd(inputs, full_matrices=False)
    return vectors[values > _RANK_TOLERANCE * values[:1]].T.float()


class AnchorSubspace:
    """
    What an anchor's tokens take of the inputs of a model's adapters, and the projection of their `A` off it.

    Args:
        model ([`~peft.PeftModel`]):
            The model, not wrapped for distributed training, see [`check_can_be_kept_off`].
        bases (`list[torch.Tensor]`):
            What [`find_bases`] found.

    Attributes:
        share (`float`):
            Which share of the adapters' inputs they take, on average.
    """

    def __init__(self, model: PeftModel, bases: list[torch.Tensor]):
        self._model = model
        self._kept = []
        moved = {}  # layers with the same input share one
        for (name, layer), basis in zip(adapted_layers(model), bases, strict=True):
            for a in _downs(layer):
                u = moved.setdefault((id(basis), a.device), basis.to(a.device))
                self._kept.append((name, a, u))
        self.share = sum(basis.shape[1] / basis.shape[0] for basis in bases) / len(bases)

    @torch.no_grad()
    def project(self) -> None:
        """Make `A U` of each adapter 0, where the columns of `U` are the basis of its inputs: `A <- A (I - U Uᵀ)`."""
        with torch.autocast(self._model.device.type, enabled=False):
            for _, a, u in self._kept:
                a.copy_(a.float() - a.float() @ u @ u.T)

    @torch.no_grad()
    def overlap(self) -> float:
        """
        How far the adapters are on the anchors' inputs, from 0 to 1: the largest `‖A U‖ / ‖A‖`, which is 0 where they are kept off.

        Raises:
            ValueError: If it is more than rounding.
        """
        with torch.autocast(self._model.device.type, enabled=False):
            overlap, worst = max(((a.float() @ u).norm() / a.float().norm(), name) for name, a, u in self._kept)
        allowed = max(_MIN_OVERLAP, *(torch.finfo(a.dtype).eps for _, a, _ in self._kept))
        if not overlap <= allowed:
            raise ValueError(
                f"Found the adapter of `{worst}` on the anchors' inputs: ‖A U‖ / ‖A‖ is {overlap:.1e}, expected at most {allowed:.0e}. "
                "It was trained without being kept off them, or something has changed its weights since: a callback, an optimizer "
                "that keeps weights of its own (schedule-free), another checkpoint."
            )
        return overlap.item()
