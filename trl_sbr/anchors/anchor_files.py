# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The two files of a safety anchor: written atomically, and read with nothing believed."""

import glob
import hashlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .prompts import Messages, as_messages


TENSOR_NAME = "safety_anchor.safetensors"
CONFIG_NAME = "safety_anchor_config.json"
FORMAT_VERSION = 1

MAX_CONFIG_BYTES = 16 * 2**20
_TENSOR_KEY = "hidden_states"
_TEMPORARY_SUFFIX = ".trl_sbr_tmp"
_MAX_SAFETENSORS_HEADER_BYTES = 2**16


@dataclass
class AnchorConfig:
    """What `safety_anchor_config.json` holds. Prompts that were not published are `None`, and so are their token ids."""

    prompts: list[Messages | None]
    input_ids: list[list[int] | None]
    chat_template_sha256: str
    chat_template_kwargs: dict[str, Any]
    model_name_or_path: str
    model_revision: str | None
    reference: str
    hidden_size: int
    dtype: str
    autocast_dtype: str | None
    quantization: dict[str, Any] | None
    library_versions: dict[str, str]
    tensor_sha256: str
    format_version: int = FORMAT_VERSION


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensor_to_bytes(states: torch.Tensor) -> bytes:
    return safetensors.torch.save({_TENSOR_KEY: states}, metadata={"format": "pt"})


def anchor_to_files(config: AnchorConfig, states: torch.Tensor) -> dict[str, bytes]:
    """The two files of an anchor, by name."""
    return {
        TENSOR_NAME: tensor_to_bytes(states),
        CONFIG_NAME: (json.dumps(asdict(config), indent=2, ensure_ascii=False) + "\n").encode(),
    }


def write_anchor(directory: Path, config: AnchorConfig, states: torch.Tensor, overwrite: bool) -> None:
    """
    Write the two files of an anchor, whole or not at all.

    Raises:
        FileExistsError: If another anchor lies there and `overwrite` is `False`.
        OSError: If the files cannot be written, e.g. on a full disk.
    """
    files = {directory / name: data for name, data in anchor_to_files(config, states).items()}
    if all(path.is_file() and path.read_bytes() == data for path, data in files.items()):
        return
    if (directory / CONFIG_NAME).exists() and not overwrite:
        raise FileExistsError(
            f"{directory} holds another safety anchor already. Save to another folder, or delete its `{TENSOR_NAME}` "
            f"and `{CONFIG_NAME}`."
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_atomically(files)


def write_atomically(files: dict[Path, bytes]) -> None:
    """
    Write all files under other names first, then rename them: a failure leaves what was there. What a process that was
    killed has left under such names is removed.
    """
    written = []
    try:
        for path, data in files.items():
            for left in path.parent.glob(f".{glob.escape(path.name)}.*{_TEMPORARY_SUFFIX}"):
                left.unlink(missing_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", suffix=_TEMPORARY_SUFFIX, delete=False
            ) as file:
                written.append((file.name, path))
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are made private
        for temporary, path in written:
            os.replace(temporary, path)
    except BaseException:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)
        raise


def read_anchor(directory: Path) -> tuple[AnchorConfig, torch.Tensor]:
    """
    Read the two files of an anchor. Nothing is unpickled; every field, shape, size and hash is checked.

    Returns:
        `tuple[AnchorConfig, torch.Tensor]`: The configuration, and the states, float32, of shape
        `(num_anchors, hidden_size)`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is corrupted, truncated, tampered with, or of another format.
    """
    for name in (CONFIG_NAME, TENSOR_NAME):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} holds no `{name}`. A safety anchor is made with `trl-sbr anchor` or "
                "`SafetyAnchor.capture(...).save_pretrained(...)`, and both its files must keep their names."
            )
    config = read_config(directory / CONFIG_NAME)
    return config, _read_tensor(directory / TENSOR_NAME, config)


