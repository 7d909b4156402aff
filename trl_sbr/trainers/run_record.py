# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
What a training says of itself, in `sbr_run.json` beside what it saves: the card is made from it. It is written last and
names the SHA-256 of the weights and of the anchor, so that what does not belong together is found out.
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from datasets import Dataset
from datasets.naming import camelcase_to_snakecase
from peft import PeftModel

from ..anchors.adapters import AdapterFiles
from ..anchors.anchor_files import CONFIG_NAME, TENSOR_NAME, write_atomically
from ..anchors.provenance import cached_commit, is_hub_id
from ..anchors.schema import read_json_as
from .hardening_record import HardeningRecord


if TYPE_CHECKING:
    from .anchor_mixin import SafetyAnchorMixin


RECORD_NAME = "sbr_run.json"

ADAPTER_WEIGHTS = ("adapter_model.safetensors",)
MODEL_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
# Those that are never saved, and would be loaded all the same where the others are not. Not `pytorch_model_fsdp.bin`, which
# FSDP adds to a checkpoint when all else is saved: no `from_pretrained` reads it
_PICKLED_WEIGHTS = ("adapter_model.bin", "pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
_WEIGHTS = ADAPTER_WEIGHTS + MODEL_WEIGHTS + _PICKLED_WEIGHTS

_TRAINING_SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "packing",
    "beta",
    "num_generations",
    "bf16",
    "fp16",
    "seed",
)
PROTECTION_SETTINGS = (
    "anchor_loss_coef",
    "anchor_target_error",
    "anchor_loss_type",
    "anchor_reference",
    "anchors_per_step",
)
_PEFT_SETTINGS = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_dora", "target_modules")


class _BaseModel(TypedDict):
    name_or_path: str
    revision: str | None


class _Protection(TypedDict):
    anchor_loss_coef: float
    anchor_target_error: NotRequired[float | None]  # an older record is of a constant λ
    anchor_coef: NotRequired[float]  # λ of the next step
    anchor_loss_type: str
    anchor_reference: str
    anchors_per_step: NotRequired[int | None]  # an older record is of a run on all


class _AnchorSource(TypedDict):
    repo_id: str | None
    commit: str | None


class _DatasetSource(TypedDict):
    id: str
    revision: str | None


class _Adapter(TypedDict):
    peft_type: str


class _Measurement(TypedDict):
    step: int
    relative_error: float
    max_relative_error: float
    cosine: float
    min_cosine: float
    refusal_rate: NotRequired[float]


class _Monitor(TypedDict):
    num_prompts: int
    curve: list[_Measurement]


class RunRecord(TypedDict):
    """What `sbr_run.json` holds."""

    base_model: _BaseModel
    peft: _Adapter | None
    sbr: _Protection
    anchor: _AnchorSource | None
    files: dict[str, str]
    datasets: list[_DatasetSource]
    tags: list[str]
    hardening: NotRequired[HardeningRecord | None]  # of the base model
    method: NotRequired[list[str]]  # an older record is of TRL's SFT
    training: dict[str, str | int]
    monitor: NotRequired[_Monitor | None]
    versions: dict[str, str]


def find_weights(folder: Path) -> set[str]:
    """Names of the files in a folder that a model or an adapter is loaded from."""
    return {path.name for path in folder.glob("*") if path.is_file() and is_weights(path.name)}


def is_weights(name: str) -> bool:
    """Whether a model or an adapter is loaded from a file of this name, in the folder itself."""
    return matches_any(name, _WEIGHTS)


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is one of those that patterns name. Unlike `fnmatch`'s, their `*` stands for no `/`."""
    parts = path.split("/")
    split = (pattern.split("/") for pattern in patterns)
    return any(len(parts) == len(names) and all(map(fnmatch.fnmatch, parts, names)) for names in split)


def hash_files(folder: Path, others: Iterable[str] = ()) -> dict[str, str]:
    """The SHA-256 of the weights and of the anchor in a folder, and of `others` that are there, by the files' names."""
    names = find_weights(folder) | {name for name in (CONFIG_NAME, TENSOR_NAME, *others) if (folder / name).is_file()}
    return {name: _sha256_of(folder / name) for name in sorted(names)}


def subfolder_weights(adapters: Iterable[str]) -> list[str]:
    """Where PEFT saves the weights of adapters, by their names: all but that called `default` in a subfolder."""
    return [f"{name}/{ADAPTER_WEIGHTS[0]}" for name in adapters if name != "default"]


