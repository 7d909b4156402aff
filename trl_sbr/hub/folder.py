# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The folder that a training or a capture leaves: its card, and what of it is published."""

import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from ..anchors.anchor_files import (
    CONFIG_NAME,
    AnchorConfig,
    anchor_to_files,
    sha256_hex,
    write_atomically,
)
from ..anchors.safety_anchor import SafetyAnchor
from ..anchors.untrusted_files import read_text
from ..evaluation.models import ModelEntry
from ..evaluation.report_file import read_report
from ..trainers.hardening_record import RECORD_NAME as HARDENING_NAME
from ..trainers.hardening_record import HardeningRecord, read_hardening
from ..trainers.run_record import (
    ADAPTER_WEIGHTS,
    MODEL_WEIGHTS,
    RECORD_NAME,
    check_files,
    check_folder,
    find_weights,
    matches_any,
    record_to_bytes,
)
from .cards import (
    CARD_NAME,
    EVAL_RESULTS_NAME,
    PICTURE_NAME,
    REPORT_NAME,
    eval_results_yaml,
    keep_notes,
    own_model,
    render_anchor_card,
    render_hardened_card,
    render_model_card,
)
from .public import check_is_no_link, public_config, public_report, without_local_paths
from .repository import push_files


# Weights, configuration and tokenizer. Whatever else lies there stays there: training arguments (a pickle), checkpoints, the
# optimizer's state, training data, prompts
_PUBLISHED = (
    *ADAPTER_WEIGHTS,
    *MODEL_WEIGHTS,
    "adapter_config.json",
    "config.json",
    "generation_config.json",
    "added_tokens.json",
    "additional_chat_templates/*.jinja",
    "chat_template.*",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_WITH_NAMES_OF_MODELS = (
    "adapter_config.json",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    HARDENING_NAME,
    REPORT_NAME,
)


def _read_report(folder: Path, repo_id: str) -> tuple[dict[str, Any] | None, str | None]:
    """The report that lies in a folder, as others are told it, and its column that was measured on the folder or repository."""
    path = folder / REPORT_NAME
    if not path.exists():
        return None, None
    report = read_report(path)
    return public_report(report), own_model(report, ModelEntry("", str(folder)).identify()["sha256"], repo_id)


def _pictures(folder: Path) -> tuple[str, ...]:
    return (PICTURE_NAME,) if (folder / PICTURE_NAME).is_file() else ()


def _with_notes(card: str, folder: Path) -> str:
    path = folder / CARD_NAME
    return keep_notes(card, read_text(path)) if path.exists() else card


def write_card(folder: Path, repo_id: str, run: dict[str, Any], anchor: AnchorConfig | None) -> None:
    """
    Write the card of an adapter or model. The notes of a person in the card that lies there are kept.

    Args:
        folder (`Path`):
            Where to write it.
        repo_id (`str`):
            Repository that it is for, or the folder's name.
        run (`dict[str, Any]`):
            The run's record.
        anchor (`AnchorConfig`, *optional*):
            Configuration of the anchor that was trained with.
    """
    report, own = _read_report(folder, repo_id)
    card = render_model_card(run, repo_id, anchor, report, own, _pictures(folder) if report else ())
    write_atomically({folder / CARD_NAME: _with_notes(card, folder).encode()})


def write_hardened_cards(folder: Path, repo_id: str, record: HardeningRecord) -> None:
    """
    Write the card of a hardened model, and that of the adapter in its `adapter/`, if there is one.

    Args:
        folder (`Path`):
            The model's folder.
        repo_id (`str`):
            Repository that it is for, or the folder's name.
        record ([`HardeningRecord`]):
            What it was hardened with.
    """
    write_atomically({folder / name: card for name, card in _hardened_cards(folder, repo_id, record).items()})


def _hardened_cards(folder: Path, repo_id: str, record: HardeningRecord) -> dict[str, bytes]:
    cards = {CARD_NAME: _with_notes(render_hardened_card(record, repo_id), folder)}
    adapter = folder / "adapter"
    if adapter.is_dir():  # PEFT has left a card without content there
        card = render_hardened_card(record, f"{repo_id}/adapter", is_adapter=True)
        cards[f"adapter/{CARD_NAME}"] = _with_notes(card, adapter)
    return {name: card.encode() for name, card in cards.items()}


def collect_files(folder: Path, repo_id: str, with_prompts: bool = True) -> dict[str, Path | bytes]:
    """
    What of a folder is published.

    Args:
        folder (`Path`):
            The output folder of a training, of a hardening, or that of an anchor.
        repo_id (`str`):
            Repository that it is for.
        with_prompts (`bool`, *optional*, defaults to `True`):
            Whether the anchor's prompts and token ids are published.

    Returns:
        `dict[str, Path | bytes]`: The content of each path in the repository.

    Raises:
        FileNotFoundError: If the folder holds neither a trained or hardened model or adapter nor an anchor, or lacks a part of
            it.
        ValueError: If a part of it is corrupted, is a symbolic link, or is of another training, see
            [`~trl_sbr.trainers.run_record.check_files`].
    """
    hardening = read_hardening(folder)
    if hardening is not None and not (folder / RECORD_NAME).is_file():
        return _collect_hardened(folder, repo_id, hardening)
    is_trained = bool(find_weights(folder)) or (folder / RECORD_NAME).is_file()
    run = check_folder(folder) if is_trained else None
    anchor = None
    files: dict[str, Path | bytes] = {}
    if (folder / CONFIG_NAME).is_file():
        anchor = SafetyAnchor.from_pretrained(folder)
        if anchor.has_prompts and not with_prompts:
            anchor = anchor.without_prompts()
        anchor.config = public_config(anchor.config)
        files |= anchor_to_files(anchor.config, anchor.hidden_states)
    if run is None:
        if anchor is None:
            raise FileNotFoundError(
                f"{folder} holds neither a trained adapter or model nor a safety anchor. Name the folder that `trl-sbr sft`, "
                "`trl-sbr harden` or `trl-sbr anchor` wrote."
            )
        card = _with_notes(render_anchor_card(anchor.config, repo_id), folder)
        return {**files, CARD_NAME: card.encode()}
    in_subfolders = _find_in_subfolders(run["files"])
    if not find_weights(folder) and not in_subfolders:
        raise FileNotFoundError(
            f"{folder} holds no weights (`adapter_model.safetensors`, `model.safetensors`): the training has not been saved."
        )
    if (run["anchor"] is None) != (anchor is None):
        raise ValueError(
            f"{folder / RECORD_NAME} says that the training had {'no' if anchor is not None else 'a'} safety anchor, and "
            f"that it saved {'none' if anchor is None else 'one'}: it is not the record of a training."
        )
    published = _find_published(folder, in_subfolders)
    report, own = _read_report(folder, repo_id)
    pictures = _pictures(folder) if report else ()
    card = render_model_card(run, repo_id, anchor and anchor.config, report, own, pictures)
    files |= {**published, CARD_NAME: _with_notes(card, folder).encode()}
    if report is not None:
        files |= {name: folder / name for name in (REPORT_NAME, *pictures)}
        results = eval_results_yaml(report, own)
        files |= {EVAL_RESULTS_NAME: results.encode()} if results else {}
    files = _without_links_and_paths(files, folder)
    # Last, of what is published: prompts and paths of this machine may have been taken out
    changed = {name: sha256_hex(files[name]) for name in run["files"] if isinstance(files.get(name), bytes)}
    record = record_to_bytes({**run, "files": {**run["files"], **changed}})
    files[RECORD_NAME] = without_local_paths(record, RECORD_NAME)
    return files


def _collect_hardened(folder: Path, repo_id: str, record: HardeningRecord) -> dict[str, Path | bytes]:
    """What `trl-sbr harden` left: the model, the adapter alone, their record and a card of each."""
    if "files" not in record:
        raise ValueError(
            f"{folder / HARDENING_NAME} is of an earlier release and names no SHA-256 of the weights beside it, expected `files`: harden "
            "the model again."
        )
    check_files(folder, record["files"], HARDENING_NAME)
    files = _find_published(folder, _find_in_subfolders(record["files"]))
    cards = _hardened_cards(folder, repo_id, record)
    return _without_links_and_paths({**files, HARDENING_NAME: folder / HARDENING_NAME, **cards}, folder)


def _find_in_subfolders(names: Iterable[str]) -> list[str]:
    """The weights of adapters that have a name, of the files that a record names."""
    return [name for name in names if re.fullmatch(rf"\w[\w.-]*/{ADAPTER_WEIGHTS[0]}", name)]


def _find_published(folder: Path, in_subfolders: list[str]) -> dict[str, Path]:
    """Weights, configuration and tokenizer, and those weights of adapters that lie in a folder of their name."""
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    published = [path for path in paths if matches_any(path, _PUBLISHED)]
    for weights in in_subfolders:
        published += [weights, weights.replace(ADAPTER_WEIGHTS[0], "adapter_config.json")]
    return {path: folder / path for path in published}


def _without_links_and_paths(files: dict[str, Path | bytes], folder: Path) -> dict[str, Path | bytes]:
    """The same, without paths of this machine. A symbolic link is an error."""
    public = {}
    for name, content in files.items():
        if isinstance(content, Path):
            check_is_no_link(content, folder)
        has_names = Path(name).name in _WITH_NAMES_OF_MODELS  # in subfolders too
        public[name] = without_local_paths(content, name) if has_names else content
    return public


def push_folder(
    folder: Path,
    repo_id: str,
    commit_message: str,
    with_prompts: bool = True,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> CommitInfo:
    """
    Push what of a folder is published in one commit, see [`collect_files`] and [`~trl_sbr.hub.repository.push_files`].

    Raises:
        OSError: If the push fails, or the folder lacks a part; it says what to do.
        ValueError: If a file is corrupted, or the Hub finds the card's metadata invalid.
    """
    finish = ["trl-sbr", "push", "--output_dir", str(folder), "--repo_id", repo_id]
    finish += ["--private"] if private else []
    finish += [] if with_prompts else ["--no_prompts"]
    finish += ["--revision", revision] if revision else []
    finish += ["--create_pr"] if create_pr else []
    return push_files(
        repo_id,
        collect_files(folder, repo_id, with_prompts),
        commit_message=commit_message,
        finish=shlex.join(finish),
        private=private,
        revision=revision,
        create_pr=create_pr,
        token=token,
    )
