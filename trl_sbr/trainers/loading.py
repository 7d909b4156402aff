# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A model and its tokenizer, loaded as TRL's trainers load them."""

from pathlib import Path

from trl import clone_chat_template, get_quantization_config
from trl.trainer.utils import create_model_from_path

from ..anchors.adapters import AdapterFiles, load_adapter, load_processing_class
from ..anchors.untrusted_files import read_text


def get_model_init_kwargs(training_args, model_args) -> dict:
    """The keyword arguments with which a model is loaded, as in TRL's `scripts/sft.py`."""
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": training_args.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }


def load_model_and_processing_class(
    training_args, model_args, adapter: AdapterFiles | None = None, allow_base_weights: bool = False
) -> tuple:
    """
    Loads model and tokenizer as `trl-sbr sft` does: the same dtype, quantization, device, code and chat template.

    Args:
        training_args ([`SBRConfig`]):
            Device, chat template and keyword arguments of the model.
        model_args ([`~trl.ModelConfig`]):
            Which model, in which dtype and quantization.
        adapter ([`~trl_sbr.anchors.adapters.AdapterFiles`], *optional*):
            Adapter to put on the model. A tokenizer that was saved beside it is used, with its chat template.
        allow_base_weights (`bool`, *optional*, defaults to `False`):
            See [`~trl_sbr.anchors.adapters.load_adapter`].
    """
    kwargs = get_model_init_kwargs(training_args, model_args)
    quantization_config = get_quantization_config(model_args)
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if training_args.world_size > 1:
        kwargs["device_map"] = None  # as SFTTrainer: each process has a device of its own
    model = create_model_from_path(model_args.model_name_or_path, **kwargs)
    if model.device != training_args.device and quantization_config is None:
        model.to(training_args.device)

    processing_class = load_processing_class(
        model_args.model_name_or_path, kwargs["revision"], adapter, kwargs["trust_remote_code"]
    )
    template_path = training_args.chat_template_path
    if template_path is not None and Path(template_path).suffix in (".jinja", ".j2"):
        processing_class.chat_template = read_text(template_path)
    elif template_path is not None:
        model, processing_class, _ = clone_chat_template(model, processing_class, template_path)
    if adapter is not None:
        model = load_adapter(model, adapter, allow_base_weights)
    return model, processing_class
