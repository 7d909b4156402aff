# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What must hold at every anchor step and at each save, so that a run that looks protected is."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import TrainerCallback

from ..anchors.bottleneck import get_unembedding
from ..anchors.perturbation import local_part
from ..anchors.safety_anchor import SafetyAnchor
from ..anchors.unembedding import unembedding_sha256
from .anchor_arguments import AnchorArguments
from .run_record import PROTECTION_SETTINGS


_WITHOUT_THE_TERM = (
    "Found an optimizer step without the anchor term: its weights would not be protected. A `training_step` of your own has to call "
    "`super().training_step`, a training loop of your own `training_step`, and `anchor` has to stay the trainer's."
)


class BottleneckGuard(TrainerCallback):
    """
    Watches over a protected run: the unembedding stays as it was when the trainer was built, the anchor and its weight are
    those of that time, every optimizer step has its anchor term, and all numbers are finite.

    It is told of anchor steps and saves by the trainer, of the beginning of a training and of optimizer steps as a callback, and
    of the latter by the optimizers too: none of it rests on what a subclass of the trainer overrides.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model, its unembedding frozen, not wrapped for distributed training.
        args ([`AnchorArguments`]):
            The settings of the anchor term.
        is_placed_by_engine (`bool`):
            Whether FSDP or DeepSpeed place the model when training starts: its parameters are other objects from then on.
    """

    def __init__(self, model: nn.Module, args: AnchorArguments, is_placed_by_engine: bool):
        self.unembedding = get_unembedding(model)
        self._model = model
        self._is_placed_by_engine = is_placed_by_engine
        self._settings = _settings(args)
        self._dtype = _dtype(self.unembedding)
        # Where FSDP loads the weights in the main process alone, the others have none yet
        self._sha256 = broadcast_object_list([_sha256_if_loaded(model)])[0]
        self._term_added = False
        self._named_parameters = list(model.named_parameters())
        check_nothing_shares_its_memory(self._named_parameters, self.unembedding)

    def hold(self, anchor: SafetyAnchor, num_turns: int) -> None:
        """Remember an anchor, that of the trainer must stay equal to it; and in how many steps it is trained on as a whole."""
        self._config, self._states = copy.deepcopy(anchor.config), anchor.hidden_states.clone()
        self._num_turns = num_turns

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._term_added = False
        self.check_all_have_a_turn(state.max_steps)  # of the whole run, where it is resumed
        dtype = _dtype(self.unembedding)
        if self._is_placed_by_engine and torch.finfo(dtype).bits < torch.finfo(self._dtype).bits:
            self._dtype, self._sha256 = dtype, unembedding_sha256(self._model)  # DeepSpeed has rounded the weights
        self._check_bits()  # after a checkpoint has been loaded
        self._tensors = _tensors(self.unembedding)
        # Once: a walk over all modules costs more than the checks of a step
        self._named_parameters = list(self._model.named_parameters())

    def check_all_have_a_turn(self, num_steps: int, of: str = "a run") -> None:
        """Raises a `ValueError` where so many steps, of `a run` or what else, are too few for all anchors to be trained on."""
        if 0 < num_steps < self._num_turns:
            num_anchors = len(self._config.prompts)
            raise ValueError(
                f"Found {of} of {num_steps} optimizer steps, and {num_anchors} anchors that take {self._num_turns} steps in turn "
                f"(`anchors_per_step={self._settings['anchors_per_step']}`): some would never be trained on, and be saved as held. "
                f"Train for at least {self._num_turns} steps (`max_steps`, `num_train_epochs`; for a best model, `eval_delay`), set "
                f"`anchors_per_step` to at least {math.ceil(num_anchors / num_steps)}, or leave it out, to train on all of them in "
                "every step."
            )

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if not self._term_added:
            raise RuntimeError(_WITHOUT_THE_TERM)

    def on_optimizer_step(self, args, state, control, **kwargs):
        self._term_added = False

    @contextmanager
    def watch_optimizers(self) -> Iterator[None]:
        """While a training is on, no optimizer steps with the model's weights without the term, in whoever's loop it is."""

        def check(optimizer, args, kwargs):
            if self._term_added:
                return
            parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
            if any(id(p) in parameters for _, p in self._named_parameters):  # and not another model's optimizer
                raise RuntimeError(_WITHOUT_THE_TERM)

        handle = register_optimizer_step_pre_hook(check)
        try:
            yield
        finally:
            handle.remove()

    def check_step(self, model: nn.Module, args: AnchorArguments, anchor: SafetyAnchor | None) -> None:
        """
        Check before an anchor step, without a look at the weights: it costs next to nothing.

        Args:
            model (`torch.nn.Module`):
                The trainer's model.
            args ([`AnchorArguments`]):
                The trainer's settings of the anchor term.
            anchor ([`SafetyAnchor`]):
                The trainer's anchor.

        Raises:
            RuntimeError: If the model, its unembedding, the anchor or its weight is not that of the beginning.
        """
        self._check_identity(model, args, anchor)
        # FSDP2 puts one object in the place of the other
        if not self._is_placed_by_engine and _tensors(self.unembedding) != self._tensors:
            raise RuntimeError(
                "Found other weights in the unembedding than when the training began: they were replaced since. Leave them alone, "
                "or build another trainer."
            )

    def _check_identity(self, model: nn.Module, args: AnchorArguments, anchor: SafetyAnchor | None) -> None:
        if _settings(args) != self._settings:
            raise RuntimeError(
                f"Found {_settings(args)}, expected {self._settings} as when the trainer was built. Build another trainer for "
                "other settings."
            )
        if anchor is None or anchor.config != self._config or not torch.equal(anchor.hidden_states, self._states):
            raise RuntimeError(
                "Found another safety anchor, or an edited one, than this trainer was built with. Build another trainer for "
                "another anchor."
            )
        if not self._is_placed_by_engine and model is not self._model:
            raise RuntimeError(
                f"Found another model (`{type(model).__name__}`) than the one that this trainer was built with "
                f"(`{type(self._model).__name__}`). Build another trainer for another model."
            )
        found = model.get_output_embeddings()
        if found is not self.unembedding:
            raise RuntimeError(
                f"Found another unembedding (`{type(found).__name__}`) than when the trainer was built: an adapter or a layer "
                "was put there since, and opens a way round the anchored hidden states. Leave it alone."
            )
        if any(parameter.requires_grad for parameter in found.parameters()):
            raise RuntimeError(
                "Found the unembedding unfrozen since the trainer was built: trained, it opens a way round the anchored hidden "
                "states. Leave it frozen."
            )
        check_nothing_shares_its_memory(self._named_parameters, found)

    def check_save(self, model: nn.Module, args: AnchorArguments, anchor: SafetyAnchor | None) -> None:
        """
        Check what is about to be saved: that it is the same model, held by the same anchor, that the unembedding has its bits,
        and that the trained weights are finite.

        Raises:
            RuntimeError: If it is not what the anchor holds.
            FloatingPointError: If a weight is NaN or infinite.
        """
        self._check_identity(model, args, anchor)
        self._check_bits()
        not_finite = _not_finite(model)
        if self._is_placed_by_engine:  # each process holds a part, and all end with the one that finds it
            not_finite = gather_object(not_finite)
        if not_finite:
            raise FloatingPointError(
                f"Found weights that are NaN or infinite, `{not_finite[0]}` among them: the training has blown up, and nothing "
                "is saved. Go on from an earlier checkpoint with a smaller learning rate or `anchor_loss_coef`."
            )

    @contextmanager
    def anchor_step(self) -> Iterator[None]:
        """
        Around the backward of the anchor term: it must leave the weights to the optimizer's step.

        Raises:
            RuntimeError: If weights have changed within.
        """
        trained = [] if self._is_placed_by_engine else [p for _, p in self._named_parameters if p.requires_grad]
        versions = [p._version for p in trained]
        last = [p.detach().clone() for p in trained[-1:]]  # `p.data` has no version; the last one is always reached
        yield
        self._term_added = True
        changed = any(p._version != version for p, version in zip(trained, versions, strict=True))
        if changed or not all(torch.equal(p, bits) for p, bits in zip(trained[-1:], last, strict=True)):
            raise RuntimeError(
                "Found weights that have changed within the backward of the anchor term: the optimizer steps there, with each "
                "gradient by itself, so that the weight of the term means nothing. Use one that steps after the backward, e.g. "
                "`optim='adamw_torch_fused'`."
            )

    def _check_bits(self) -> None:
        found = unembedding_sha256(self._model)
        if found != self._sha256:
            raise RuntimeError(
                f"Found another unembedding, of sha256 {found}, than when the trainer was built, {self._sha256}: it was trained "
                "or edited, here or in the checkpoint that was resumed, and goes round the anchored hidden states. Start again "
                "from the aligned model."
            )