def read_config(path: Path) -> AnchorConfig:
    """Read and check `safety_anchor_config.json`, see [`read_anchor`]."""
    size = path.stat().st_size
    if size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} has {size} bytes, expected at most {MAX_CONFIG_BYTES}: it is no anchor.")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is corrupted or truncated: {error}. Get the file again.") from error
    if not isinstance(data, dict) or not isinstance(data.get("format_version"), int):
        raise ValueError(f"{path} is no safety anchor configuration: it has no `format_version`.")
    if data["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {data['format_version']}, expected {FORMAT_VERSION}. Upgrade trl_sbr, or "
            "capture the anchor again."
        )
    expected, found = {f.name for f in fields(AnchorConfig)}, set(data)
    if expected != found:
        raise ValueError(
            f"{path} has not the fields of a safety anchor: missing {sorted(expected - found)}, unknown "
            f"{sorted(found - expected)}."
        )
    config = AnchorConfig(**data)
    _check_config(config, path)
    return config


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_config(config: AnchorConfig, path: Path) -> None:
    def check(name: str, valid: bool, expected: str) -> None:
        if not valid:
            raise ValueError(f"{path}: expected `{name}` to be {expected}, found {str(getattr(config, name))[:200]}.")

    def is_sha256(value: Any) -> bool:
        return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")

    prompts, ids = config.prompts, config.input_ids
    check("prompts", isinstance(prompts, list) and len(prompts) > 0, "a list of conversations")
    if prompts == [None] * len(prompts):  # not published
        check("input_ids", ids == prompts, f"{len(prompts)} nulls, as `prompts`")
    else:
        for prompt in prompts:
            if not isinstance(prompt, list):
                raise ValueError(f"{path}: expected `prompts` to hold lists of messages, found {str(prompt)[:200]}.")
            as_messages(prompt)
        check(
            "input_ids",
            isinstance(ids, list)
            and len(ids) == len(prompts)
            and all(isinstance(row, list) and row and all(_is_int(i) and 0 <= i < 2**31 for i in row) for row in ids),
            f"{len(prompts)} lists of token ids, one a prompt",
        )
    check("chat_template_sha256", is_sha256(config.chat_template_sha256), "64 hexadecimal digits")
    check("tensor_sha256", is_sha256(config.tensor_sha256), "64 hexadecimal digits")
    check("chat_template_kwargs", isinstance(config.chat_template_kwargs, dict), "an object")
    check("model_name_or_path", isinstance(config.model_name_or_path, str), "a string")
    check("model_revision", isinstance(config.model_revision, str | None), "a string or null")
    check("reference", config.reference in ("base", "current"), "'base' or 'current'")
    check("hidden_size", _is_int(config.hidden_size) and 0 < config.hidden_size < 2**20, "a positive integer")
    check("dtype", isinstance(config.dtype, str), "a string")
    check("autocast_dtype", isinstance(config.autocast_dtype, str | None), "a string or null")
    check("quantization", isinstance(config.quantization, dict | None), "an object or null")
    check("library_versions", isinstance(config.library_versions, dict), "an object")


def max_tensor_bytes(config: AnchorConfig) -> int:
    """Largest size that the tensor file of an anchor can have."""
    return len(config.prompts) * config.hidden_size * 4 + _MAX_SAFETENSORS_HEADER_BYTES


def _read_tensor(path: Path, config: AnchorConfig) -> torch.Tensor:
    shape = len(config.prompts), config.hidden_size
    limit = max_tensor_bytes(config)
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} has {size} bytes, expected at most {limit} for states of shape {shape}.")
    data = path.read_bytes()
    found = sha256_hex(data)
    if found != config.tensor_sha256:
        raise ValueError(
            f"{path} is not the file that `{CONFIG_NAME}` names: expected sha256 {config.tensor_sha256}, found {found}. "
            "It was corrupted, truncated or tampered with; get both files again, and delete them first where they lie in "
            "the Hub's cache."
        )
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # the Rust extension has an exception type of its own
        raise ValueError(f"{path} is no safetensors file: {error}.") from error
    states = tensors.get(_TENSOR_KEY)
    if set(tensors) != {_TENSOR_KEY} or states.dtype != torch.float32 or tuple(states.shape) != shape:
        described = {name: (dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
        raise ValueError(f"{path}: expected one float32 tensor `{_TENSOR_KEY}` of shape {shape}, found {described}.")
    if not torch.isfinite(states).all() or (states.norm(dim=-1) == 0).any():
        raise ValueError(f"{path} holds hidden states that are NaN, Inf or all zero.")
    return states
