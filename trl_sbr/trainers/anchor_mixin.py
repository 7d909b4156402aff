# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, broadcast_object_list
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy

from ..anchors.bottleneck import PromptBatch, final_hidden_states, freeze_unembedding, relative_errors
from ..anchors.numerics import numerics_of, tolerance_of
from ..anchors.prompts import get_tokenizer, resolve_prompts
from ..anchors.safety_anchor import SafetyAnchor
from ..anchors.unembedding import has_sharded_weights
from .anchor_arguments import AnchorArguments
from .guard import BottleneckGuard, check_is_finite
from .hardening_record import read_hardening
from .interruption import CheckpointOnInterrupt, check_checkpoint, find_last_checkpoint
from .layout import check_layout, divide_into_turns, is_placed_by_engine, lay_out_for_training
from .output_folder import (
    check_holds_no_anchor,
    check_holds_no_other_anchor,
    check_holds_no_other_weights,
    check_holds_no_report,
    check_is_free,
    lock_folder,
)
from .preconditions import (
    check_is_as_asked,
    check_kind,
    check_rows,
    check_setup,
    keep_four_bit_weights_differentiable,
    warn_of_anchors_in,
)
from .publishing import PublishingMixin, keep_readme
from .resuming import check_settings, load_anchor, load_coef
from .run_record import hash_files, subfolder_weights


logger = get_logger(__name__)

_DUAL_RATE = 0.05  # largest change of log λ in a step
_MAX_RISE = 100.0  # largest λ, in those that it begins at


