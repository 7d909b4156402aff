# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a model, its adapter, the settings and the rows must be like before anything is held."""

from collections.abc import Iterable
from typing import Any

from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.training_args import OptimizerNames
from transformers.utils import logging

from ..anchors.openers import are_default, resolve_openers
from ..anchors.prompts import Messages, cross_system_prompts, find_near_copies, resolve_prompts
from ..anchors.safety_anchor import SafetyAnchor
from ..anchors.supported import check_adapter_is_supported, check_model_is_supported, check_model_name_is_supported
from .anchor_arguments import AnchorArguments


logger = logging.get_logger(__name__)

# LoRA initializations that leave the base model, and the adapted one, as they are. The others (PiSSA, OLoRA, LoftQ, …)
# move part of the base weights into the adapter: with the adapter disabled the model is no longer the aligned one.
_NEUTRAL_LORA_INITS = (True, False, "gaussian", "eva", "orthogonal")


def check_kind(model: Any, args: TrainingArguments, others: tuple) -> None:
    """Models and adapters that cannot be held, before TRL stumbles over them. `others` may hold an adapter's configuration."""
    if isinstance(model, str):
        revision = (args.model_init_kwargs or {}).get("revision")
        check_model_name_is_supported(model, revision=revision, trust_remote_code=args.trust_remote_code)
    else:
        check_model_is_supported(model)
    for config in others:
        if isinstance(config, PeftConfig):
            check_adapter_is_supported(config)


def check_is_as_asked(anchor: SafetyAnchor, settings: AnchorArguments) -> None:
    """
    An anchor that was given holds what the settings of a capture ask for, where they are set.

    Raises:
        ValueError: If it holds something else.
    """
    if anchor.config.reference != settings.anchor_reference:
        raise ValueError(
            f"The anchor was captured on the reference {anchor.config.reference!r}, found "
            f"`anchor_reference={settings.anchor_reference!r}`. Set it to the anchor's."
        )
    prompts, openers = resolve_prompts(settings.anchor_prompts), anchor.config.openers
    if prompts is not None:
        plain = [prompt for prompt, opener in zip(anchor.prompts, openers, strict=True) if not opener]
        crossed = cross_system_prompts(prompts, settings.anchor_system_prompts)
        if crossed != plain:
            raise ValueError(
                "The anchor was captured on other prompts than `anchor_prompts` and `anchor_system_prompts`: expected "
                f"{_describe(crossed)}, found {_describe(plain)}. Capture an anchor on these, or leave them out."
            )
    tokens, held = anchor.config.refusal_tokens, set(openers) - {""}
    asked_openers = set(resolve_openers(settings.anchor_openers)) or held
    if are_default(settings.anchor_openers) and set() < held < asked_openers:
        # Those behind which the model refuses, or fewer: the anchor does not say
        logger.warning(f"Of the default openers the anchor does not hold {sorted(asked_openers - held)}.")
        asked_openers = held
    found = {"anchor_refusal_tokens": tokens, "anchor_openers": sorted(held)}
    asked = {
        "anchor_refusal_tokens": tokens if settings.anchor_refusal_tokens is None else settings.anchor_refusal_tokens,
        "anchor_openers": sorted(asked_openers),
    }
    if settings.anchor_system_prompts:
        found["anchor_system_prompts"] = _system_prompts(anchor.prompts)
        asked["anchor_system_prompts"] = sorted({system or "" for system in settings.anchor_system_prompts})
    for name, value in asked.items():
        if value != found[name]:
            raise ValueError(
                f"The anchor was captured with `{name}={found[name]!r}`, found {value!r}. Capture an anchor with that, or leave "
                "it out."
            )


def _system_prompts(prompts: list[Messages]) -> list[str]:
    return sorted({prompt[0]["content"] if prompt[0]["role"] == "system" else "" for prompt in prompts})


def _describe(prompts: list[Messages]) -> str:
    questions = list(dict.fromkeys(prompt[-1]["content"] for prompt in prompts))
    return f"{questions} under the system prompts {_system_prompts(prompts)}"


