# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The two files of a safety anchor: written atomically, and read with nothing believed."""

import functools
import glob
import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from .prompts import Messages, as_messages
from .untrusted_files import parse_json, read_bounded, read_text


TENSOR_NAME = "safety_anchor.safetensors"
CONFIG_NAME = "safety_anchor_config.json"
FORMAT_VERSION = 4

MAX_CONFIG_BYTES = 16 * 2**20
_TENSOR_KEY = "hidden_states"
_TEMPORARY_SUFFIX = ".trl_sbr_tmp"
_MAX_SAFETENSORS_HEADER_BYTES = 2**16
_MAX_TENSOR_BYTES = 256 * 2**20  # 8192 points at a hidden size of 8192
_SEAL = "anchor_sha256"  # in the file alone: it is computed of all that the configuration holds


@dataclass
class AnchorConfig:
    """
    What `safety_anchor_config.json` holds.

    Args:
        prompts (`list`):
            The conversation of each anchor; `None` where they were not published.
        input_ids (`list`):
            The token ids of each anchor's context, `None` with the prompts.
        positions (`list`):
            The indices, up to the last, of the tokens of each context whose states are held: its points. The first stands before
            the answer, or its rest, which is the model's own. `None` in an anchor of format version 1 without prompts, whose
            single point is the last token.
        openers (`list[str]`):
            With what the answer of each context has begun, or `""`. Format version 2 had none.
        refusal_tokens (`int`):
            Number of points that an anchor was to hold: one that holds fewer holds a refusal that ends before. Format version 3
            held as many everywhere.
        chat_template_sha256 (`str`):
            Hash of the chat template.
        chat_template_kwargs (`dict[str, Any]`):
            Further variables of the template.
        model_name_or_path (`str`):
            The aligned model.
        model_revision (`str`, *optional*):
            Its commit on the Hub.
        reference (`str`):
            `"base"` or `"current"`, see [`SafetyAnchor.capture`].
        unembedding_sha256 (`str`, *optional*):
            What the aligned model's unembedding computes, see [`~trl_sbr.anchors.unembedding.unembedding_sha256`]. Format
            version 1 did not say.
        hidden_size (`int`):
            Size of a state.
        dtype (`str`):
            Dtype of the model's weights.
        autocast_dtype (`str`, *optional*):
            Dtype of `torch.autocast`, if it was on.
        quantization (`dict[str, Any]`, *optional*):
            Quantization of the weights.
        library_versions (`dict[str, str]`):
            Releases that captured it.
        tensor_sha256 (`str`):
            Hash of the tensor file.
        format_version (`int`, *optional*):
            Version of the format.
    """

    prompts: list[Messages | None]
    input_ids: list[list[int] | None]
    positions: list[list[int] | None]
    openers: list[str]
    refusal_tokens: int
    chat_template_sha256: str
    chat_template_kwargs: dict[str, Any]
    model_name_or_path: str
    model_revision: str | None
    reference: str
    unembedding_sha256: str | None
    hidden_size: int
    dtype: str
    autocast_dtype: str | None
    quantization: dict[str, Any] | None
    library_versions: dict[str, str]
    tensor_sha256: str
    format_version: int = FORMAT_VERSION

    @property
    def points_per_anchor(self) -> list[int]:
        """Number of states that each anchor holds."""
        return [1 if positions is None else len(positions) for positions in self.positions]

    @property
    def anchor_sha256(self) -> str:
        """Hash of the whole anchor: of all that the configuration holds, the hash of the tensor among it."""
        return _seal(asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """The content of `safety_anchor_config.json`."""
        return {**asdict(self), _SEAL: self.anchor_sha256}


def _seal(config: dict[str, Any]) -> str:
    return sha256_hex(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())


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
        CONFIG_NAME: (json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n").encode(),
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
        `(num_points, hidden_size)`.

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
    try:
        data = parse_json(read_text(path, MAX_CONFIG_BYTES), str(path))
    except ValueError as error:
        raise ValueError(f"{error} It is corrupted or truncated, or no anchor: get the file again.") from error
    if not isinstance(data, dict) or not _is_int(data.get("format_version")):
        raise ValueError(f"{path} is no safety anchor configuration: it has no `format_version`.")
    version = data["format_version"]
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, expected {FORMAT_VERSION}. Upgrade trl_sbr, or capture the anchor again."
        )
    newer = set().union(*(names for since, names in _NEW_IN_VERSION.items() if since > version))
    expected, found = {f.name for f in fields(AnchorConfig)} | {_SEAL}, set(data)
    expected -= newer
    if expected != found:
        raise ValueError(
            f"{path} has not the fields of a safety anchor: missing {sorted(expected - found)}, unknown "
            f"{str(sorted(found - expected))[:500]}."
        )
    seal = data.pop(_SEAL, None)
    if version > 1 and seal != _seal(data):
        raise ValueError(
            f"{path} was edited or corrupted: its `{_SEAL}` is {str(seal)[:100]}, expected {_seal(data)} for what it holds. Get both "
            "files again, or capture the anchor again."
        )
    missing = dict.fromkeys(newer - {_SEAL})
    config = AnchorConfig(**{**missing, **data, "format_version": FORMAT_VERSION})
    _check_config(config, path)  # before what is missing is made of it
    if "positions" in newer:
        config.positions = [ids and [len(ids) - 1] for ids in config.input_ids]
    if "openers" in newer:
        config.openers = [""] * len(config.prompts)
    _check_positions(config, path)
    _check_openers(config, path)
    most = max(config.points_per_anchor)
    if "refusal_tokens" in newer:
        config.refusal_tokens = most
    valid = _is_int(config.refusal_tokens) and config.refusal_tokens >= most
    _check(config, path, "refusal_tokens", valid, f"{most}, the most points of an anchor, or more")
    return config


_NEW_IN_VERSION = {2: {"positions", "unembedding_sha256", _SEAL}, 3: {"openers"}, 4: {"refusal_tokens"}}


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _matches(pattern: str, value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


_SHA256 = "[0-9a-f]{64}"
_DTYPES = {
    str(d).removeprefix("torch.") for d in vars(torch).values() if isinstance(d, torch.dtype) and d.is_floating_point
}
_VERSION = r"\d+(\.\w+)*([+-][\w.]+)?"


def _check(config: AnchorConfig, path: Path, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ValueError(f"{path}: expected `{name}` to be {expected}, found {str(getattr(config, name))[:200]}.")


def _check_config(config: AnchorConfig, path: Path) -> None:
    check = functools.partial(_check, config, path)
    prompts, ids, quantization, versions = (
        config.prompts,
        config.input_ids,
        config.quantization,
        config.library_versions,
    )
    check("prompts", isinstance(prompts, list) and len(prompts) > 0, "a list of conversations")
    if prompts == [None] * len(prompts):  # not published
        check("input_ids", ids == prompts, f"{len(prompts)} nulls, as `prompts`")
    else:
        for prompt in prompts:
            if not isinstance(prompt, list):
                raise ValueError(f"{path}: expected `prompts` to hold lists of messages, found {str(prompt)[:200]}.")
            try:
                as_messages(prompt)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}: {error}") from error
        check(
            "input_ids",
            isinstance(ids, list)
            and len(ids) == len(prompts)
            and all(isinstance(row, list) and row and all(_is_int(i) and 0 <= i < 2**31 for i in row) for row in ids),
            f"{len(prompts)} lists of token ids, one a prompt",
        )
    for name in ("chat_template_sha256", "tensor_sha256"):
        check(name, _matches(_SHA256, getattr(config, name)), "64 hexadecimal digits")
    unembedding = config.unembedding_sha256
    check("unembedding_sha256", unembedding is None or _matches(_SHA256, unembedding), "64 hexadecimal digits or null")
    check("chat_template_kwargs", isinstance(config.chat_template_kwargs, dict), "an object")
    check("model_name_or_path", isinstance(config.model_name_or_path, str), "a string")
    commit = config.model_revision
    check(
        "model_revision",
        commit is None or _matches("[0-9a-f]{40}", commit),
        "a commit of 40 hexadecimal digits or null",
    )
    check("reference", config.reference in ("base", "current"), "'base' or 'current'")
    check("hidden_size", _is_int(config.hidden_size) and 0 < config.hidden_size < 2**20, "a positive integer")
    check("dtype", isinstance(config.dtype, str) and config.dtype in _DTYPES, f"one of {sorted(_DTYPES)}")
    autocast_dtypes = ("bfloat16", "float16", "float32")
    check("autocast_dtype", config.autocast_dtype in (None, *autocast_dtypes), f"null or one of {autocast_dtypes}")
    check(
        "quantization",
        quantization is None
        or (isinstance(quantization, dict) and _matches(r"[\w-]+", quantization.get("quant_method"))),
        "null or an object with a `quant_method`",
    )
    check(
        "library_versions",
        isinstance(versions, dict) and "trl_sbr" in versions and all(_matches(_VERSION, v) for v in versions.values()),
        "an object of releases, trl_sbr's among them",
    )


def _check_positions(config: AnchorConfig, path: Path) -> None:
    def are_valid(positions: Any, ids: list[int] | None) -> bool:
        if positions is None:
            return ids is None
        if not isinstance(positions, list) or not positions or not all(_is_int(i) for i in positions):
            return False
        first, last = positions[0], positions[-1]
        ends = last < 2**31 if ids is None else last == len(ids) - 1
        return ends and first >= 0 and positions == list(range(first, first + len(positions)))

    positions = config.positions
    valid = isinstance(positions, list) and len(positions) == len(config.input_ids)
    _check(
        config,
        path,
        "positions",
        valid and all(map(are_valid, positions, config.input_ids)),
        f"{len(config.input_ids)} lists of positions up to the last of a context, one a context",
    )


def _check_openers(config: AnchorConfig, path: Path) -> None:
    openers = config.openers
    valid = isinstance(openers, list) and len(openers) == len(config.prompts)
    _check(
        config,
        path,
        "openers",
        valid and all(isinstance(opener, str) for opener in openers),
        f"{len(config.prompts)} texts, one a context",
    )


def max_tensor_bytes(config: AnchorConfig) -> int:
    """Largest size that the tensor file of an anchor can have."""
    size = sum(config.points_per_anchor) * config.hidden_size * 4 + _MAX_SAFETENSORS_HEADER_BYTES
    return min(size, _MAX_TENSOR_BYTES)


def _read_tensor(path: Path, config: AnchorConfig) -> torch.Tensor:
    shape = sum(config.points_per_anchor), config.hidden_size
    try:
        data = read_bounded(path, max_tensor_bytes(config))
    except ValueError as error:
        raise ValueError(f"{error} The anchor has states of shape {shape}.") from error
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
