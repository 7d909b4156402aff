# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Where things come from: the paper, and the Hub's names and commits of models and datasets."""

import os
import re
import textwrap
from pathlib import Path, PureWindowsPath

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name


PAPER = {
    "title": "Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks",
    "id": "2605.05995",
    # docstyle-ignore
    "citation": textwrap.dedent("""\
        @inproceedings{lu2026safetyanchor,
            title        = {{Safety Anchor: Defending Harmful Fine-tuning via Geometric Bottlenecks}},
            author       = {Lu and Sha and Wang and Sun and Zhou and Dai and Xiao},
            year         = 2026,
            booktitle    = {International Conference on Machine Learning},
            eprint       = {arXiv:2605.05995},
        }"""),
}


def is_hub_id(name: str | None) -> bool:
    """Whether a model or dataset is named by a Hub id, `organization/name`, and not by a file or folder."""
    return bool(name) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not os.path.exists(name)


def is_path(text: str) -> bool:
    """Whether a text is a path: one that is absolute, begins at the home or working folder, or leads to what is there."""
    begins_as_one = re.fullmatch(r"(/|[.]{1,2}[/\\]|~[/\\]|[A-Za-z]:[/\\]|\\\\)[^\n]+", text) is not None
    return begins_as_one or ("/" in text and os.path.exists(text))


def public_name(name_or_path: str) -> str:
    """The name under which others are told of a model: its Hub id; of a folder the last part of its path alone."""
    cached = re.search(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]", name_or_path)
    if cached is not None:
        return f"{cached[1]}/{cached[2]}"
    return name_or_path if is_hub_id(name_or_path) else PureWindowsPath(name_or_path).name or name_or_path


def cached_commit(model_name_or_path: str, revision: str | None = None) -> str | None:
    """
    Commit of a model that was loaded from the Hub, as far as the cache knows it.

    Args:
        model_name_or_path (`str`):
            Name of the model.
        revision (`str`, *optional*):
            Branch, tag or commit that was loaded. Where nobody knows, the commit is known if the cache holds no other.

    Returns:
        `str` or `None`: The commit. `None` if it is not known, or the model is a folder.
    """
    if not model_name_or_path or os.path.isdir(model_name_or_path):
        return None
    if revision is None:
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model_name_or_path, repo_type="model"))
        commits = [path.parent.name for path in folder.glob("snapshots/*/config.json")]
        return commits[0] if len(commits) == 1 else None
    try:
        path = try_to_load_from_cache(model_name_or_path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(path).parent.name if isinstance(path, str) else None
