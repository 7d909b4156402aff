# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, broadcast_object_list
from datasets import Dataset, IterableDataset
from huggingface_hub import CommitInfo, HfApi
from peft import PeftModel
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import DataCollator, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames
from trl import SFTTrainer

from ..anchors.anchor_files import CONFIG_NAME
from ..anchors.bottleneck import PromptBatch, final_hidden_states, freeze_unembedding, get_unembedding
from ..anchors.prompts import as_messages, find_near_copies, get_tokenizer, resolve_prompts
from ..anchors.provenance import PAPER
from ..anchors.safety_anchor import SafetyAnchor
from .interruption import CheckpointOnInterrupt, find_last_checkpoint
from .run_record import make_record, write_record
from .sbr_config import SBRConfig


logger = get_logger(__name__)

# LoRA initializations that leave the base model, and the adapted one, as they are. The others (PiSSA, OLoRA, LoftQ, …)
# move part of the base weights into the adapter: with the adapter disabled the model is no longer the aligned one.
_NEUTRAL_LORA_INITS = (True, False, "gaussian", "eva", "orthogonal")


class SBRSFTTrainer(SFTTrainer):
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
        if anchor is not None and args.anchor_name_or_path is not None:
            raise ValueError("Found both the argument `anchor` and `anchor_name_or_path`. Give one anchor.")
        if args.push_to_hub and args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"Found `hub_strategy={args.hub_strategy.value}`, which publishes the optimizer's state and the training "
                "arguments. Expected 'end' or 'every_save'."
            )
        _check_rows(train_dataset)
        super().__init__(model, args, data_collator, train_dataset, *trainer_args, **trainer_kwargs)
        _check_rows(self.train_dataset)
        self.dataset_names = []
        self._on_interrupt = CheckpointOnInterrupt()
        self.add_callback(self._on_interrupt)
        self.anchor = None
        self._in_training_step = False
        if args.anchor_loss_coef == 0:
            _check_holds_no_anchor(Path(args.output_dir))
            logger.warning("`anchor_loss_coef` is 0: this run is plain fine-tuning and is NOT protected by SBR.")
            return

        self._check_supported()
        _keep_four_bit_weights_differentiable(self.model)
        tied = freeze_unembedding(self.model)
        if tied and not isinstance(self.model, PeftModel):
            logger.warning("The unembedding is frozen, and with it the input embeddings, which share its weight.")
        self._unembedding = get_unembedding(self.model)
        # FSDP and DeepSpeed place, and shard, the model when training starts: its states are checked then
        is_sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())  # when it was loaded
        self._is_placed_by_engine = self.is_fsdp_enabled or self.is_deepspeed_enabled or is_sharded
        self._check_states_of_first_step = self._is_placed_by_engine
        self.anchor = self._on_main_process(functools.partial(self._prepare_anchor, anchor))
        self._anchor_batch: PromptBatch | None = None
        self._reference_states = self.anchor.hidden_states.to(self.accelerator.device)
        self._warn_of_anchors_in_training_data()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the last [`~SBRSFTTrainer.train`] after a step, so that a checkpoint was left."""
        return self._on_interrupt.stopped

    def _check_supported(self) -> None:
        if isinstance(self.model, PeftModel):
            for config in self.model.peft_config.values():
                if config.is_prompt_learning:
                    raise ValueError(
                        f"Found the prompt-learning method {config.peft_type.value}: its virtual tokens change what "
                        "stands before the anchored token, and no weight of the model. Use LoRA or full fine-tuning."
                    )
                init = getattr(config, "init_lora_weights", True)
                if self.args.anchor_reference == "base" and init not in _NEUTRAL_LORA_INITS:
                    raise ValueError(
                        f"Found `init_lora_weights={init!r}`, which changes the base weights: with the adapter "
                        "disabled the model is not the aligned one. Set `anchor_reference='current'`, or use one of "
                        f"{_NEUTRAL_LORA_INITS}."
                    )
        if self.args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
            raise ValueError(
                f"Found `optim={self.args.optim.value}`, which changes the weights within a backward: the anchor term has "
                "one of its own. Use another optimizer, e.g. 'adamw_torch_fused'."
            )
        parallelism = self.accelerator.parallelism_config
        if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
            raise ValueError(
                "Found context or sequence parallelism, which splits the anchor prompts over processes. Use data "
                "parallelism (DDP, FSDP2, DeepSpeed) instead."
            )

    def _on_main_process(self, function: Callable[[], SafetyAnchor]) -> SafetyAnchor:
        """Run `function` in one process. The others wait for its result, and fail with it rather than hang."""
        result, error = None, None
        if self.accelerator.is_main_process:
            try:
                result = function()
            except Exception as caught:  # raised below, when the others know
                error = caught
        result, failure = broadcast_object_list([result, error and f"{type(error).__name__}: {error}"])
        if error is not None:
            raise error
        if failure is not None:
            raise ValueError(f"The main process could not prepare the safety anchor: {failure}")
        return result

    def _prepare_anchor(self, anchor: SafetyAnchor | None) -> SafetyAnchor:
        """Load or capture the anchor on the aligned model, before a checkpoint can be loaded over it."""
        args = self.args
        prompts = resolve_prompts(args.anchor_prompts)
        if anchor is None and args.anchor_name_or_path is not None:
            anchor = SafetyAnchor.from_pretrained(args.anchor_name_or_path, revision=args.anchor_revision)
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
        self.optimizer.train()  # `Trainer` does so only afterwards; the weights of schedule-free optimizers depend on it
        if self._check_states_of_first_step:
            self._check_states_of_first_step = False
            with torch.no_grad(), self.anchor.reference_model(self.model):
                states = self._anchor_states(model)
            with self.accelerator.autocast():
                self.anchor.check_states(states, self.model)
        term = self.args.anchor_loss_coef * self._anchor_loss(model, mode="train")
        is_ddp = isinstance(model, DistributedDataParallel)
        is_deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        self.accelerator.gradient_state._set_sync_gradients(False)  # DeepSpeed would step after this backward
        try:
            with model.no_sync() if is_ddp else contextlib.nullcontext():
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
                self._anchor_batch = self.anchor.lay_out(self.model, model)
        return final_hidden_states(model, self._unembedding, self._anchor_batch)

    def _anchor_loss(self, model: torch.nn.Module, mode: str) -> torch.Tensor:
        states = self._anchor_states(model)
        loss = self.anchor_distances(states).mean()
        cosine = torch.cosine_similarity(states.detach(), self._reference_states, dim=-1).mean()
        self._metrics[mode]["anchor_loss"].append(loss.item())
        self._metrics[mode]["anchor_cosine"].append(cosine.item())
        return loss

    def evaluation_loop(self, *args, **kwargs):
        for name in ("anchor_loss", "anchor_cosine"):
            self._metrics["eval"].pop(name, None)  # `predict` leaves them behind
        return super().evaluation_loop(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        anchor_losses = self._metrics["train"].get("anchor_loss")
        if "loss" in logs and anchor_losses:
            logs["task_loss"] = logs["loss"] - self.args.anchor_loss_coef * sum(anchor_losses) / len(anchor_losses)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any):
        """
        Train, see [`~transformers.Trainer.train`]. A checkpoint is resumed with the anchor that it carries.

        Raises:
            ValueError: If the checkpoint carries no anchor, or another one than this trainer's; or if there is none.
            FileExistsError: If the report of an earlier run's evaluation lies in `output_dir`.
            KeyboardInterrupt: On Ctrl-C, after the running step has ended and a checkpoint is saved.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = find_last_checkpoint(self.args.output_dir)
        _check_holds_no_report(Path(self.args.output_dir))
        if isinstance(resume_from_checkpoint, str) and self.anchor is not None:
            self._resume_anchor(resume_from_checkpoint)
        # Under several processes a signal reaches each at another step, and stopping one would hang the others
        alone = self.accelerator.num_processes == 1
        with self._on_interrupt if alone else contextlib.nullcontext():
            output = super().train(resume_from_checkpoint, **kwargs)
        if self._on_interrupt.requested:
            raise KeyboardInterrupt
        return output

    def _resume_anchor(self, checkpoint: str) -> None:
        try:
            saved = SafetyAnchor.from_pretrained(checkpoint)
        except FileNotFoundError as error:
            raise ValueError(
                f"The checkpoint {checkpoint} carries no safety anchor: it was trained without protection. Resume it "
                "with `anchor_loss_coef=0`, or start from the aligned model."
            ) from error
        if saved.input_ids != self.anchor.input_ids:
            difference = f"its prompts are {saved.questions}, this run's {self.anchor.questions}"
        else:
            error = self.anchor.relative_errors(saved.hidden_states).max().item()
            tolerance = self.anchor.tolerance_to(saved)
            if error <= tolerance:
                if saved.config.tensor_sha256 != self.anchor.config.tensor_sha256:
                    self.anchor = saved
                self._reference_states = saved.hidden_states.to(self.accelerator.device)
                self._check_states_of_first_step = False  # the first run did; a fully trained model has moved since
                return
            difference = f"their states differ by {error:.2e} relative, expected at most {tolerance:.0e}"
        raise ValueError(
            f"The checkpoint {checkpoint} was trained with another safety anchor: {difference}. Resume with the aligned "
            f"model `{saved.config.model_name_or_path}` and the checkpoint's anchor (`anchor_name_or_path`)."
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model or adapter, and beside it the anchor that it was trained with, the run's record and a card."""
        folder = Path(output_dir or self.args.output_dir)
        if self.anchor is not None and self.args.should_save:
            self.anchor.save_pretrained(folder, overwrite=True)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            self._describe_run(folder)  # over the card that PEFT has written

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Write the card, and the record that it is made from, to `output_dir`. The notes of a person in the card are kept.

        Args:
            model_name (`str`, *optional*):
                Not used: the card is named after the repository, or the folder.
            dataset_name (`str`, *optional*):
                Dataset trained on, named in this and all later cards if it is one of the Hub's.
            tags (`str` or `list[str]`, *optional*):
                Further tags.
        """
        if dataset_name is not None and dataset_name not in self.dataset_names:
            self.dataset_names.append(dataset_name)
        if self.is_world_process_zero():
            self._describe_run(Path(self.args.output_dir), tags)

    def _describe_run(self, folder: Path, tags: str | list[str] | None = None) -> None:
        from ..hub.folder import write_card

        folder.mkdir(parents=True, exist_ok=True)
        record = make_record(self, tags)
        write_record(record, folder)
        repo_id = (
            self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        )  # also of `.`
        write_card(folder, repo_id, record, self.anchor and self.anchor.config)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> "CommitInfo | None":
        """
        Push adapter or model, tokenizer, anchor, card and the report of its evaluation in one commit: never training
        arguments, checkpoints or data. See [`~transformers.Trainer.push_to_hub`] for the arguments.

        Raises:
            OSError: If the push fails; it says what to run to finish it. All files lie in `output_dir` by then.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        push = functools.partial(
            self._push, self.args.output_dir, commit_message or "End of training", token, revision, private
        )
        return push() if blocking else HfApi().run_as_future(push)

    def _push(
        self,
        folder: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        from ..hub.folder import push_folder

        return push_folder(
            Path(folder),
            self.hub_model_id,
            commit_message,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push what is published of a checkpoint; a push that fails costs a warning, not the training."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._push(checkpoint_folder, f"Training in progress, step {self.state.global_step}")
        except (OSError, ValueError) as error:
            logger.warning(f"{error}\nThe training goes on.")


def _keep_four_bit_weights_differentiable(model: torch.nn.Module) -> None:
    """
    bitsandbytes (0.50) packs 4-bit weights for inference on a CPU with AVX512-BF16 the first time that a forward needs
    no gradient. Packed weights have no backward: what flows through them later is lost, without an error.
    """
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        layer.state_dict()  # unpacks


def _check_holds_no_anchor(output_dir: Path) -> None:
    """An unprotected model must not come to lie beside the anchor of an earlier run, as if it were protected."""
    for config in [output_dir / CONFIG_NAME, *output_dir.glob(f"checkpoint-*/{CONFIG_NAME}")]:
        if config.exists():
            raise FileExistsError(
                f"Found the safety anchor of a protected run in {config.parent}, and `anchor_loss_coef` is 0: what this "
                "run saves there would look protected. Choose another `output_dir`."
            )


def _check_holds_no_report(output_dir: Path) -> None:
    """The figures of an earlier model must not come to lie beside another one."""
    from ..hub.cards import REPORT_NAME

    if (output_dir / REPORT_NAME).exists():
        raise FileExistsError(
            f"Found the evaluation of an earlier run, `{REPORT_NAME}`, in {output_dir}: it would stand in the card of the "
            "model that this run saves there. Move it elsewhere, or choose another `output_dir`."
        )


def _check_rows(dataset: Dataset | IterableDataset | None) -> None:
    is_empty_stream = isinstance(dataset, IterableDataset) and next(iter(dataset), None) is None
    if is_empty_stream or (isinstance(dataset, Dataset) and len(dataset) == 0):
        raise ValueError(
            "The training dataset has no usable row: it is empty, or no row has a token to learn within `max_length`. "
            "Check the file, the split and `max_length`."
        )
