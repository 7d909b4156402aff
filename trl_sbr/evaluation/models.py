# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Which models are compared, and what tells one from another."""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from .package_index import sha256_of


# What of a folder decides about its model's answers
_FILES = (
    "adapter_config.json",
    "adapter_model*",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "pytorch_model*.bin",
    "tokenizer*",
)


@dataclass(frozen=True)
class ModelEntry:
    """
    A model of the comparison.

    Args:
        name (`str`):
            Name in the report.
        model_name_or_path (`str`):
            The model, or the base model of the adapter.
        revision (`str`, *optional*, defaults to `"main"`):
            Revision of that model on the Hub.
        adapter (`str`, *optional*):
            PEFT adapter to put on it.
    """

    name: str
    model_name_or_path: str
    revision: str = "main"
    adapter: str | None = None

    def identify(self) -> dict:
        """Returns what tells this model from others: commits on the Hub, SHA-256 of folders."""
        identity = {
            "model_name_or_path": self.model_name_or_path,
            **_identify(self.model_name_or_path, "config.json", self.revision),
        }
        if self.adapter is not None:
            identity["adapter"] = {"name_or_path": self.adapter, **_identify(self.adapter, "adapter_config.json")}
        return identity


def resolve_models(
    model_name_or_path: str | None, revision: str, adapter: str | None, compare: list[str]
) -> list[ModelEntry]:
    """
    Find out which models are compared.

    Args:
        model_name_or_path (`str`, *optional*):
            A model, which the adapters are put on. Without it, an adapter is put on the model that it names.
        revision (`str`):
            Revision of that model.
        adapter (`str`, *optional*):
            PEFT adapter.
        compare (`list[str]`):
            Further models and adapters, each as `PATH` or `NAME=PATH`.

    Returns:
        `list[ModelEntry]`: The models, in order.

    Raises:
        ValueError: If there is none, two have one name, or an adapter belongs to another base model.
    """
    base = (model_name_or_path, revision)
    entries = []
    if model_name_or_path is not None and adapter is None and _adapter_config(model_name_or_path) is not None:
        base = (None, "main")  # it is an adapter itself
        entries.append(_resolve(_name_of(model_name_or_path), model_name_or_path, *base))
    elif adapter is not None:
        entries.append(_resolve(_name_of(adapter), adapter, *base))
    elif model_name_or_path is not None:
        entries.append(ModelEntry(_name_of(model_name_or_path), model_name_or_path, revision))
    for text in compare:
        name, equals, path = text.partition("=")  # the first: a path may hold more
        if not equals or Path(text).exists():
            name, path = "", text
        entries.append(_resolve(name or _name_of(path), path, *base))
    if not entries:
        raise ValueError("No model: give `model_name_or_path`, a folder or the name of a model on the Hub.")
    names = [entry.name for entry in entries]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ValueError(
            f"Two models are called `{double.pop()}` in the report. Give names with `--compare NAME=PATH ...`."
        )
    return entries


def put_adapter(model, entry, merge: bool):
    """Puts an adapter on its model. In float32 it is merged, which is faster; in fewer bits, merging would round."""
    merge = merge and not hasattr(model.config, "quantization_config")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            model = PeftModel.from_pretrained(model, entry.adapter)
    except (RuntimeError, UserWarning) as error:
        raise ValueError(
            f"The adapter `{entry.adapter}` does not fit `{entry.model_name_or_path}`: {str(error)[:300]}. Give the "
            "model that it was trained on with `--model_name_or_path`."
        ) from error
    return model.merge_and_unload() if merge else model


def _resolve(name: str, path: str, base: str | None, revision: str) -> ModelEntry:
    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise FileNotFoundError(f"There is no model or adapter `{path}` (looked from {Path.cwd()}).")
    config = _adapter_config(path)
    if config is None:
        return ModelEntry(name, path)
    trained_on = config["base_model_name_or_path"]
    if base is not None and trained_on and _name_of(base).casefold() != _name_of(trained_on).casefold():
        raise ValueError(
            f"The adapter `{path}` was trained on `{trained_on}`, and would be put on `{base}`. Give "
            f"`--model_name_or_path {trained_on}`; or, if both are the same model, write its name into "
            "`base_model_name_or_path` of the adapter's `adapter_config.json`."
        )
    if base is None and not trained_on:
        raise ValueError(f"The adapter `{path}` names no base model: give it with `--model_name_or_path`.")
    return ModelEntry(name, base or trained_on, revision, path)


def _adapter_config(path: str) -> dict | None:
    from transformers.utils import find_adapter_config_file

    file = find_adapter_config_file(path)
    return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))


def _name_of(name_or_path: str) -> str:
    """The last part of a path or Hub id, also of one in the Hub's cache."""
    snapshot = re.search(r"models--(?:[^/\\]+--)?([^/\\]+)[/\\]snapshots[/\\]", name_or_path)
    return snapshot[1] if snapshot else Path(name_or_path).name


def _identify(name_or_path: str, file: str, revision: str | None = None) -> dict[str, str]:
    from transformers.utils.hub import cached_file, extract_commit_hash

    folder = Path(name_or_path)
    if not folder.is_dir():
        return {"revision": extract_commit_hash(cached_file(name_or_path, file, revision=revision), None)}
    files = sorted({path for pattern in _FILES for path in folder.glob(pattern) if path.is_file()})
    hashes = "".join(f"{sha256_of(path)}  {path.name}\n" for path in files)
    return {"sha256": hashlib.sha256(hashes.encode()).hexdigest()}
