# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import DataCollator, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from trl import SFTTrainer

from ..anchors.bottleneck import PromptBatch, final_hidden_states, freeze_unembedding
from ..anchors.clock import CLOCK, pin_clock
from ..anchors.prompts import as_messages, find_near_copies, get_chat_template, get_tokenizer, resolve_prompts
from ..anchors.provenance import PAPER
from ..anchors.safety_anchor import SafetyAnchor
from ..anchors.unembedding import has_sharded_weights
from .guard import BottleneckGuard, check_is_finite
from .interruption import CheckpointOnInterrupt, check_checkpoint, find_last_checkpoint
from .layout import check_layout, lay_out_for_training
from .output_folder import (
    check_holds_no_anchor,
    check_holds_no_other_weights,
    check_holds_no_report,
    check_is_free,
    lock_folder,
)
from .preconditions import check_kind, check_rows, check_setup, keep_four_bit_weights_differentiable
from .publishing import PublishingMixin
from .rendering import find_rendering, with_rendering
from .resuming import check_settings, load_anchor
from .run_record import hash_files, subfolder_weights
from .sbr_config import SBRConfig


logger = get_logger(__name__)


class SBRSFTTrainer(PublishingMixin, SFTTrainer):
    r"""
    Trainer for supervised fine-tuning under Safety Bottleneck Regularization (SBR).

    It adds one term to the loss of [`~trl.SFTTrainer`] and inherits the rest:

    $$ L = L_\mathrm{SFT} + \lambda \cdot \frac{1}{K} \sum_{k=1}^{K} d(h_\theta(x_k), h_\mathrm{ref}(x_k)) $$

    where `h` is the input of the unembedding at the last token of anchor prompt `x_k` (see [`SafetyAnchor`]). The term
    enters once per optimizer step, so its gradient depends on the model, the anchor and λ alone. The unembedding is
    not trained: full fine-tuning freezes it, and a PEFT configuration that trains it is an error.

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The safety-aligned model to fine-tune, see [`~trl.SFTTrainer`].
        args ([`SBRConfig`], *optional*):
            Training arguments. [`~trl.SFTConfig`] and [`~transformers.TrainingArguments`] are converted.
        data_collator ([`~transformers.DataCollator`], *optional*):
            See [`~trl.SFTTrainer`].
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Dataset to fine-tune on, which nobody has to trust.
        *trainer_args, **trainer_kwargs:
            All other arguments of [`~trl.SFTTrainer`].
        anchor ([`SafetyAnchor`], *optional*):
            The anchor. Defaults to the one that `args` names, or else is captured on `model` before training.

    Attributes:
        anchor ([`SafetyAnchor`] or `None`):
            The anchor trained with; `None` when `anchor_loss_coef` is 0.
        dataset_names (`list[str]`):
            Datasets of the Hub that the card names: the rows do not say where they come from.

    Example:

    ```python
    >>> trainer = SBRSFTTrainer(
    ...     model="Qwen/Qwen2.5-7B-Instruct",
    ...     args=SBRConfig(output_dir="qwen-sbr"),
    ...     train_dataset=load_dataset("org/untrusted", split="train"),
    ...     peft_config=LoraConfig(r=16, target_modules="all-linear"),
    ... )
    >>> trainer.train()
    ```
    """

    _tag_names = ["trl", "sft", "sbr"]
    _name = "SBR"
    _paper = PAPER

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",
        args: SBRConfig | TrainingArguments | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | IterableDataset | None = None,
        *trainer_args: Any,
        anchor: SafetyAnchor | None = None,
        **trainer_kwargs: Any,
    ):
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = SBRConfig(f"{name.split('/')[-1]}-SBR")
        args = SBRConfig.from_training_arguments(args)
        if args.anchor_loss_coef != 0:
            check_kind(model, args, (*trainer_args, *trainer_kwargs.values()))
        if anchor is not None and args.anchor_name_or_path is not None:
            raise ValueError("Found both the argument `anchor` and `anchor_name_or_path`. Give one anchor.")
        if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"Found `hub_strategy={args.hub_strategy.value}`, which publishes the optimizer's state and the training "
                "arguments. Expected 'end' or 'every_save'."
            )
        check_rows(train_dataset)
        check_is_free(Path(args.output_dir), args.should_save)
        if anchor is None and args.anchor_name_or_path is not None and args.anchor_loss_coef > 0:
            anchor = self._on_main_process(
                lambda: SafetyAnchor.from_pretrained(args.anchor_name_or_path, revision=args.anchor_revision)
            )
        self._given_anchor, self._rendering = anchor, None
        super().__init__(model, args, data_collator, train_dataset, *trainer_args, **trainer_kwargs)
        check_rows(self.train_dataset)
        self.dataset_names = []
        self._on_interrupt = CheckpointOnInterrupt()
        self.add_callback(self._on_interrupt)
        self.anchor, self._guard = None, None
        self._saved_files = None  # of `output_dir`, with their hashes
        self._in_training_step = False
        if args.anchor_loss_coef == 0:
            check_holds_no_anchor(Path(args.output_dir))
            logger.warning("`anchor_loss_coef` is 0: this run is plain fine-tuning and is NOT protected by SBR.")
            return

        check_setup(self.model, args, self.accelerator.parallelism_config)
        keep_four_bit_weights_differentiable(self.model)
        tied = freeze_unembedding(self.model)
        if tied and not isinstance(self.model, PeftModel):
            logger.warning("The unembedding is frozen, and with it the input embeddings, which share its weight.")
        # FSDP and DeepSpeed place, and shard, the model when training starts: its states are checked then
        is_sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())  # when it was loaded
        self._is_placed_by_engine = self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded
        self._check_states_of_first_step = self._is_placed_by_engine
        self._guard = BottleneckGuard(self.model, args, self._is_placed_by_engine)
        self.add_callback(self._guard)
        self._render_rows_as_anchors(self.processing_class, args)  # where no dataset was prepared
        self._hold(self._on_main_process(functools.partial(self._prepare_anchor, anchor)))
        if has_sharded_weights(self._guard.unembedding):  # gathering it takes all processes
            self.anchor.check_unembedding(self.model)
        self._anchor_batch: PromptBatch | None = None
        self._warn_of_anchors_in_training_data()

    def _hold(self, anchor: SafetyAnchor) -> None:
        """Train with this anchor from now on."""
        self.anchor = anchor
        self._reference_states = anchor.hidden_states.to(self.accelerator.device, copy=True)
        self._guard.hold(anchor)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last [`~SBRSFTTrainer.train`] after a step, so that a checkpoint was left."""
        return self._on_interrupt.stopped

    def _prepare_dataset(self, dataset, processing_class, args, *others, **kwargs):
        rendering = self._render_rows_as_anchors(processing_class, args)
        return super()._prepare_dataset(with_rendering(dataset, rendering), processing_class, args, *others, **kwargs)

    def _render_rows_as_anchors(
        self, processing_class: PreTrainedTokenizerBase | ProcessorMixin, args: SBRConfig
    ) -> dict[str, Any]:
        """The variables of the chat template, found out once. The time among them is told to TRL's template too."""
        if self._rendering is None:
            self._rendering = self._on_main_process(
                functools.partial(find_rendering, args, self._given_anchor, processing_class)
            )
            if CLOCK in self._rendering:
                template = self.chat_template or get_chat_template(processing_class)
                self.chat_template = pin_clock(template, self._rendering[CLOCK])
        return self._rendering

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

    def _prepare_anchor(self, anchor: SafetyAnchor | None) -> SafetyAnchor:
        """Load or capture the anchor on the aligned model, before a checkpoint can be loaded over it."""
        args = self.args
        prompts = resolve_prompts(args.anchor_prompts)
        if anchor is not None and prompts is not None and [as_messages(p) for p in prompts] != anchor.prompts:
            raise ValueError(
                f"The anchor was captured on other prompts than `anchor_prompts`: expected {prompts}, found "
                f"{anchor.questions}. Capture an anchor on these prompts, or leave them out."
            )
        if anchor is not None and anchor.config.reference != args.anchor_reference:
            raise ValueError(
                f"The anchor was captured on the reference {anchor.config.reference!r}, found "
                f"`anchor_reference={args.anchor_reference!r}`. Set it to the anchor's."
            )
        if self._is_placed_by_engine:
            if anchor is None:
                raise ValueError(
                    "Found no anchor under FSDP, DeepSpeed or tensor parallelism, which shard the model: one process cannot "
                    "capture on it. Capture it before, with `trl-sbr anchor`, and set `anchor_name_or_path`."
                )
            anchor.check_compatible(self.model, self.processing_class)
            if not has_sharded_weights(self._guard.unembedding):
                anchor.check_unembedding(self.model)
            if args.anchor_require_refusal:
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
                    prompts,
                    chat_template_kwargs=self._rendering,
                    require_refusal=args.anchor_require_refusal,
                    reference=args.anchor_reference,
                )
            anchor.verify_reference(self.model, self.processing_class)
            if args.anchor_require_refusal:
                anchor.check_refusals(self.model, self.processing_class)
        return anchor

    def _warn_of_anchors_in_training_data(self) -> None:
        has_rows = isinstance(self.train_dataset, Dataset) and "input_ids" in self.train_dataset.column_names
        if not has_rows or not self.accelerator.is_main_process:
            return
        tokenizer = get_tokenizer(self.processing_class)
        texts = (tokenizer.decode(ids) for ids in self.train_dataset["input_ids"])
        for prompt, count in find_near_copies(self.anchor.questions, texts).items():
            logger.warning(
                f"The anchor prompt {prompt!r}, or a near copy, stands in {count} training rows: its loss and the "
                "anchor's pull in different directions. Remove the rows, or choose another anchor."
            )

    def anchor_distances(self, states: torch.Tensor) -> torch.Tensor:
        """
        Distance of hidden states to the anchor's, by `anchor_loss_type`.

        Args:
            states (`torch.Tensor` of shape `(num_anchors, hidden_size)`):
                Final hidden states on the anchor prompts, float32.

        Returns:
            `torch.Tensor` of shape `(num_anchors,)`: The distances, float32.
        """
        squared_error = (states - self._reference_states).pow(2)
        if self.args.anchor_loss_type == "mse":
            return squared_error.mean(dim=-1)
        if self.args.anchor_loss_type == "sum":
            return squared_error.sum(dim=-1)
        return squared_error.sum(dim=-1) / self._reference_states.pow(2).sum(dim=-1)

    def training_step(self, model, inputs, num_items_in_batch=None):
        anchor_term = 0.0
        if self.anchor is not None and self.accelerator.sync_gradients:  # once per optimizer step
            anchor_term = self._anchor_step(model)
        self._in_training_step = True
        try:
            return super().training_step(model, inputs, num_items_in_batch) + anchor_term
        finally:
            self._in_training_step = False

    def _anchor_step(self, model: torch.nn.Module) -> torch.Tensor:
        """
        Add the gradient of the anchor term to that of the batch, as one more micro-batch before the last: what its
        backward needs is freed before the last one's forward.
        """
        self._guard.check_step(self.model, self.args, self.anchor)
        self.optimizer.train()  # `Trainer` does so only afterwards; the weights of schedule-free optimizers depend on it
        if self._check_states_of_first_step:
            self._check_states_of_first_step = False
            with torch.no_grad(), self.anchor.reference_model(self.model):
                states = self._anchor_states(model)
            with self.accelerator.autocast():
                self.anchor.check_states(states, self.model)
        loss = self._anchor_loss(model, mode="train")
        term = self.args.anchor_loss_coef * loss
        check_is_finite("the anchor term", term.item())
        if term == 0 and loss > 0:
            raise FloatingPointError(
                f"Found an anchor term of 0 at an anchor loss of {loss.item():.1e}: `anchor_loss_coef` is "
                f"{self.args.anchor_loss_coef}, with which the term is too small for float32 and does nothing. Set a larger one."
            )
        is_ddp = isinstance(model, DistributedDataParallel)
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.gradient_state._set_sync_gradients(False)  # DeepSpeed would step after this backward
        try:
            with self._guard.anchor_step(), model.no_sync() if is_ddp else contextlib.nullcontext():
                self.accelerator.backward(term, **({"scale_wrt_gas": False} if is_deepspeed else {}))
        finally:
            self.accelerator.gradient_state._set_sync_gradients(True)
        return term.detach()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.anchor is not None and torch.is_grad_enabled() and not self._in_training_step:
            raise RuntimeError(
                "Found `compute_loss` called with gradients outside `SBRSFTTrainer.training_step`, which adds the gradient "
                "of the anchor term: trained on this loss alone, the model would not be protected. Train with `train()`; "
                "a `training_step` of your own has to call `super().training_step`."
            )
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.anchor is not None and not self._in_training_step and "anchor_loss" not in self._metrics["eval"]:
            # Once: the weights stay as they are during an evaluation. And after the batch: ZeRO-3 traces that first
            self._anchor_loss(model, mode="eval")
        return result

    def _anchor_states(self, model: torch.nn.Module) -> torch.Tensor:
        if self._anchor_batch is None:  # not before: FSDP and DeepSpeed place the model when training starts
            with self.accelerator.autocast():
                self._anchor_batch = lay_out_for_training(self.anchor, self.model, model)
        return final_hidden_states(model, self._guard.unembedding, self._anchor_batch)

    def _anchor_loss(self, model: torch.nn.Module, mode: str) -> torch.Tensor:
        states = self._anchor_states(model)
        loss = self.anchor_distances(states).mean()
        cosine = torch.cosine_similarity(states.detach(), self._reference_states, dim=-1).mean()
        check_is_finite("an anchor loss", loss.item())
        self._metrics[mode]["anchor_loss"].append(loss.item())
        self._metrics[mode]["anchor_cosine"].append(cosine.item())
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        # Under float16 a step whose gradients overflow is left out, and the loss scaled less
        if self.anchor is not None and norm is not None and not self.args.fp16:
            check_is_finite("a gradient norm", float(norm))
        return norm

    def _check_save(self) -> None:
        """What is saved as held is held, or it is an error."""
        self._guard.check_save(self.model, self.args, self.anchor)
        if self._anchor_batch is not None:  # a step was trained
            # DDP would wait for other processes, and nobody has to save in all of them
            model = self.model_wrapped if self._is_placed_by_engine else self.model
            with self.accelerator.autocast():
                check_layout(self.anchor, self.model, model, self._anchor_batch)

    def evaluation_loop(self, *args, **kwargs):
        for name in ("anchor_loss", "anchor_cosine"):
            self._metrics["eval"].pop(name, None)  # `predict` leaves them behind
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        anchor_losses = self._metrics["train"].get("anchor_loss")
        if "loss" in logs and anchor_losses:
            logs["task_loss"] = logs["loss"] - self.args.anchor_loss_coef * sum(anchor_losses) / len(anchor_losses)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | os.PathLike | bool | None = None, **kwargs: Any):
        """
        Train, see [`~transformers.Trainer.train`]. A checkpoint is resumed with the anchor that it carries, and with the λ,
        the loss and the reference that it was trained with.

        Raises:
            ValueError: If the checkpoint carries no anchor, or another one than this trainer's; if it was trained with
                another λ, loss or reference; if it is not whole; or if there is none.
            OSError: If another run is on in `output_dir`, or the weights or the report of an earlier run lie there.
            KeyboardInterrupt: On Ctrl-C, after the running step has ended and a checkpoint is saved.
        """
        output_dir = Path(self.args.output_dir)
        self._saved_files = None  # they are of the weights as they were
        check_holds_no_report(output_dir)
        check_holds_no_other_weights(output_dir, isinstance(self.model, PeftModel))
        with lock_folder(output_dir, self.args.should_save, all_are_here=True):
            if resume_from_checkpoint is not None and resume_from_checkpoint is not False:
                resume_from_checkpoint = self._resume(resume_from_checkpoint)
            # Under several processes a signal reaches each at another step, and stopping one would hang the others
            alone = self.accelerator.num_processes == 1
            with self._on_interrupt if alone else contextlib.nullcontext():
                output = super().train(resume_from_checkpoint, **kwargs)
        if self._on_interrupt.requested:
            raise KeyboardInterrupt
        return output

    def _resume(self, resume_from_checkpoint: str | os.PathLike | bool) -> str:
        """Check a checkpoint, or find the last one, and take over its anchor. Returns its folder."""

        def check() -> tuple[str, SafetyAnchor | None]:
            if resume_from_checkpoint is True:
                checkpoint = Path(find_last_checkpoint(self.args.output_dir))
            else:
                checkpoint = Path(resume_from_checkpoint)
                try:
                    check_checkpoint(checkpoint)
                except (OSError, ValueError) as error:
                    raise ValueError(f"The checkpoint {checkpoint} cannot be resumed: {error}") from error
            if self.anchor is None:
                check_settings(checkpoint, self.args)
                return str(checkpoint), None
            saved = load_anchor(checkpoint, self.anchor, get_tokenizer(self.processing_class))
            check_settings(checkpoint, self.args)
            return str(checkpoint), saved

        checkpoint, saved = self._on_main_process(check)
        if saved is not None:
            self._hold(self.anchor if saved.config == self.anchor.config else saved)
            self._check_states_of_first_step = False  # the first run did; a fully trained model has moved since
        return checkpoint

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
            OSError: If the folder holds what would pass for this run's, or another run is on in it.
        """
        folder = Path(output_dir or self.args.output_dir)
        if self._guard is not None:
            self._check_save()
        check_holds_no_other_weights(folder, isinstance(self.model, PeftModel))
        if self.anchor is None:
            check_holds_no_anchor(folder)
        with lock_folder(folder, self.args.should_save):  # nobody has to save in all processes
            super().save_model(output_dir, _internal_call)
            if self.args.should_save:
                if self.anchor is not None:
                    self.anchor.save_pretrained(folder, overwrite=True)
                adapters = self.model.peft_config if isinstance(self.model, PeftModel) else ()
                files = hash_files(folder, subfolder_weights(adapters))
                if folder == Path(self.args.output_dir):
                    self._saved_files = files
                self._describe_run(folder, files)  # over the card that PEFT has written
