# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""`report.json` as it is read again, wherever it came from: what a card is made of has the shape that is written here."""

from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from ..anchors.schema import Within, check_shape
from ..anchors.untrusted_files import parse_json, read_text


MAX_REPORT_BYTES = 2**22

Percent = Annotated[float, Within(0, 100)]
Count = Annotated[int, Within(0, 2**53)]


class Share(TypedDict):
    """A share of answers, see [`~trl_sbr.metrics.harmful_score.verdicts.Share`]."""

    percent: Percent
    n: Count
    wilson_95: tuple[Percent, Percent]


class WinRate(TypedDict):
    """What `alpaca_eval` found, see [`~trl_sbr.evaluation.report.read_alpaca_eval`]."""

    percent: Percent
    n: Count
    normal_95: tuple[Percent, Percent]


class SafetyFigures(TypedDict):
    """See [`~trl_sbr.evaluation.report.safety_figures`]."""

    harmful_score: Share | None
    incoherent_rate: NotRequired[Share | None]
    refusal_rate: NotRequired[Share | None]
    refusals_kept: NotRequired[Share | None]


class AdapterIdentity(TypedDict):
    """What tells an adapter from others."""

    sha256: NotRequired[str | None]


class ModelIdentity(TypedDict):
    """See [`~trl_sbr.evaluation.models.ModelEntry.identify`]."""

    sha256: NotRequired[str | None]
    adapter: NotRequired[AdapterIdentity]


class ModelFigures(TypedDict):
    """All that was measured on one model."""

    safety: NotRequired[dict[str, SafetyFigures]]
    over_refusal: NotRequired[dict[str, Share]]
    tasks: NotRequired[dict[str, Share | WinRate | None]]
    model: NotRequired[ModelIdentity]


class Source(TypedDict):
    """Where prompts or a task come from."""

    source: NotRequired[str | None]
    revision: NotRequired[str | None]


class EvaluationReport(TypedDict):
    """What `trl-sbr evaluate` writes."""

    models: dict[str, ModelFigures]
    judge: dict[str, Any] | None
    decoding: NotRequired[dict[str, Any] | None]
    prompts: dict[str, Source]


class DemoFigures(TypedDict):
    """What the demo measures on one model."""

    harmful_answered: Share
    prefilled_answered: NotRequired[Share]
    benign_refused: Share
    task_correct: Share


class DemoReport(TypedDict):
    """What `trl-sbr demo` writes."""

    results: dict[str, DemoFigures]
    judge: str
    decoding: str


def read_report(path: str | Path) -> dict[str, Any]:
    """
    Read a report.

    Args:
        path (`str` or `Path`):
            A `report.json` that `trl-sbr evaluate` or `trl-sbr demo` wrote.

    Returns:
        `dict[str, Any]`: The report.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is no report; it says where.
    """
    try:
        report = parse_json(read_text(path, MAX_REPORT_BYTES), str(path))
        is_demo = isinstance(report, dict) and "results" in report
        check_shape(report, DemoReport if is_demo else EvaluationReport, str(path))
        if not (report["results"] if is_demo else report["models"]):
            raise ValueError(f"{path}: it holds no model's figures.")
    except ValueError as error:
        raise ValueError(f"{error} Evaluate again (`trl-sbr evaluate`), or move the file elsewhere.") from error
    return report
