# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a training says of itself, in `sbr_run.json` beside what it saves: the card is made from it."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from datasets.naming import camelcase_to_snakecase
from peft import PeftModel

from ..anchors.anchor_files import write_atomically
from ..anchors.provenance import cached_commit, is_hub_id


if TYPE_CHECKING:
    from .sbr_sft_trainer import SBRSFTTrainer


RECORD_NAME = "sbr_run.json"

_TRAINING_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "bf16",
    "fp16",
    "seed",
)
_PEFT_SETTINGS = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "target_modules")


def make_record(trainer: "SBRSFTTrainer", tags: str | list[str] | None = None) -> dict[str, Any]:
    """
    The record of a training as it stands: no prompt, no data and no path of a dataset is in it.

    Args:
        trainer ([`SBRSFTTrainer`]):
            The trainer.
        tags (`str` or `list[str]`, *optional*):
            Further tags of the card.
    """
    args, anchor = trainer.args, trainer.anchor
    base = trainer.model.config._name_or_path
    settings = {name: getattr(args, name) for name in _TRAINING_SETTINGS}
    return {
        "base_model": {
            "name_or_path": base,
            "revision": cached_commit(base, (args.model_init_kwargs or {}).get("revision")),
        },
        "peft": peft_settings(trainer.model) if isinstance(trainer.model, PeftModel) else None,
        "sbr": {"anchor_loss_coef": args.anchor_loss_coef, "anchor_loss_type": args.anchor_loss_type},
        "anchor": anchor and {"repo_id": anchor.repo_id, "commit": anchor.commit},
        "datasets": [
            {"id": name, "revision": _dataset_revision(trainer.train_dataset, name)}
            for name in trainer.dataset_names
            if is_hub_id(name)
        ],
        "tags": [tags] if isinstance(tags, str) else list(tags or []),
        "training": {
            "steps": trainer.state.global_step,
            **{name: str(getattr(value, "value", value)) for name, value in settings.items() if value is not None},
            "num_processes": trainer.accelerator.num_processes,
        },
        "versions": {name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "datasets", "torch")},
    }


def write_record(record: dict[str, Any], folder: Path) -> None:
    """Write a record as `sbr_run.json`."""
    write_atomically({folder / RECORD_NAME: (json.dumps(record, indent=2) + "\n").encode()})


def read_record(path: Path) -> dict[str, Any]:
    """
    Read a record.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no record.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: `trl-sbr sft`, or `SBRSFTTrainer.save_model`, writes it beside an adapter or model."
        )
    try:
        record = json.loads(path.read_bytes())
        record["base_model"]["name_or_path"], record["peft"], record["anchor"], record["datasets"], record["tags"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not the record of a training: {error!r}.") from error
    return record


def peft_settings(model: PeftModel) -> dict[str, Any]:
    """What a record says of an adapter."""
    settings = model.active_peft_config.to_dict()
    found = {name: settings.get(name) for name in _PEFT_SETTINGS}
    found["peft_type"] = model.active_peft_config.peft_type.value
    if isinstance(found["target_modules"], set | list):
        found["target_modules"] = " ".join(sorted(found["target_modules"]))
    return {name: value for name, value in found.items() if value is not None}


def _dataset_revision(dataset: Any, name: str) -> str | None:
    """The commit of a dataset of the Hub, as the cache of its rows tells it."""
    namespace, name = name.split("/")
    folder = f"{namespace}___{camelcase_to_snakecase(name)}"
    for file in dataset.cache_files if isinstance(dataset, Dataset) else ():
        match = re.search(f"/{re.escape(folder)}/.*/([0-9a-f]{{40}})/", Path(file["filename"]).as_posix())
        if match is not None:
            return match[1]
    return None
