# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Kinds of models and adapters that have no bottleneck which can be held: one line each, before anything is run."""

from peft import PeftConfig, PeftMixedModel, PeftModel, PeftType
from torch import nn
from transformers import AutoConfig, PreTrainedModel


def check_model_is_supported(model: nn.Module) -> None:
    """
    Make sure that a model is of a kind whose final hidden states can be anchored.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal language model.

    Raises:
        ValueError: If it is not; the error says what to use.
    """
    if isinstance(model, PeftMixedModel):
        raise ValueError(
            "Found a `PeftMixedModel`, whose adapters of several types cannot be switched off to ask the aligned model. "
            "Use `get_peft_model(model, config)`, without `mixed=True`."
        )
    base = model
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            check_adapter_is_supported(config)
        base = model.get_base_model()
    elif getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            "Found an adapter that was put on with `model.add_adapter` or `load_adapter`: it would be on when the aligned "
            "model is asked. Wrap the model with `peft.get_peft_model` or `PeftModel.from_pretrained` instead."
        )
    if isinstance(base, PreTrainedModel):
        _check_architecture(type(base), base.config.is_encoder_decoder)


def check_model_name_is_supported(name_or_path: str, **kwargs) -> None:
    """
    Make sure of the same for a model that is yet to be loaded, by its configuration.

    Args:
        name_or_path (`str`):
            Folder or Hub repository. One that has no configuration is left to whoever loads it.
        **kwargs:
            Further arguments of [`~transformers.AutoConfig.from_pretrained`].

    Raises:
        ValueError: If it is not supported.
    """
    import transformers

    try:
        config = AutoConfig.from_pretrained(name_or_path, **kwargs)
    except (OSError, ValueError):
        return
    cls = getattr(transformers, (config.architectures or [""])[0], None)
    if cls is not None:
        _check_architecture(cls, config.is_encoder_decoder)


def _check_architecture(cls: type[PreTrainedModel], is_encoder_decoder: bool) -> None:
    if is_encoder_decoder:
        raise ValueError(
            f"Found the encoder-decoder model `{cls.__name__}`, whose answer does not begin at the last token of the "
            "prompt. Use a decoder-only causal language model."
        )
    if not cls.can_generate():
        raise ValueError(
            f"Found `{cls.__name__}`, which generates no text, so no answer can be anchored. Load a causal language "
            "model, e.g. with `AutoModelForCausalLM`."
        )


def check_adapter_is_supported(config: PeftConfig) -> None:
    """
    Make sure that an adapter computes the same whichever way the anchor prompts are laid out, and can be switched off.

    Args:
        config ([`~peft.PeftConfig`]):
            Its configuration.

    Raises:
        ValueError: If it does not.
    """
    if config.peft_type == PeftType.XLORA:
        raise ValueError(
            "Found X-LoRA, which runs the model twice to weigh its adapters, the anchored states among them. Use LoRA or "
            "full fine-tuning."
        )
    if config.is_adaption_prompt:
        raise ValueError(
            "Found an adaption prompt (LLaMA-Adapter), whose learned tokens stand beside the anchored ones. Use LoRA or "
            "full fine-tuning."
        )
    if getattr(config, "alora_invocation_tokens", None) is not None:
        raise ValueError(
            "Found an activated LoRA (`alora_invocation_tokens`): it is off in a prompt without these tokens, the anchors "
            "among them, and on where they stand in another row. Use LoRA without invocation tokens."
        )
    if getattr(config, "kasa_config", None) is not None:  # older releases of PEFT have none
        raise ValueError(
            "Found KaSA (`kasa_config`), with which PEFT truncates the base weights for good: no adapter that is switched off "
            "brings the aligned model back. Use LoRA without it."
        )
