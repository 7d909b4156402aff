# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-sbr harden` says of the model that it makes, in `hardening.json` beside it: cards are made from it."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

from ..anchors.provenance import cached_commit
from ..anchors.schema import Within, read_json_as
from ..anchors.untrusted_files import MAX_JSON_BYTES


RECORD_NAME = "hardening.json"

# Flags of `trl-sbr sft` for an anchor behind openers: its contexts are many, and the loss is a mean over all their points
IN_TURN_FLAGS = "--anchors_per_step 8 --anchor_loss_coef 200"
HOLDING_FLAGS = f"--anchor_openers default {IN_TURN_FLAGS}"  # they hold what hardening has made

_Percent = Annotated[float, Within(0, 100)]
_Count = Annotated[int, Within(0, 10**9)]


class _Share(TypedDict):
    percent: _Percent
    n: _Count
    wilson_95: tuple[_Percent, _Percent]


class _Figures(TypedDict):
    """By the opener behind which held-out prompts were asked, `""` for none; and under a system prompt, if the model takes one."""

    harmful_answered: dict[str, _Share]
    benign_refused: dict[str, _Share]
    harmful_answered_under_system_prompt: NotRequired[_Share]  # nor does an older record have them
    benign_refused_under_system_prompt: NotRequired[_Share]


class _BaseModel(TypedDict):
    name_or_path: str
    revision: str | None


class _Prompts(TypedDict):
    harmful: str
    harmful_asked: _Count
    harmful_refused: _Count
    benign: str
    benign_used: _Count


class _Adapter(TypedDict):
    peft_type: str


class HardeningRecord(TypedDict):
    """What `hardening.json` holds."""

    base_model: _BaseModel
    prompts: _Prompts
    peft: _Adapter | None
    training: dict[str, str | int]
    versions: dict[str, str]
    seconds: _Count
    judge: str
    decoding: str
    files: NotRequired[dict[str, str]]  # an older record names none
    before: _Figures
    after: _Figures


def name_figures(figures: _Figures, quote: Callable[[str], str]) -> dict[str, _Share]:
    """
    Name the figures of a model in words.

    Args:
        figures (`dict[str, Any]`):
            Those before or after.
        quote (`Callable[[str], str]`):
            How an opener is shown.

    Returns:
        `dict[str, dict[str, Any]]`: The shares, by what they are of.
    """
    named = {}
    for kind in ("harmful_answered", "benign_refused"):
        words = kind.replace("_", " ")
        for opener, share in figures[kind].items():
            named[f"{words}, behind {quote(opener)}" if opener else words] = share
        if (share := figures.get(f"{kind}_under_system_prompt")) is not None:
            named[f"{words}, under an unseen system prompt"] = share
    return named


def read_hardening(model_name_or_path: str | Path, revision: str | None = None) -> HardeningRecord | None:
    """
    Read what a model was hardened with.

    Args:
        model_name_or_path (`str` or `Path`):
            The model's folder, its id on the Hub, from where it was loaded, or another name of it.
        revision (`str`, *optional*):
            Branch, tag or commit of the Hub that was loaded, see [`~trl_sbr.anchors.provenance.cached_commit`].

    Returns:
        [`HardeningRecord`] or `None`: The record that lies beside the model. `None` if there is none, or the Hub does not hand
        it out.

    Raises:
        ValueError: If it is no such record.
    """
    path = Path(model_name_or_path, RECORD_NAME)
    commit = cached_commit(str(model_name_or_path), revision)
    if commit is not None:
        from ..hub.repository import download_file

        try:
            path = download_file(str(model_name_or_path), RECORD_NAME, commit, MAX_JSON_BYTES)
        except OSError:
            return None
    if not model_name_or_path or not path.is_file():  # a model that was made here has no name
        return None
    return read_json_as(HardeningRecord, path, "It is not what `trl-sbr harden` wrote: get the model again.")
