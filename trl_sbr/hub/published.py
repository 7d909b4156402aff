# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A published adapter or anchor, loaded with the base model that it names, so that its claim can be tested."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, ProcessorMixin

from ..anchors.adapters import AdapterFiles, find_adapter, load_adapter, load_processing_class
from ..anchors.safety_anchor import SafetyAnchor
from ..trainers.run_record import RECORD_NAME, base_of, check_folder, read_record
from .repository import download_file, resolve_commit


_MAX_JSON_BYTES = 2**20


@dataclass
class Published:
    """
    A published adapter or anchor.

    Args:
        anchor ([`SafetyAnchor`]):
            The anchor.
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The base model, with the adapter if there is one.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        description (`str`):
            What was loaded, at which revisions.
    """

    anchor: SafetyAnchor
    model: torch.nn.Module
    processing_class: PreTrainedTokenizerBase | ProcessorMixin
    description: str

    def numerics(self) -> AbstractContextManager:
        """Context in which the model computes as it did when the anchor was captured."""
        dtype = self.anchor.config.autocast_dtype
        return torch.autocast(self.model.device.type, dtype and getattr(torch, dtype), enabled=dtype is not None)


def load_published(name_or_path: str, revision: str | None = None, device: str | None = None) -> Published:
    """
    Load an adapter with its anchor and its base model, or an anchor with the model that it was captured on. Weights are
    read from safetensors files alone, and no code of a repository is run.

    Args:
        name_or_path (`str`):
            Folder or Hub repository of the adapter or the anchor.
        revision (`str`, *optional*):
            Branch, tag or commit of that repository.
        device (`str`, *optional*):
            Where to load it. Defaults to the accelerator, or else the CPU.

    Returns:
        [`Published`]: What was loaded.

    Raises:
        OSError: If a part of it cannot be had.
        ValueError: If the anchor is corrupted, holds no prompts, or comes with a fully fine-tuned model.
    """
    is_local = os.path.isdir(name_or_path)
    commit = None if is_local else resolve_commit(name_or_path, revision)
    anchor = SafetyAnchor.from_pretrained(name_or_path, revision=commit)
    anchor.input_ids  # noqa: B018  raises for an anchor without prompts, before anything large is loaded

    def find(name: str) -> Path | None:
        try:
            if is_local:
                return path if (path := Path(name_or_path, name)).is_file() else None
            return download_file(name_or_path, name, commit, _MAX_JSON_BYTES)
        except FileNotFoundError:
            return None

    adapter, record = find_adapter(name_or_path, commit), find(RECORD_NAME)
    if adapter is None and find("config.json") is not None:
        raise ValueError(
            f"`{name_or_path}` is a fully fine-tuned model, whose states have moved from its anchor's. Look at how far: "
            f"trl-sbr anchor --compare {name_or_path} --model_name_or_path {name_or_path}"
        )
    base, base_revision = anchor.config.model_name_or_path, anchor.config.model_revision
    if adapter is not None:
        adapter.check_is_safetensors()
        run = record and (check_folder(Path(name_or_path)) if is_local else read_record(record))
        base, base_revision = base_of(adapter, run)
        if not base:
            raise ValueError(
                f"`{name_or_path}` does not say in its `adapter_config.json` which base model it belongs to. Name it: "
                f"`--model_name_or_path MODEL --adapter {name_or_path}`."
            )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base,
            revision=base_revision,
            dtype=anchor.config.dtype,
            quantization_config=anchor.config.quantization,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, HFValidationError) as error:
        raise OSError(
            f"The base model `{base}` that `{name_or_path}` names cannot be loaded: {error}\nIf you have it elsewhere, add "
            f"`--model_name_or_path FOLDER --adapter {name_or_path}`."
        ) from error
    if adapter is not None:
        model = load_adapter(model, adapter)
    accelerator = torch.accelerator.current_accelerator()
    if record is not None:  # all that it names has been fetched by now
        check_folder(record.parent)
    if anchor.config.quantization is None:
        model.to(device or (accelerator.type if accelerator else "cpu"))
    # An anchor may have its tokenizer beside it too
    beside = adapter or AdapterFiles(name_or_path, commit)
    processing_class = load_processing_class(base, base_revision, beside)
    at, base_at = (f" at commit {r}" if r else "" for r in (commit, base_revision))
    what = f"anchor {name_or_path}{at}" if adapter is None else f"adapter {adapter}{at}"
    what += f"\nnot looked at: {', '.join(adapter.others)}, adapters beside it" if adapter and adapter.others else ""
    return Published(anchor, model, processing_class, f"{what}\nbase model {base}{base_at}")