def _sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_folder(folder: Path) -> RunRecord:
    """
    Make sure that the weights, the anchor and the record in a folder are those of one training.

    Args:
        folder (`Path`):
            What a training saved: its output folder, a checkpoint, or a copy of what was published.

    Returns:
        [`RunRecord`]: The record.

    Raises:
        FileNotFoundError: If there is no record, or a file that it names is missing.
        ValueError: If a file is not the one that the record names, or is one that it does not name.
    """
    record = read_record(folder / RECORD_NAME)
    check_files(folder, record["files"], RECORD_NAME)
    return record


def check_files(folder: Path, expected: dict[str, str], record_name: str) -> None:
    """
    Make sure that the weights and the anchor in a folder are those that a record in it names.

    Args:
        folder (`Path`):
            The folder.
        expected (`dict[str, str]`):
            What the record names, see [`hash_files`].
        record_name (`str`):
            Name of the record.

    Raises:
        FileNotFoundError: If a file that it names is missing.
        ValueError: If a file is not the one that the record names, or is one that it does not name.
    """
    found = hash_files(folder, expected)
    way_out = (
        "A save that was cut off leaves that, and so do two trainings, or files of another one, in one folder. Resume "
        "from a checkpoint and save again; or keep to one training a folder, as it was saved."
    )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise FileNotFoundError(
            f"{folder} holds no `{missing[0]}`, and its `{record_name}` says that the training saved one. {way_out}"
        )
    for name, sha256 in found.items():
        if sha256 != expected.get(name):
            named = (
                f"expected sha256 {expected[name]}, found {sha256}" if name in expected else "which names no such file"
            )
            raise ValueError(
                f"{folder / name} is not of the training that `{record_name}` beside it records: {named}. {way_out}"
            )


def make_record(trainer: "SafetyAnchorMixin", files: dict[str, str], tags: str | list[str] | None = None) -> RunRecord:
    """
    The record of a training as it stands: no prompt, no data and no path of a dataset is in it.

    Args:
        trainer ([`SafetyAnchorMixin`]):
            The trainer.
        files (`dict[str, str]`):
            What it has saved, see [`hash_files`].
        tags (`str` or `list[str]`, *optional*):
            Further tags of the card.
    """
    from .safety_monitor import SafetyMonitor

    args, anchor = trainer.args, trainer.anchor
    monitor = next((c for c in trainer.callback_handler.callbacks if isinstance(c, SafetyMonitor)), None)
    base = trainer.model.config._name_or_path
    settings = {name: getattr(args, name, None) for name in _TRAINING_SETTINGS}
    return {
        "base_model": {
            "name_or_path": base,
            "revision": cached_commit(base, trainer._model_revision),
        },
        "peft": peft_settings(trainer.model) if isinstance(trainer.model, PeftModel) else None,
        "hardening": trainer.hardening,
        "sbr": {
            **{name: getattr(trainer.anchor_args, name) for name in PROTECTION_SETTINGS},
            "anchor_coef": trainer._anchor_coef,
        },
        "anchor": anchor and {"repo_id": anchor.repo_id, "commit": anchor.commit},
        "files": files,
        "datasets": [
            {"id": name, "revision": _dataset_revision(trainer.train_dataset, name)}
            for name in trainer.dataset_names
            if is_hub_id(name)
        ],
        "tags": [tags] if isinstance(tags, str) else list(tags or []),
        "method": [tag for tag in trainer._tag_names if tag != "sbr"],
        "training": {
            "steps": trainer._num_trained_steps,
            **{name: str(getattr(value, "value", value)) for name, value in settings.items() if value is not None},
            "num_processes": trainer.accelerator.num_processes,
        },
        "monitor": monitor and monitor.to_record(),
        "versions": {name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "datasets", "torch")},
    }


def write_record(record: RunRecord, folder: Path) -> None:
    """Write a record as `sbr_run.json`."""
    write_atomically({folder / RECORD_NAME: record_to_bytes(record)})


def record_to_bytes(record: RunRecord) -> bytes:
    """The content of `sbr_run.json`."""
    return (json.dumps(record, indent=2) + "\n").encode()


def read_record(path: Path) -> RunRecord:
    """
    Read a record.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no record.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: `trl-sbr sft`, or `save_model` of a trainer that holds an anchor, writes it last, beside an adapter or model. "
            "A save that was cut off leaves none: save again."
        )
    return read_json_as(RunRecord, path, "It is not the record of a training: save the model again.")


def base_of(adapter: AdapterFiles, run: RunRecord | None) -> tuple[str | None, str | None]:
    """The base model that an adapter names, and its revision: the commit of the training, if its record says one."""
    config = adapter.read_config()
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if run is not None and run["base_model"]["name_or_path"] == base:
        revision = run["base_model"]["revision"]
    return base, revision


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
