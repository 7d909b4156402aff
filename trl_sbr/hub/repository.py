# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""To the Hub in one commit, and from it at one commit, with sizes known before anything is read."""

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from transformers.utils import logging

from ..anchors.anchor_files import CONFIG_NAME, TENSOR_NAME, write_atomically
from ..anchors.untrusted_files import decode_text
from ..trainers.hardening_record import RECORD_NAME as HARDENING_NAME
from ..trainers.run_record import RECORD_NAME, is_weights, matches_any
from .cards import CARD_NAME, EVAL_RESULTS_NAME, PICTURE_NAME, REPORT_NAME, keep_notes


logger = logging.get_logger(__name__)

# What an earlier push left and this one does not bring: figures must not stand beside a model that they were not measured on,
# nor an anchor beside one that was trained without
_OUTDATED = (CONFIG_NAME, TENSOR_NAME, REPORT_NAME, PICTURE_NAME, EVAL_RESULTS_NAME)
# Nor, beside weights that are pushed, what would be loaded with them, or in their place, and what is said of it
_OUTDATED_BY_WEIGHTS = (
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    RECORD_NAME,
    HARDENING_NAME,
    "adapter/*",
)

# What the Hub's client raises beside its own errors: of the transport, of files, and of xet
_PUSH_ERRORS = (HTTPError, OSError, RuntimeError)


def push_files(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    commit_message: str,
    finish: str,
    repo_type: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """
    Push files in one commit, or none if the repository holds them already. It names its parent: what somebody else
    pushes meanwhile is never overwritten. The notes in the card on the Hub are kept, see [`keep_notes`]; an
    anchor, a report, its picture and results there that are not among the files are removed, and by a push of weights all others,
    with their configurations and records.

    Args:
        repo_id (`str`):
            Repository, made if need be.
        files (`Mapping[str, Path | bytes]`):
            Content of each path in the repository.
        commit_message (`str`):
            Message of the commit.
        finish (`str`):
            The command that finishes the push if it fails.
        repo_type (`str`, *optional*, defaults to `"model"`):
            `"model"` or `"space"`.
        private (`bool`, *optional*):
            Whether a repository that is made is private. Defaults to the organization's setting.
        revision (`str`, *optional*):
            Branch to commit to. Defaults to `main`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead.
        token (`str`, *optional*):
            Token for the Hub. Defaults to the one of the login.

    Returns:
        [`~huggingface_hub.CommitInfo`]: The commit; the last one of the repository if there was nothing to change.

    Raises:
        OSError: If the push fails; it says what to run.
        ValueError: If the Hub finds the card's metadata invalid, or the card there, whose notes are kept, is no UTF-8.
    """
    api = HfApi(token=token)
    kwargs = {"repo_type": repo_type, "revision": revision}
    try:
        sdk = "gradio" if repo_type == "space" else None
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk).repo_id
        info = api.repo_info(repo_id, **kwargs)
        there = {sibling.rfilename for sibling in info.siblings}
        files = dict(files)
        if repo_type == "model" and CARD_NAME in there:
            old = hf_hub_download(repo_id, CARD_NAME, revision=info.sha, token=token)
            old = decode_text(Path(old).read_bytes(), f"{CARD_NAME} of `{repo_id}` on the Hub")
            files[CARD_NAME] = keep_notes(_read(files[CARD_NAME]), old).encode()
        operations = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        if repo_type == "model":
            operations += [CommitOperationDelete(path) for path in sorted(_find_outdated(there, set(files)))]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message,
            parent_commit=info.sha,
            create_pr=create_pr,
            **kwargs,
        )
    except _PUSH_ERRORS as error:
        raise OSError(f"The push to `{repo_id}` failed: {_reason(error)} To finish it, run: {finish}") from error


def _find_outdated(there: set[str], pushed: set[str]) -> set[str]:
    """What lies in a repository and must not stay beside the files that are pushed."""
    brings_weights = RECORD_NAME in pushed or any(map(is_weights, pushed))  # an anchor goes beside a model, too
    patterns = _OUTDATED + _OUTDATED_BY_WEIGHTS if brings_weights else _OUTDATED
    return {path for path in there - pushed if matches_any(path, patterns) or (brings_weights and is_weights(path))}


def _read(content: Path | bytes) -> str:
    return decode_text(content if isinstance(content, bytes) else content.read_bytes(), CARD_NAME)


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 412:
        return (
            "somebody else has pushed to it meanwhile, and nothing was overwritten. Look at what they changed; local "
            "files are as they were."
        )
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        return f"{error}\nLog in with a token that may write there (`hf auth login`, or `HF_TOKEN`)."
    if isinstance(error, RevisionNotFoundError):
        return f"{error}\nMake that branch first (`hf repo branch create`), or leave the revision out."
    return (
        f"{type(error).__name__}: {error}\nThe repository holds what it held before, or else all of this push; local "
        "files are as they were."
    )