def check_setup(
    model: nn.Module, args: TrainingArguments, settings: AnchorArguments, parallelism: ParallelismConfig | None
) -> None:
    """
    Adapters, optimizers and parallelism under which the anchors' states are not what they seem to be.

    Raises:
        ValueError: If one is found; it says what to use instead.
    """
    check_has_no_virtual_tokens(model)
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            init = getattr(config, "init_lora_weights", True)
            if settings.anchor_reference == "base" and init not in _NEUTRAL_LORA_INITS:
                raise ValueError(
                    f"Found `init_lora_weights={init!r}`, which changes the base weights: with the adapter "
                    "disabled the model is not the aligned one. Set `anchor_reference='current'`, or use one of "
                    f"{_NEUTRAL_LORA_INITS}."
                )
            replication = getattr(config, "layer_replication", None)
            if settings.anchor_reference == "base" and replication is not None:
                raise ValueError(
                    f"Found `layer_replication={replication}`, whose layers stay when the adapter is disabled: the model "
                    "is not the aligned one then. Set `anchor_reference='current'`, or use LoRA without it."
                )
    if args.optim in (OptimizerNames.LOMO, OptimizerNames.ADALOMO):
        raise ValueError(
            f"Found `optim={args.optim.value}`, which changes the weights within a backward: the anchor term has "
            "one of its own. Use another optimizer, e.g. 'adamw_torch_fused'."
        )
    full_eval = next((name for name in ("bf16_full_eval", "fp16_full_eval") if getattr(args, name)), None)
    if full_eval is not None:
        raise ValueError(
            f"Found `{full_eval}=True`, with which an evaluation casts the model itself, its unembedding included: it could not be "
            "saved as held any more. Leave it out, and evaluate as the model is trained (`bf16=True`, `fp16=True`)."
        )
    if args.ddp_static_graph:
        raise ValueError(
            "Found `ddp_static_graph=True`, which promises DDP the same graph in every backward: that of the anchor term is "
            "another one, and gradients would not be reduced. Leave it out."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"Found {args.n_gpu} GPUs in one process, which train copies of the model (`torch.nn.DataParallel`). Launch one process a "
            "GPU, e.g. with `accelerate launch`."
        )
    if parallelism is not None and (parallelism.cp_enabled or parallelism.sp_enabled):
        raise ValueError(
            "Found context or sequence parallelism, which splits the anchor prompts over processes. Use data "
            "parallelism (DDP, FSDP2, DeepSpeed) instead."
        )


def check_has_no_virtual_tokens(model: nn.Module) -> None:
    """
    Raises:
        ValueError: If an adapter puts tokens of its own before those of the prompts.
    """
    for config in model.peft_config.values() if isinstance(model, PeftModel) else ():
        if config.is_prompt_learning:
            raise ValueError(
                f"Found the prompt-learning method {config.peft_type.value}: its virtual tokens change what "
                "stands before the anchored token, and no weight of the model. Use LoRA or full fine-tuning."
            )


def keep_four_bit_weights_differentiable(model: nn.Module) -> None:
    """
    bitsandbytes (0.50) packs 4-bit weights for inference on a CPU with AVX512-BF16 the first time that a forward needs
    no gradient. Packed weights have no backward: what flows through them later is lost, without an error.
    """
    layers = [module for module in model.modules() if hasattr(module, "support_avx512bf16_for_cpu")]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        layer.state_dict()  # unpacks


def check_rows(dataset: Dataset | IterableDataset | None) -> None:
    """
    Raises:
        ValueError: If there is nothing to train on.
    """
    is_empty_stream = isinstance(dataset, IterableDataset) and next(iter(dataset), None) is None
    if is_empty_stream or (isinstance(dataset, Dataset) and len(dataset) == 0):
        raise ValueError(
            "The training dataset has no usable row: it is empty, or no row has a token to learn within `max_length`. "
            "Check the file, the split and `max_length`."
        )


def warn_of_anchors_in(dataset: Any, anchor: SafetyAnchor, tokenizer: PreTrainedTokenizerBase) -> None:
    """Warn of anchor prompts that stand in the training rows, where these are of datasets' and named as TRL's are."""
    texts = _texts(dataset, tokenizer) if isinstance(dataset, Dataset) else ()
    for prompt, count in find_near_copies(anchor.questions, texts).items():
        logger.warning(
            f"The anchor prompt {prompt!r}, or a near copy, stands in {count} training rows: its loss and the anchor's pull in "
            "different directions. Remove the rows, or choose another anchor."
        )


def _texts(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> Iterable[str]:
    for name in ("input_ids", "prompt_ids"):
        if name in dataset.column_names:
            return (tokenizer.decode(ids) for ids in dataset[name])
    return (
        (str(prompt) for prompt in dataset["prompt"]) if "prompt" in dataset.column_names else ()
    )  # text, or messages