def _settings(args: AnchorArguments) -> dict[str, float | str]:
    return {name: getattr(args, name) for name in PROTECTION_SETTINGS}


def _sha256_if_loaded(model: nn.Module) -> str | None:
    is_loaded = not any(parameter.is_meta for parameter in get_unembedding(model).parameters())
    return unembedding_sha256(model) if is_loaded else None


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _tensors(module: nn.Module) -> dict[str, tuple[int, int]]:
    """Which tensors a module has: objects and memory."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (id(tensor), _address(tensor)) for name, tensor in tensors}


def _address(tensor: torch.Tensor) -> int:
    return local_part(tensor).untyped_storage().data_ptr()


def check_nothing_shares_its_memory(named_parameters: list[tuple[str, nn.Parameter]], unembedding: nn.Module) -> None:
    """
    Make sure that no trained parameter lies in the memory of the unembedding.

    Raises:
        RuntimeError: If one does.
    """
    held = {_address(tensor) for tensor in unembedding.parameters()} - {0}  # a parameter without memory has address 0
    for name, parameter in named_parameters:
        if parameter.requires_grad and _address(parameter) in held:
            raise RuntimeError(
                f"Found that `{name}`, which is trained, lies in the memory of the unembedding's weight: they would change "
                "together. Tie them as one parameter (`model.tie_weights()`), which is frozen, or give each its own."
            )


def _not_finite(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if p.requires_grad and not torch.isfinite(local_part(p)).all()]


def check_is_finite(name: str, value: float) -> None:
    """
    Make sure that a number of the training is finite.

    Raises:
        FloatingPointError: If it is not.
    """
    if not math.isfinite(value):
        raise FloatingPointError(
            f"Found {name} of {value}: the training has blown up. Go on from an earlier checkpoint with a smaller learning rate "
            "or `anchor_loss_coef`."
        )