def resolve_commit(repo_id: str, revision: str | None = None, token: str | None = None) -> str:
    """
    The commit that a revision stands for now; when the Hub is out of reach, the one it stood for last.

    Args:
        repo_id (`str`):
            Repository of a model or an anchor.
        revision (`str`, *optional*):
            Branch, tag or commit.
        token (`str`, *optional*):
            Token for the Hub. Defaults to the one of the login.

    Returns:
        `str`: 40 hexadecimal digits.

    Raises:
        OSError: If there is no such repository or revision, or it cannot be reached; it says what to do.
    """
    if re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        return revision
    # `HfApi.resolve_revision` of huggingface_hub 2, in calls that 1 has too: the cache keeps what a branch stood for last
    with _load_errors(repo_id, revision):
        folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type="model"))
        ref = folder / "refs" / (revision or constants.DEFAULT_REVISION)
        try:
            commit = HfApi(token=token).repo_info(repo_id, revision=revision).sha
        except (HTTPError, OfflineModeIsEnabled) as error:
            if isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
                raise  # the Hub has answered
            if not ref.is_file():
                raise LocalEntryNotFoundError(f"{type(error).__name__}: {error}") from error
            logger.warning(f"The Hub is out of reach ({error}): taking `{repo_id}` as the cache knows it.")
            return ref.read_text().strip()
    with contextlib.suppress(OSError):  # a cache that cannot be written
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomically({ref: commit.encode()})
    return commit


def download_file(repo_id: str, path: str, commit: str, max_bytes: int, token: str | None = None) -> Path:
    """
    A file of one commit, from the cache if it lies there. Its size is known before it is downloaded.

    Args:
        repo_id (`str`):
            Repository of a model or an anchor.
        path (`str`):
            Path in the repository.
        commit (`str`):
            The commit, see [`resolve_commit`].
        max_bytes (`int`):
            Largest size that is downloaded.
        token (`str`, *optional*):
            Token for the Hub. Defaults to the one of the login.

    Returns:
        `Path`: The file in the cache.

    Raises:
        OSError: If there is no such file, or it cannot be reached; it says what to do.
        ValueError: If the file is larger.
    """
    cached = try_to_load_from_cache(repo_id, path, revision=commit)
    if isinstance(cached, str):
        return Path(cached)
    with _load_errors(repo_id, commit):
        size = get_hf_file_metadata(hf_hub_url(repo_id, path, revision=commit), token=token, timeout=10).size
        if size is None or size > max_bytes:
            raise ValueError(
                f"`{path}` in `{repo_id}` has {size} bytes, expected at most {max_bytes}: it was not downloaded."
            )
        return Path(hf_hub_download(repo_id, path, revision=commit, token=token))


class _load_errors:
    """Turns what the Hub's client raises into errors that say what to do."""

    def __init__(self, repo_id: str, revision: str | None):
        self.repo = f"`{repo_id}`"
        self.at = f" at revision {revision}" if revision else ""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        match error:
            case HFValidationError():
                message = f"{self.repo} is neither a folder nor the id of a Hub repository (`organization/name`)."
                raise FileNotFoundError(message) from error
            case GatedRepoError():
                message = f"The Hub gives {self.repo} only to whom its owner lets in: ask there, and log in. {error}"
                raise PermissionError(message) from error
            case RevisionNotFoundError():
                raise FileNotFoundError(f"The Hub's {self.repo} has no such revision{self.at}. {error}") from error
            case RepositoryNotFoundError():
                raise FileNotFoundError(
                    f"{self.repo} is no folder, and no repository on the Hub that your login may read: check the name, "
                    f"or log in (`hf auth login`). {error}"
                ) from error
            case LocalEntryNotFoundError() | OfflineModeIsEnabled():
                raise FileNotFoundError(
                    f"{self.repo}{self.at} is no folder, is not in the Hub's cache, and the Hub is out of reach: try again "
                    f"when it is back. {error}"
                ) from error
            case EntryNotFoundError():
                raise FileNotFoundError(f"{self.repo}{self.at} lacks a file. {error}") from error
            case HTTPError() | OSError() | RuntimeError():
                message = f"Loading {self.repo}{self.at} failed: {type(error).__name__}: {error} Try again."
                raise OSError(message) from error
