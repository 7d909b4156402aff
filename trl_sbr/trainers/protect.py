# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The anchor term in a trainer that somebody else has built."""

import os

from peft import PeftModel
from transformers import PreTrainedModel, Trainer

from ..anchors.bottleneck import get_unembedding
from ..anchors.safety_anchor import SafetyAnchor
from .anchor_arguments import AnchorArguments
from .anchor_mixin import SafetyAnchorMixin


class _ProtectedTrainer(SafetyAnchorMixin):
    """What stands before the class of a protected trainer."""

    def training_step(self, *args, **kwargs):
        self._reached_trainer = False
        loss = super().training_step(*args, **kwargs)
        if self.anchor is not None and not self._reached_trainer:
            raise RuntimeError(
                f"Found that the `training_step` of this trainer (`{type(self).__name__}`) does not come to that of `Trainer`: nobody "
                "can say what becomes of the anchor term's gradient there. Let it call `super().training_step`."
            )
        return loss


class _JustBeforeTrainer(Trainer):
    """What stands last but [`~transformers.Trainer`]: that a step comes here shows that all classes before pass it on."""

    _tag_names = []  # of one that is not TRL's

    def training_step(self, *args, **kwargs):
        self._reached_trainer = True
        return super().training_step(*args, **kwargs)


def protect(
    trainer: Trainer,
    anchor: SafetyAnchor | str | os.PathLike,
    *,
    coef: float = 50.0,
    target_error: float | None = None,
    loss_type: str = "mse",
    reference: str = "base",
    require_refusal: bool = True,
    revision: str | None = None,
    anchors_per_step: int | None = None,
) -> Trainer:
    """
    Hold a safety anchor in any [`~transformers.Trainer`]: TRL's, axolotl's, LLaMA-Factory's, your own. The model's final
    hidden states on the anchor prompts are held as in [`SBRSFTTrainer`], with all of its checks. Checkpoints and what is saved
    carry the anchor, a card and the run's record, and these are what is pushed; Ctrl-C leaves a checkpoint.

    Call it when the trainer is built, and before it trains or has an optimizer: the unembedding is frozen here. Errors and
    records name the settings as [`AnchorArguments`] does. The training rows are left as they are: render them with the
    `chat_template_kwargs` that the anchor was captured with.

    Args:
        trainer ([`~transformers.Trainer`]):
            The trainer. It has the aligned model, and its tokenizer or processor as `processing_class`.
        anchor ([`SafetyAnchor`], `str` or `os.PathLike`):
            The anchor, captured on that model, or the folder or Hub repository that it lies in.
        coef (`float`, *optional*, defaults to `50.0`):
            Weight of the anchor loss, λ in the [paper](https://huggingface.co/papers/2605.05995).
        target_error (`float`, *optional*):
            Mean relative error of the anchors' states that is allowed: while it is larger, λ rises, see [`AnchorArguments`].
        loss_type (`str`, *optional*, defaults to `"mse"`):
            Distance to the reference states: `"mse"`, `"sum"` or `"relative"`, see [`AnchorArguments`].
        reference (`str`, *optional*, defaults to `"base"`):
            Which model is the aligned one when the model is a [`~peft.PeftModel`]: `"base"` or `"current"`. It must be that of
            the anchor.
        require_refusal (`bool`, *optional*, defaults to `True`):
            Whether the aligned model must refuse every anchor prompt.
        revision (`str`, *optional*):
            Branch, tag or commit of the anchor's Hub repository.
        anchors_per_step (`int`, *optional*):
            Number of anchors, taken in turn, that an optimizer step is trained on at most. Defaults to all.

    Returns:
        [`~transformers.Trainer`]: The same trainer, of a class derived from its own and from [`SafetyAnchorMixin`].

    Raises:
        TypeError: If it is no [`~transformers.Trainer`].
        ValueError: If the anchor is not of this model, or cannot be held in this trainer; the error says why.

    Example:

    ```python
    >>> trainer = protect(Trainer(model, args, train_dataset=rows, processing_class=tokenizer), "my-anchor")
    >>> trainer.train()
    >>> trainer.save_model()
    ```
    """
    is_artifact = isinstance(anchor, SafetyAnchor)
    settings = AnchorArguments(
        anchor_name_or_path=None if is_artifact else os.fspath(anchor),
        anchor_revision=revision,
        anchor_reference=reference,
        anchor_require_refusal=require_refusal,
        anchor_loss_coef=coef,
        anchor_target_error=target_error,
        anchor_loss_type=loss_type,
        anchors_per_step=anchors_per_step,
    )
    _check_can_be_protected(trainer, settings)
    # A class, and no methods put on the instance: the trainer's own overrides stand between the mixin's and `Trainer`'s, as in
    # `SBRSFTTrainer`. So do those that somebody has put on the instance (Unsloth: `train`), where they would go round the mixin's
    own, callbacks = type(trainer), list(trainer.callback_handler.callbacks)
    on_instance = {name: value for name, value in vars(trainer).items() if hasattr(_ProtectedTrainer, name)}
    bases = [own] if own is not Trainer else []
    if on_instance:
        bases = [type(own.__name__, (own,), {name: staticmethod(value) for name, value in on_instance.items()})]
    trainer.__class__ = type(f"Protected{own.__name__}", (_ProtectedTrainer, *bases, _JustBeforeTrainer), {})
    for name in on_instance:
        delattr(trainer, name)
    try:
        anchor = trainer._find_anchor(trainer.model, trainer.args, settings, anchor if is_artifact else None)
        trainer._hold_anchor(settings, anchor)
    except BaseException:  # another anchor may be tried
        trainer.__class__, trainer.callback_handler.callbacks = own, callbacks
        vars(trainer).update(on_instance)
        raise
    return trainer


def _check_can_be_protected(trainer: Trainer, settings: AnchorArguments) -> None:
    if not isinstance(trainer, Trainer):
        raise TypeError(f"Expected a `transformers.Trainer`, found `{type(trainer).__name__}`.")
    if isinstance(trainer, SafetyAnchorMixin):
        raise ValueError(
            f"This trainer (`{type(trainer).__name__}`) holds an anchor already. Build another one for another anchor."
        )
    if settings.anchor_loss_coef == 0:
        raise ValueError("Found `coef=0`, which protects nothing. Leave `protect` out for plain fine-tuning.")
    if trainer.is_in_train:
        raise ValueError(
            "Found a trainer that is training: its first steps had no anchor. Protect it before `train()`."
        )
    if trainer.model_init is not None:
        raise ValueError(
            "Found `model_init`, with which the trainer makes another model when it trains. Give it the aligned model itself."
        )
    if not isinstance(trainer.model, PreTrainedModel | PeftModel):
        raise ValueError(
            f"Expected a causal language model of transformers, or one with an adapter of PEFT, found "
            f"`{type(trainer.model).__name__}`."
        )
    if trainer.processing_class is None:
        raise ValueError(
            "Found no tokenizer in the trainer, with which the anchor prompts are checked. Build it with `processing_class=tokenizer`."
        )
    _check_optimizer(trainer)


def _check_optimizer(trainer: Trainer) -> None:
    if trainer.optimizer is None:
        return
    held = list(get_unembedding(trainer.model).parameters())
    optimized = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    if any(parameter.requires_grad or id(parameter) in optimized for parameter in held):
        raise ValueError(
            "Found an optimizer that was made before the unembedding was frozen. Protect the trainer before it has one, or freeze "
            "the unembedding first, with `model.get_output_embeddings().requires_grad_(False)`, and leave it out of the optimizer."
        )
