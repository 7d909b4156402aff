# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Which models are compared, and what tells one from another."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..anchors.adapters import ADAPTER_CONFIG_NAME, AdapterFiles, find_adapter, list_adapter_folders
from ..judges.endpoint_client import EndpointClient
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
        adapter ([`~trl_sbr.anchors.adapters.AdapterFiles`], *optional*):
            PEFT adapter to put on it.
        endpoint (`str`, *optional*):
            Address of the OpenAI-compatible server that answers for it, under the name `model_name_or_path`.
    """

    name: str
    model_name_or_path: str
    revision: str = "main"
    adapter: AdapterFiles | None = None
    endpoint: str | None = None

    def pinned(self) -> "ModelEntry":
        """Returns this model at the commits that its names on the Hub stand for now: what is reported is then what is loaded."""
        if self.endpoint is not None:
            return self
        adapter = self.adapter
        if adapter is not None:
            commit = _commit_of(adapter.name_or_path, _config_of(adapter), adapter.revision)
            adapter = replace(adapter, revision=commit or adapter.revision)
        commit = _commit_of(self.model_name_or_path, "config.json", self.revision)
        return replace(self, revision=commit or self.revision, adapter=adapter)

    def identify(self) -> dict:
        """Returns what tells this model from others: commits on the Hub, SHA-256 of folders; of a server its address."""
        if self.endpoint is not None:  # which weights it serves, nobody can tell from here
            return {"served_as": self.model_name_or_path, "endpoint": self.endpoint}
        identity = {
            "model_name_or_path": self.model_name_or_path,
            **_identify(self.model_name_or_path, "config.json", self.revision),
        }
        if self.adapter is not None:
            identity["adapter"] = {
                "name_or_path": str(self.adapter),
                **_identify(self.adapter.name_or_path, _config_of(self.adapter), self.adapter.revision),
            }
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
            Revision of that model, or of that adapter if it is one itself. An adapter's base model is that of its training.
        adapter (`str`, *optional*):
            PEFT adapter.
        compare (`list[str]`):
            Further models and adapters, each as `PATH` or `NAME=PATH`, or on a server, as `URL#MODEL` or `NAME=URL#MODEL`.

    Returns:
        `list[ModelEntry]`: The models, in order.

    Raises:
        ValueError: If there is none, two have one name, a name is empty or a path, an adapter belongs to another base model, or
            an address names no model.
    """
    base = (model_name_or_path, revision)
    entries = []
    if model_name_or_path is not None and adapter is None and find_adapter(model_name_or_path, revision) is not None:
        base = (None, "main")  # it is an adapter itself
        entries.append(_resolve("", model_name_or_path, *base, own_revision=revision))
    elif adapter is not None:
        entries.append(_resolve("", adapter, *base))
    elif model_name_or_path is not None:
        entries.append(ModelEntry(_name_of(model_name_or_path), model_name_or_path, revision))
    for text in compare:
        entries.append(_resolve(*_split_name(text), *base))
    if not entries:
        raise ValueError("No model: give `model_name_or_path`, a folder or the name of a model on the Hub.")
    names = [entry.name for entry in entries]
    for entry in entries:
        _check_name(entry.name, entry.model_name_or_path)
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ValueError(
            f"Two models are called `{double.pop()}` in the report. Give names with `--compare NAME=PATH ...`."
        )
    return entries


def check_records(entries: list[ModelEntry]) -> None:
    """
    Make sure that what a training left in a folder belongs together, as its record says. Others' models have none.

    Raises:
        OSError: If a part of it is missing.
        ValueError: If a part of it is of another training.
    """
    from ..trainers.run_record import RECORD_NAME, check_folder

    for entry in entries:
        if entry.endpoint is not None:
            continue
        folder = Path(entry.model_name_or_path if entry.adapter is None else entry.adapter.name_or_path)
        if (folder / RECORD_NAME).is_file():
            check_folder(folder)


