# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What `trl-sbr harden` says of the model that it makes, in `hardening.json` beside it: cards are made from it."""

from pathlib import Path
from typing import Annotated, TypedDict

from ..anchors.schema import Within, read_json_as


RECORD_NAME = "hardening.json"

_Percent = Annotated[float, Within(0, 100)]
_Count = Annotated[int, Within(0, 10**9)]


class _Share(TypedDict):
    percent: _Percent
    n: _Count
    wilson_95: tuple[_Percent, _Percent]


class _Figures(TypedDict):
    """By the opener behind which held-out prompts were asked, `""` for none."""

    harmful_answered: dict[str, _Share]
    benign_refused: dict[str, _Share]


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
    before: _Figures
    after: _Figures


def read_hardening(model_name_or_path: str | Path) -> HardeningRecord | None:
    """
    Read what a model was hardened with.

    Args:
        model_name_or_path (`str` or `Path`):
            The model's folder, or another name of it.

    Returns:
        [`HardeningRecord`] or `None`: The record that lies in the folder, if one does.

    Raises:
        ValueError: If it is no such record.
    """
    path = Path(model_name_or_path, RECORD_NAME)
    if not model_name_or_path or not path.is_file():  # a model that was made here has no name
        return None
    return read_json_as(HardeningRecord, path, "It is not what `trl-sbr harden` wrote: get the model again.")
