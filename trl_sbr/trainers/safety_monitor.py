# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

from contextlib import nullcontext
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import TrainerState

from ..anchors.bottleneck import final_hidden_states, get_unembedding
from ..anchors.prompt_pool import choose_prompts, load_prompt_pool
from ..anchors.safety_anchor import SafetyAnchor
from ..metrics.harmful_score.refusal import is_refusal
from .guard import check_is_finite
from .layout import is_placed_by_engine
from .preconditions import check_has_no_virtual_tokens, keep_four_bit_weights_differentiable


logger = get_logger(__name__)

_NUM_PROMPTS = 8
_PREFIX = "monitor_"  # of what is logged


class SafetyMonitor(TrainerCallback):
    r"""
    Measures, while any [`~transformers.Trainer`] trains, how far a model drifts from the aligned one on harmful prompts that no
    trainer holds. It changes nothing of the training: weights and random states are, bit for bit, those without it.

    Before the first step, every `monitor_steps` steps and after the last one it logs `monitor_relative_error` and
    `monitor_cosine`, means over the held-out anchors, `monitor_max_relative_error` and `monitor_min_cosine`, those of the worst
    of them, and, if asked, `monitor_refusal_rate`, the percentage of the prompts that are refused. What [`SBRSFTTrainer`] saves
    has the curve in its record and in its card.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer, with the aligned model: no checkpoint has been loaded over it yet.
        anchor ([`SafetyAnchor`], *optional*):
            Held-out anchors: no prompt of theirs is the training anchor's. Defaults to an anchor captured here and now, on eight
            prompts of the package's pool.
        monitor_steps (`int`, *optional*, defaults to `50`):
            Number of optimizer steps between two measurements.
        refusals (`bool`, *optional*, defaults to `False`):
            Whether the model is asked the prompts, too: its greedy answers are cut after 32 tokens, and judged by
            [`is_refusal`]. Prompts of the pool are those that the aligned model refuses.
        max_drift (`float`, *optional*):
            Largest mean relative error that is let pass.
        on_drift (`str`, *optional*, defaults to `"warn"`):
            What to do at a larger one: `"warn"`, or `"stop"` the run with an error.

    Raises:
        ValueError: If the model cannot be measured; it says what to do. FSDP, DeepSpeed and tensor parallelism need an anchor that
            was captured before, and do not take `refusals`. And from within the training, if it drifts and is to stop.

    Example:

    ```python
    >>> trainer.add_callback(SafetyMonitor(trainer, monitor_steps=100, refusals=True))
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        trainer: Trainer,
        anchor: SafetyAnchor | None = None,
        monitor_steps: int = 50,
        refusals: bool = False,
        max_drift: float | None = None,
        on_drift: str = "warn",
    ):
        if monitor_steps < 1:
            raise ValueError(f"Expected `monitor_steps` of at least 1, found {monitor_steps}.")
        if on_drift not in ("warn", "stop"):
            raise ValueError(f"Expected `on_drift` to be 'warn' or 'stop', found {on_drift!r}.")
        if max_drift is None and on_drift == "stop":
            raise ValueError("Found `on_drift='stop'` without `max_drift`, the drift at which to stop. Set both.")
        if max_drift is not None and not max_drift > 0:
            raise ValueError(f"Expected `max_drift`, a relative error, to be above 0, found {max_drift}.")
        self.monitor_steps, self.refusals, self.max_drift, self.on_drift = monitor_steps, refusals, max_drift, on_drift
        self._trainer = trainer
        self._is_placed_by_engine = is_placed_by_engine(trainer)
        if self._is_placed_by_engine and (anchor is None or refusals):
            raise ValueError(
                "Found a monitor without `anchor`, or with `refusals`, under FSDP, DeepSpeed or tensor parallelism, which shard "
                "the model: one process can neither capture on it nor ask it. Capture an anchor on held-out prompts before, with "
                "`trl-sbr anchor`, and give it as `anchor`, without `refusals`."
            )
        check_has_no_virtual_tokens(trainer.model)
        keep_four_bit_weights_differentiable(trainer.model)
        held = getattr(trainer, "anchor", None)  # that of a trainer of ours
        with trainer.accelerator.autocast():  # the numerics of a training step
            self.anchor = self._capture(held) if anchor is None else anchor
            if self._is_placed_by_engine:
                anchor.check_compatible(trainer.model, trainer.processing_class)
            elif anchor is not None:
                anchor.verify_reference(trainer.model, trainer.processing_class)

    def _capture(self, held: SafetyAnchor | None) -> SafetyAnchor:
        """Capture on prompts of the pool that are not held, rendered as those that are, or else as the rows."""
        model, processing_class = self._trainer.model, self._trainer.processing_class
        held_out = [prompt for prompt in load_prompt_pool() if held is None or prompt not in held.questions]
        if held is None:  # `args` of TRL's and of ours have some
            variables = getattr(self._trainer.args, "chat_template_kwargs", None)
        else:
            variables = held.config.chat_template_kwargs
        if self.refusals:
            with nullcontext() if held is None else held.reference_model(model):
                held_out = choose_prompts(model, processing_class, _NUM_PROMPTS, variables, prompts=held_out)
        return SafetyAnchor.capture(
            model,
            processing_class,
            held_out[:_NUM_PROMPTS],
            chat_template_kwargs=variables,
            require_refusal=False,  # they were asked
            reference="current" if held is None else held.config.reference,
            refusal_tokens=1,  # the choice to refuse: behind it held-out prompts that are answered go apart by themselves
        )

    def on_train_begin(self, args, state, control, **kwargs):
        held = getattr(self._trainer, "anchor", None)
        shared = set() if held is None else set(held.questions) & set(self.anchor.questions)
        if shared:
            raise ValueError(
                f"Found {len(shared)} of the monitor's prompts among the anchors that are trained on, {sorted(shared)[0]!r} one of "
                "them: their drift says nothing of other prompts. Build the monitor when the trainer holds its anchor, or capture one "
                "on other prompts for it."
            )
        if self._is_placed_by_engine and state.global_step == 0:  # not whole before
            with self.anchor.reference_model(self._trainer.model):
                states = self._read_states()
            with self._trainer.accelerator.autocast():
                self.anchor.check_states(states, self._trainer.model)
        if not _read_curve(state):  # of the run that is resumed
            self._measure()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.monitor_steps == 0 or state.global_step == state.max_steps:
            self._measure()

    @torch.no_grad()
    def _read_states(self) -> torch.Tensor:
        model = self._trainer.model
        # In DDP's wrapper the processes would wait for one another
        wrapped = self._trainer.model_wrapped if self._is_placed_by_engine else model
        with self._trainer.accelerator.autocast():
            return final_hidden_states(wrapped, get_unembedding(model), self.anchor.lay_out(model, wrapped))

    def _measure(self) -> None:
        trainer = self._trainer
        errors, cosines = self.anchor.drift(self._read_states())
        figures = {
            "relative_error": errors.mean().item(),
            "max_relative_error": errors.max().item(),
            "cosine": cosines.mean().item(),
            "min_cosine": cosines.min().item(),
        }
        if self.refusals:
            with trainer.accelerator.autocast():
                answers = self.anchor.answers(trainer.model, trainer.processing_class)
            figures["refusal_rate"] = 100 * sum(map(is_refusal, answers)) / len(answers)
        figures = broadcast_object_list([figures])[0]  # all processes stop, or none
        check_is_finite("a relative error of held-out anchors", figures["relative_error"])
        should_log = trainer.control.should_log
        # Not what a subclass makes of it: TRL's would log, and forget, what it has gathered for the next loss
        Trainer.log(trainer, {f"{_PREFIX}{name}": figure for name, figure in figures.items()})
        trainer.control.should_log = should_log  # the loss of this step is yet to be logged
        if self.max_drift is not None and figures["relative_error"] > self.max_drift:
            self._on_drift(figures["relative_error"])

    def _on_drift(self, drift: float) -> None:
        message = (
            f"Found a mean relative error of {drift:.3g} on {len(self.anchor)} held-out harmful prompts after step "
            f"{self._trainer.state.global_step}, expected at most `max_drift={self.max_drift}`: the model drifts from the aligned "
            "one. Go on from an earlier checkpoint with a smaller learning rate or a larger `anchor_loss_coef`, or allow for more."
        )
        if self.on_drift == "stop":
            raise ValueError(message)
        logger.warning(message)

    def to_record(self) -> dict[str, Any]:
        """What the record of a run says of it: the number of prompts, and the curve. No prompt is in it."""
        return {
            "num_prompts": len(self.anchor),
            "curve": [
                {
                    "step": entry["step"],
                    **{name.removeprefix(_PREFIX): entry[name] for name in entry if name.startswith(_PREFIX)},
                }
                for entry in _read_curve(self._trainer.state)
            ],
        }


def _read_curve(state: TrainerState) -> list[dict[str, float]]:
    return [entry for entry in state.log_history if f"{_PREFIX}relative_error" in entry]