def _split_name(text: str) -> tuple[str, str]:
    """The name and the path or address of a `--compare`; the name is empty where none is given."""
    name, equals, path = text.partition("=")  # the first: a path may hold more
    if not equals or Path(text).exists() or _is_address(text):
        return "", text
    _check_name(name, text)
    return name, path


def _check_name(name: str, of: str) -> None:
    # It heads a column, and is part of a file's name
    if not name.strip() or "/" in name or "\\" in name:
        raise ValueError(
            f"Found the name {name!r} of a model in the report (`{of}`), expected one that is not empty and has no `/` or `\\`. "
            "Give it one with `--compare NAME=PATH`."
        )


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _resolve(name: str, path: str, base: str | None, revision: str, own_revision: str | None = None) -> ModelEntry:
    if path.startswith((".", "/")) and not Path(path).is_dir():
        raise FileNotFoundError(f"There is no model or adapter `{path}` (looked from {Path.cwd()}).")
    if _is_address(path):
        return _resolve_served(name, path)
    adapter = find_adapter(path, own_revision)
    if adapter is None:
        return ModelEntry(name or _name_of(path), path)
    trained_on, commit = _base_of(adapter)
    if base is not None and trained_on and _name_of(base).casefold() != _name_of(trained_on).casefold():
        raise ValueError(
            f"The adapter `{path}` was trained on `{trained_on}`, and would be put on `{base}`. Give "
            f"`--model_name_or_path {trained_on}`; or, if both are the same model, write its name into "
            "`base_model_name_or_path` of the adapter's `adapter_config.json`."
        )
    if base is None and not trained_on:
        raise ValueError(f"The adapter `{path}` names no base model: give it with `--model_name_or_path`.")
    if base is None:
        base, revision = trained_on, commit or "main"
    return ModelEntry(name or _name_of(path), base, revision, adapter)


def _base_of(adapter: AdapterFiles) -> tuple[str | None, str | None]:
    from transformers.utils.hub import cached_file

    from ..trainers.run_record import RECORD_NAME, base_of, read_record

    flags = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
    path = cached_file(adapter.name_or_path, RECORD_NAME, revision=adapter.revision, **flags)
    return base_of(adapter, None if path is None else read_record(Path(path)))


def _resolve_served(name: str, address: str) -> ModelEntry:
    url, _, model = address.partition("#")
    if not model:
        raise ValueError(
            f"`{address}` names no model of the server: write `NAME=URL#MODEL`, such as `sbr=http://localhost:8000/v1#my-adapter`."
        )
    EndpointClient(model, url)  # raises where the address is none
    return ModelEntry(name or _name_of(model), model, endpoint=url)


def _name_of(name_or_path: str) -> str:
    """The last part of a path or Hub id, also of one in the Hub's cache."""
    snapshot = re.search(r"models--(?:[^/\\]+--)?([^/\\]+)[/\\]snapshots[/\\]", name_or_path)
    if snapshot:
        return snapshot[1]
    name = Path(name_or_path).name
    return Path(name_or_path).resolve().name if name in ("", "..") else name  # of `.`, the folder's own


def _config_of(adapter: AdapterFiles) -> str:
    return f"{adapter.subfolder}/{ADAPTER_CONFIG_NAME}".removeprefix("/")


def _commit_of(name_or_path: str, file: str, revision: str | None) -> str | None:
    """The commit that a revision on the Hub stands for; a folder has none."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    if Path(name_or_path).is_dir():
        return None
    return extract_commit_hash(cached_file(name_or_path, file, revision=revision), None)


def _identify(name_or_path: str, file: str, revision: str | None = None) -> dict[str, str | None]:
    folder = Path(name_or_path)
    if not folder.is_dir():
        return {"revision": _commit_of(name_or_path, file, revision)}
    adapters = list_adapter_folders(folder)
    patterns = _FILES if "" in adapters else (*_FILES, *(f"{adapter}/adapter_*" for adapter in adapters))
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    hashes = "".join(f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)
    return {"sha256": hashlib.sha256(hashes.encode()).hexdigest()}