class SafetyAnchorMixin(PublishingMixin):
    r"""
    Holds a [`SafetyAnchor`] in a [`~transformers.Trainer`], before which it stands among the bases of a class. It adds one
    term to the gradient of each optimizer step,

    $$ \lambda \cdot \frac{1}{K} \sum_{k=1}^{K} d(h_\theta(x_k), h_\mathrm{ref}(x_k)) $$

    where `h` is the input of the unembedding at the last token of anchor prompt `x_k` (or the mean runs over all points that the
    anchor holds; with `anchors_per_step`, over those of one part of the anchors after another), and rests on nothing but the interface
    of [`~transformers.Trainer`]: whatever the loss is, the term's gradient depends on the model, the anchor and λ alone.

    A class calls [`~SafetyAnchorMixin._find_anchor`] before the trainer is built, and [`~SafetyAnchorMixin._hold_anchor`]
    after. [`protect`] does so for a trainer that somebody else has built.

    Attributes:
        anchor ([`SafetyAnchor`] or `None`):
            The anchor trained with; `None` when `anchor_loss_coef` is 0.
        anchor_args ([`AnchorArguments`]):
            The settings of the anchor term: the trainer's `args`, where they are among them.
        dataset_names (`list[str]`):
            Datasets of the Hub that the card names: the rows do not say where they come from.
        hardening ([`HardeningRecord`] or `None`):
            What `trl-sbr harden` says of the base model, if that is a folder or a Hub repository that it made.
    """

    def _find_anchor(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: TrainingArguments,
        settings: AnchorArguments,
        anchor: SafetyAnchor | str | os.PathLike | None,
        others: tuple = (),
    ) -> SafetyAnchor | None:
        """
        Refuse what can be refused before the trainer is built, and load the anchor that `settings` name.

        Args:
            model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                The model, as it is given to the trainer.
            args ([`~transformers.TrainingArguments`]):
                The trainer's arguments.
            settings ([`AnchorArguments`]):
                The settings of the anchor term.
            anchor ([`SafetyAnchor`], `str` or `os.PathLike`, *optional*):
                The anchor that was given, or the folder or Hub repository that it lies in.
            others (`tuple`, *optional*):
                What else is given to the trainer: datasets and the configuration of an adapter may be among it.

        Returns:
            [`SafetyAnchor`] or `None`: The anchor. Without one, it is to be captured on the model.
        """
        if settings.anchor_loss_coef != 0:
            check_kind(model, args, others)
        if anchor is not None and settings.anchor_name_or_path is not None:
            raise ValueError("Found both the argument `anchor` and `anchor_name_or_path`. Give one anchor.")
        if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"Found `hub_strategy={args.hub_strategy.value}`, which publishes the optimizer's state and the training "
                "arguments. Expected 'end' or 'every_save'."
            )
        check_is_free(Path(args.output_dir), args.should_save)
        self._model_revision = None  # nobody knows that of a model that was loaded before
        if isinstance(model, str):
            self._model_revision = (args.model_init_kwargs or {}).get("revision") or "main"
        source = settings.anchor_name_or_path if anchor is None else anchor
        if isinstance(source, str | os.PathLike) and settings.anchor_loss_coef > 0:
            anchor = self._on_main_process(
                lambda: SafetyAnchor.from_pretrained(source, revision=settings.anchor_revision)
            )
        return anchor

    def _hold_anchor(
        self,
        settings: AnchorArguments,
        anchor: SafetyAnchor | None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Hold an anchor in the trainer, which is built, or say that it holds none.

        Args:
            settings ([`AnchorArguments`]):
                The settings of the anchor term.
            anchor ([`SafetyAnchor`], *optional*):
                The anchor, from [`~SafetyAnchorMixin._find_anchor`].
            chat_template_kwargs (`dict[str, Any]`, *optional*):
                Variables of the chat template, with which an anchor is captured.
        """
        check_rows(self.train_dataset)
        self.anchor_args = settings
        self._anchor_coef = settings.anchor_loss_coef  # λ of the next step
        self.dataset_names = []
        self.hardening = self._on_main_process(
            partial(read_hardening, self.model.config._name_or_path, self._model_revision)
        )
        self._on_interrupt = CheckpointOnInterrupt()
        self.add_callback(self._on_interrupt)
        self.anchor, self._guard = None, None
        self._saved_files = None  # of `output_dir`, with their hashes
        self._best_step: int | None = None  # of the weights, where they are those of an earlier checkpoint
        self._in_training_step = False
        # Anchor loss, cosine and term of the steps since the last log
        self._unlogged: list[tuple[float, float, float]] = []
        if settings.anchor_loss_coef == 0:
            check_holds_no_anchor(Path(self.args.output_dir))
            logger.warning("`anchor_loss_coef` is 0: this run is plain fine-tuning and is NOT protected by SBR.")
            return

        check_setup(self.model, self.args, settings, self.accelerator.parallelism_config)
        keep_four_bit_weights_differentiable(self.model)
        tied = freeze_unembedding(self.model)
        if tied and not isinstance(self.model, PeftModel):
            logger.warning("The unembedding is frozen, and with it the input embeddings, which share its weight.")
        self._is_placed_by_engine = is_placed_by_engine(self)
        self._check_states_of_first_step = self._is_placed_by_engine  # where the model is not whole before
        self._check_start = settings.anchor_reference == "base" and isinstance(self.model, PeftModel)
        self._guard = BottleneckGuard(self.model, settings, self._is_placed_by_engine)
        self.add_callback(self._guard)
        self._take_over(self._on_main_process(partial(self._prepare_anchor, anchor, chat_template_kwargs)))
        if has_sharded_weights(self._guard.unembedding):  # gathering it takes all processes
            self.anchor.check_unembedding(self.model)
        self._anchor_batches: list[PromptBatch] | None = None  # of each turn
        if self.accelerator.is_main_process:
            warn_of_anchors_in(self.train_dataset, self.anchor, get_tokenizer(self.processing_class))
            if self.hardening is not None and not any(self.anchor.config.openers):
                logger.warning(
                    "The model was hardened, and no anchor holds it where an answer has begun: fine-tuning undoes that part, and "
                    "can take the refusals with it. Capture the anchor with `anchor_openers='default'`."
                )

    def _take_over(self, anchor: SafetyAnchor) -> None:
        """Train with this anchor from now on."""
        self.anchor = anchor
        self._reference_states = anchor.hidden_states.to(self.accelerator.device, copy=True)
        self._turns = divide_into_turns(anchor, self.anchor_args.anchors_per_step)
        self._guard.hold(anchor, len(self._turns))

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last [`~transformers.Trainer.train`] after a step, so that a checkpoint was left."""
        return self._on_interrupt.stopped

    @property
    def _num_trained_steps(self) -> int:
        """Number of optimizer steps that the weights were trained for: fewer than the run's, where they are the best model's."""
        return self.state.global_step if self._best_step is None else self._best_step

    def _on_main_process(self, function: Callable[[], Any]) -> Any:
        """Run `function` in one process. The others wait for its result, and fail with it rather than hang."""
        result, error = None, None
        if PartialState().is_main_process:
            try:
                result = function()
            except Exception as caught:  # raised below, when the others know
                error = caught
        result, failure = broadcast_object_list([result, error and f"{type(error).__name__}: {error}"])
        if error is not None:
            raise error
        if failure is not None:
            raise ValueError(f"The main process could not go on: {failure}")
        return result

    def _prepare_anchor(
        self, anchor: SafetyAnchor | None, chat_template_kwargs: dict[str, Any] | None
    ) -> SafetyAnchor:
        """Load or capture the anchor on the aligned model, before a checkpoint can be loaded over it."""
        settings = self.anchor_args
        if anchor is not None:
            check_is_as_asked(anchor, settings)
        if self._is_placed_by_engine:
            if anchor is None:
                raise ValueError(
                    "Found no anchor under FSDP, DeepSpeed or tensor parallelism, which shard the model: one process cannot "
                    "capture on it. Capture it before, with `trl-sbr anchor`, and set `anchor_name_or_path`."
                )
            anchor.check_compatible(self.model, self.processing_class)
            if not has_sharded_weights(self._guard.unembedding):
                anchor.check_unembedding(self.model)
            if settings.anchor_require_refusal:
                logger.warning(
                    "Under FSDP and DeepSpeed the aligned model is not asked whether it refuses the anchors: the states "
                    "of the first step are checked alone. Check the refusals before, with `trl-sbr anchor --verify`."
                )
            return anchor
        with self.accelerator.autocast():  # the numerics of a training step
            if anchor is None:
                return SafetyAnchor.capture(
                    self.model,
                    self.processing_class,
                    resolve_prompts(settings.anchor_prompts),
                    chat_template_kwargs=chat_template_kwargs,
                    require_refusal=settings.anchor_require_refusal,
                    reference=settings.anchor_reference,
                    refusal_tokens=settings.anchor_refusal_tokens,
                    openers=settings.anchor_openers,
                    system_prompts=settings.anchor_system_prompts or (),
                    model_revision=self._model_revision,
                )
            anchor.verify_reference(self.model, self.processing_class)
            if settings.anchor_require_refusal:
                anchor.check_refusals(self.model, self.processing_class)
        return anchor

    def anchor_distances(self, states: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """
        Distance of hidden states to the anchor's, by `anchor_loss_type`.

        Args:
            states (`torch.Tensor` of shape `(num_points, hidden_size)`):
                Final hidden states at points of the anchor, float32.
            reference (`torch.Tensor` of shape `(num_points, hidden_size)`):
                The anchor's there, float32.

        Returns:
            `torch.Tensor` of shape `(num_points,)`: The distances, float32.
        """
        squared_error = (states - reference).pow(2)
        if self.anchor_args.anchor_loss_type == "mse":
            return squared_error.mean(dim=-1)
        if self.anchor_args.anchor_loss_type == "sum":
            return squared_error.sum(dim=-1)
        return squared_error.sum(dim=-1) / reference.pow(2).sum(dim=-1)

    def training_step(self, model, *args, **kwargs):
        anchor_term = 0.0
        if self.anchor is not None and self.accelerator.sync_gradients:  # once per optimizer step
            anchor_term = self._anchor_step(model)
        self._in_training_step = True
        try:
            return super().training_step(model, *args, **kwargs) + anchor_term
        finally:
            self._in_training_step = False

    def _anchor_step(self, model: torch.nn.Module) -> torch.Tensor:
        """
        Add the gradient of the anchor term to that of the batch, as one more micro-batch before the last: what its
        backward needs is freed before the last one's forward.
        """
        self._guard.check_step(self.model, self.anchor_args, self.anchor)
        self.optimizer.train()  # `Trainer` does so only afterwards; the weights of schedule-free optimizers depend on it
        if self._check_states_of_first_step:
            self._check_states_of_first_step = False
            with torch.no_grad(), self.anchor.reference_model(self.model):
                states = self._anchor_states(model, self._all_turns)
            with self.accelerator.autocast():
                self.anchor.check_states(states, self.model)
        # DDP decides in the forward whether the backward synchronizes: that of the batch does, for both
        is_ddp = isinstance(model, DistributedDataParallel)
        with model.no_sync() if is_ddp else contextlib.nullcontext():
            term, error = self._anchor_term(model)
            self._anchor_backward(term)
        self._drive_coef(error)
        return term.detach()

    def _anchor_term(self, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The anchor term of this step, and the mean relative error of the states that it is made of."""
        turn = self.state.global_step % len(self._turns)
        loss, cosine, errors = self._anchor_loss(model, [turn])
        if self._check_start:
            self._check_start = False
            self._warn_of_start(errors.max().item())
        term = self._anchor_coef * loss
        self._unlogged.append((loss.item(), cosine.item(), term.item()))
        check_is_finite("the anchor term", term.item())
        if term == 0 and loss > 0:
            raise FloatingPointError(
                f"Found an anchor term of 0 at an anchor loss of {loss.item():.1e}: `anchor_loss_coef` is "
                f"{self.anchor_args.anchor_loss_coef}, with which the term is too small for float32 and does nothing. Set a larger one."
            )
        return term, errors.mean()

    def _warn_of_start(self, error: float) -> None:
        """Say so where the model that is trained does not start as the aligned one."""
        with self.accelerator.autocast():
            tolerance = tolerance_of(numerics_of(self.model), vars(self.anchor.config))
        if error > tolerance:
            logger.warning(
                f"The adapter moves the anchors' states before its first step: found a relative error of {error:.1e}, expected at "
                f"most {tolerance:.0e}. The run does not start at the aligned model, and may not come back to it. Use an adapter "
                "that starts at zero (LoRA's `init_lora_weights=True`, FourierFT's `init_weights=True`); or, if the adapter is part "
                "of the aligned model, `anchor_reference='current'`."
            )

    def _drive_coef(self, error: torch.Tensor) -> None:
        """One step of dual ascent on log λ, for the constraint that the error is at most the target."""
        target, least = self.anchor_args.anchor_target_error, self.anchor_args.anchor_loss_coef
        if target is None:
            return
        error = self.accelerator.reduce(error, "mean").item()  # rounding may differ between processes, and λ must not
        risen = self._anchor_coef * math.exp(_DUAL_RATE * min(error / target - 1, 1))
        self._anchor_coef = min(max(risen, least), _MAX_RISE * least)

    def _anchor_backward(self, term: torch.Tensor) -> None:
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.gradient_state._set_sync_gradients(False)  # DeepSpeed would step after this backward
        try:
            with self._guard.anchor_step():
                self.accelerator.backward(term, **({"scale_wrt_gas": False} if is_deepspeed else {}))
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)

    def compute_loss(self, *args, **kwargs):
        if self.anchor is not None and torch.is_grad_enabled() and not self._in_training_step:
            raise RuntimeError(
                f"Found `compute_loss` called with gradients outside `{type(self).__name__}.training_step`, which adds the "
                "gradient of the anchor term: trained on this loss alone, the model would not be protected. Train with "
                "`train()`; a `training_step` of your own has to call `super().training_step`."
            )
        return super().compute_loss(*args, **kwargs)

    @property
    def _all_turns(self) -> range:
        return range(len(self._turns))

    def _anchor_states(self, model: nn.Module, turns: Sequence[int]) -> torch.Tensor:
        if self._anchor_batches is None:  # not before: FSDP and DeepSpeed place the model when training starts
            with self.accelerator.autocast():
                self._anchor_batches = lay_out_for_training(self.anchor, self.model, model, self._turns)
        unembedding = self._guard.unembedding
        return torch.cat([final_hidden_states(model, unembedding, self._anchor_batches[turn]) for turn in turns])

    def _anchor_loss(self, model: nn.Module, turns: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The anchor loss as some turns tell it, and their states' mean cosine and relative errors to the anchor's."""
        states = self._anchor_states(model, turns)
        reference = torch.cat([self._reference_states[self._turns[turn].points] for turn in turns])
        # Not the mean over the points of a turn: all points weigh the same over a cycle, where turns have not
        loss = self.anchor_distances(states, reference).sum() / len(self._reference_states)
        loss = loss * (len(self._turns) / len(turns))
        check_is_finite("an anchor loss", loss.item())
        found = states.detach()
        cosines, errors = torch.cosine_similarity(found, reference, dim=-1), relative_errors(found, reference)
        return loss, cosines.mean(), errors

    def _model_as_called(self) -> nn.Module:
        """The model for a forward outside a training step. DDP's would wait for other processes, which may not come."""
        return self.model_wrapped if self._is_placed_by_engine else self.model

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.anchor is not None:  # after the batches: ZeRO-3 traces these first
            with torch.no_grad(), self.accelerator.autocast():
                loss, cosine, _ = self._anchor_loss(self._model_as_called(), self._all_turns)
            output.metrics[f"{metric_key_prefix}_anchor_loss"] = loss.item()
            output.metrics[f"{metric_key_prefix}_anchor_cosine"] = cosine.item()
        return output

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._unlogged and ("loss" in logs or "train_loss" in logs):  # a callback may log something of its own
            means = (sum(values) / len(values) for values in zip(*self._unlogged, strict=True))
            logs["anchor_loss"], logs["anchor_cosine"], term = means
            if "loss" in logs:
                logs["task_loss"] = logs["loss"] - term
            if self.anchor_args.anchor_target_error is not None:
                logs["anchor_coef"] = self._anchor_coef
            self._unlogged.clear()
        super().log(logs, *args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # Under float16 a step whose gradients overflow is left out, and the loss scaled less
        if self.anchor is not None and norm is not None and not self.args.fp16:
            check_is_finite("a gradient norm", float(norm))
        return norm

    def _check_save(self) -> None:
        """What is saved as held is held, or it is an error."""
        self._guard.check_save(self.model, self.anchor_args, self.anchor)
        if self._anchor_batches is not None:  # a step was trained
            with self.accelerator.autocast():
                for turn, batch in zip(self._turns, self._anchor_batches, strict=True):
                    check_layout(self.anchor, self.model, self._model_as_called(), batch, turn.anchors)

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, *args: Any, **kwargs: Any):
        """
        Train, see [`~transformers.Trainer.train`]. A checkpoint is resumed with the anchor that it carries, and with the λ,
        the loss, the reference and the turns that it was trained with.

        Raises:
            ValueError: If the checkpoint carries no anchor, or another one than this trainer's; if it was trained with
                another λ, target error, loss, reference or `anchors_per_step`; if it is not whole; or if there is none. Or if the
                run has fewer steps than it takes for all anchors to have their turn.
            OSError: If another run is on in `output_dir`, or the weights or the report of an earlier run, or another anchor,
                lie there.
            KeyboardInterrupt: On Ctrl-C, after the running step or evaluation has ended and a checkpoint is saved. Where it was
                the last one, training ends as it would have.
        """
        output_dir = Path(self.args.output_dir)
        self._saved_files = self._best_step = None  # they are of the weights as they were
        self._unlogged.clear()
        self._anchor_coef = self.anchor_args.anchor_loss_coef
        check_holds_no_report(output_dir)
        check_holds_no_other_weights(output_dir, isinstance(self.model, PeftModel))
        if self.anchor is not None:
            check_holds_no_other_anchor(output_dir, self.anchor)
        with lock_folder(output_dir, self.args.should_save, all_are_here=True):
            if resume_from_checkpoint is not None and resume_from_checkpoint is not False:
                resume_from_checkpoint = self._resume(resume_from_checkpoint)
            # Under several processes a signal reaches each at another step, and stopping one would hang the others
            alone = self.accelerator.num_processes == 1
            with (
                self._on_interrupt if alone else contextlib.nullcontext(),
                self._guard.watch_optimizers() if self._guard is not None else contextlib.nullcontext(),
            ):
                output = super().train(resume_from_checkpoint, *args, **kwargs)
        if self._on_interrupt.stopping:
            raise KeyboardInterrupt
        return output

    def _resume(self, resume_from_checkpoint: str | os.PathLike | bool) -> str:
        """Check a checkpoint, or find the last one, and take over its anchor. Returns its folder."""

        def check() -> tuple[str, SafetyAnchor | None, float]:
            if resume_from_checkpoint is True:
                checkpoint = Path(find_last_checkpoint(self.args.output_dir))
            else:
                checkpoint = Path(resume_from_checkpoint)
                try:
                    check_checkpoint(checkpoint)
                except (OSError, ValueError) as error:
                    raise ValueError(f"The checkpoint {checkpoint} cannot be resumed: {error}") from error
            if self.anchor is None:
                check_settings(checkpoint, self.anchor_args)
                return str(checkpoint), None, self._anchor_coef
            saved = load_anchor(checkpoint, self.anchor, get_tokenizer(self.processing_class))
            check_settings(checkpoint, self.anchor_args)
            return str(checkpoint), saved, load_coef(checkpoint, self.anchor_args)

        checkpoint, saved, self._anchor_coef = self._on_main_process(check)
        if saved is not None:
            self._take_over(self.anchor if saved.config == self.anchor.config else saved)
            # The first run did; a model that was trained has moved since
            self._check_states_of_first_step = self._check_start = False
        return checkpoint

    def _determine_best_metric(self, *args, **kwargs) -> bool:
        # Under `save_strategy="best"` this alone says whether a checkpoint is saved
        return super()._determine_best_metric(*args, **kwargs) or self._on_interrupt.stopping

    def _load_best_model(self) -> None:
        super()._load_best_model()
        # The best step of `state` may be one that was not saved
        self._best_step = int(Path(self.state.best_model_checkpoint).name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-"))

    def _save_checkpoint(self, model, trial):
        # A checkpoint of this step may lie there: until the new one is whole, there is none
        checkpoint = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:
            (checkpoint / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """
        Save the model or adapter; beside it the anchor that it was trained with and a card; and last of all the run's
        record, which names their hashes: what a save that was cut off leaves is found out by it.

        Raises:
            ValueError: If the run was ended before all anchors had their turn: its checkpoints are there, to go on from.
            OSError: If the folder holds what would pass for this run's, or another run is on in it.
        """
        folder = Path(output_dir or self.args.output_dir)
        if folder.resolve() != Path(self.args.output_dir).resolve():
            check_holds_no_report(folder)  # here, before anything is written
        if self._guard is not None:
            self._check_save()
            if not (_internal_call and output_dir):  # a checkpoint is on the way
                of = "a run" if self._best_step is None else "the best model, after a run"
                self._guard.check_all_have_a_turn(self._num_trained_steps, of)
        check_holds_no_other_weights(folder, isinstance(self.model, PeftModel))
        if self.anchor is None:
            check_holds_no_anchor(folder)
        else:
            check_holds_no_other_anchor(folder, self.anchor)
        with lock_folder(folder, self.args.should_save):  # nobody has to save in all processes
            if self.args.should_save:
                keep_readme(folder)  # before PEFT writes to it
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                if self.anchor is not None:
                    self.anchor.save_pretrained(folder, overwrite=True)
                adapters = self.model.peft_config if isinstance(self.model, PeftModel) else ()
                files = hash_files(folder, subfolder_weights(adapters))
                if folder == Path(self.args.output_dir):
                    self._saved_files = files
                self._describe_run(folder, files)  # over the card that PEFT has written
