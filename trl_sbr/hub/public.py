# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What leaves the machine: files of the folder itself, and in them no path of the machine, nor address of a server."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..anchors.anchor_files import AnchorConfig
from ..anchors.provenance import is_path, public_name
from ..anchors.untrusted_files import MAX_JSON_BYTES, decode_text, read_text
from .cards import REPORT_NAME


# What the models of a report were asked, which may begin with a slash and is no path, such as `/no_think`
_TEXTS = ("prefill", "system_prompt")


def public_config(config: AnchorConfig) -> AnchorConfig:
    """The configuration of an anchor with the name of its model as others are told it."""
    return replace(config, model_name_or_path=public_name(config.model_name_or_path))


def check_is_no_link(path: Path, folder: Path) -> None:
    """
    Check that a file of a folder is a file, and there.

    Args:
        path (`Path`):
            The file.
        folder (`Path`):
            The folder.

    Raises:
        ValueError: If it is a symbolic link, or lies in a folder that is one.
    """
    if path.resolve() != folder.resolve() / path.relative_to(folder):
        raise ValueError(
            f"{path} would be published, and is a symbolic link to {path.resolve()}. Put the file itself there, or remove "
            "the link."
        )


def without_local_paths(content: Path | bytes, name: str) -> Path | bytes:
    """
    A JSON file in which models are named as others are told them, and no server, see [`~trl_sbr.anchors.provenance.public_name`].
    In a report no other file or folder is named by its path either, see [`public_report`].

    Args:
        content (`Path` or `bytes`):
            The file, or its content.
        name (`str`):
            Its name, for errors.

    Returns:
        `Path` or `bytes`: What was passed, if it names no folder of this machine; else the new content.

    Raises:
        ValueError: If it is no JSON.
    """
    text = decode_text(content, name) if isinstance(content, bytes) else read_text(content, MAX_JSON_BYTES)
    try:
        # Not `parse_json`: the configurations of some models hold an infinite number
        value = json.loads(text)
        public = public_report(value) if Path(name).name == REPORT_NAME else _rename(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error}). Save what it belongs to again.") from error
    return content if public == value else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def public_report(report: dict[str, Any]) -> dict[str, Any]:
    """
    A report as others are told it: any path in it, of a model, a judge or a chat template, is its last part alone. A server
    is not named.
    """
    return _rename(report, all_paths=True)


def _rename(value: Any, key: str = "", all_paths: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _rename(item, key, all_paths) for key, item in value.items()}
    if isinstance(value, list):
        return [_rename(item, all_paths=all_paths) for item in value]
    if not isinstance(value, str):
        return value
    if key == "endpoint":
        return "not published"
    is_name = key.endswith("name_or_path") or (all_paths and key not in _TEXTS and is_path(value))
    return public_name(value) if is_name else value
