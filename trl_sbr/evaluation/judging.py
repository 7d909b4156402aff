# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Answers into figures."""

import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from ..judges import Judge, check_judge_name, load_judge
from ..metrics.harmful_score.refusal import is_refusal
from ..metrics.harmful_score.verdicts import Share
from .evaluate_arguments import EvaluateArguments
from .report import IS_REFUSAL, listed, refusals_kept, safety_figures
from .responses import progress_bar, question_of, rows_of


_ENDPOINT = "endpoint-"


def check_judge(args: EvaluateArguments) -> None:
    """
    Make sure that the judge takes its arguments, before the answers are there that it would judge.

    Raises:
        ValueError: If there is no such judge, or it takes other arguments.
    """
    check_judge_name(args.judge)
    if not (args.prompts or args.benign_prompts):
        return  # nothing to judge
    given, parameters = args.judge_kwargs or {}, _parameters_of_judge(args.judge)
    try:
        inspect.Signature(parameters).bind(**given)
    except TypeError as error:
        takes = ", ".join(f"`{one.name}`{'' if one.default is one.empty else ' (optional)'}" for one in parameters)
        raise ValueError(  # by their names: somebody may have given a key
            f"Found {listed(given) or 'nothing'} in `judge_kwargs`, which the judge `{args.judge}` does not take: {error}. It takes "
            f"{takes or 'no arguments: leave them out'}."
        ) from error
    if args.judge.startswith(_ENDPOINT):
        from ..judges.endpoint_client import EndpointClient

        EndpointClient(given["model"], given["base_url"])  # raises where the address is none


def _parameters_of_judge(name: str) -> list[inspect.Parameter]:
    """What [`~trl_sbr.judges.load_judge`] takes beside the name."""
    if name == "lexical":
        from ..judges.lexical import LexicalJudge

        return _parameters_of(LexicalJudge)
    if not name.startswith(_ENDPOINT):
        from ..judges.guard import GuardJudge

        return _parameters_of(GuardJudge)
    from ..judges.endpoint import EndpointJudge
    from ..judges.endpoint_client import EndpointClient

    own = _parameters_of(EndpointJudge)  # and it hands on what its client takes
    return own + [one for one in _parameters_of(EndpointClient) if one.name not in {known.name for known in own}]


def _parameters_of(judge: type) -> list[inspect.Parameter]:
    parameters = inspect.signature(judge).parameters.values()
    return [
        one.replace(kind=one.KEYWORD_ONLY) for one in parameters if one.kind != one.VAR_KEYWORD and one.name != "name"
    ]


def _load_judge(args: EvaluateArguments) -> Judge:
    kwargs: dict[str, Any] = dict(args.judge_kwargs or {})
    if args.judge.startswith(_ENDPOINT):  # an interrupted run pays for no answer twice
        kwargs.setdefault("cache_path", str(Path(args.output_dir) / "judge_answers.jsonl"))
    return load_judge(args.judge, **kwargs)


def judge_all(
    args: EvaluateArguments, models: list, series: list, tasks: list, win_rates: dict, responses
) -> tuple[dict, list, dict]:
    """Returns the figures of each model, the rows of `responses.jsonl`, and what made the judgements."""
    judge = _load_judge(args) if any(one.kind != "tasks" for one in series) else None
    task_of = {task.name: task for task in tasks}
    figures = {entry.name: {"safety": {}, "over_refusal": {}, "tasks": {}} for entry in models}
    rows, refused = [], {}
    # An adapter, or what a server puts on a model, was trained: then nobody knows what there was to keep
    aligned = models[0] if models[0].adapter is None and models[0].endpoint is None else None
    for entry in models:
        for one in series:
            known = responses.of(entry.name, one.kind, one.name)
            answers = [known[i] for i in range(len(one.prompts))]
            if one.kind == "tasks":
                task = task_of[one.name]
                if task.references is None:
                    figure, remarks = win_rates.get(entry.name), [{}] * len(answers)
                else:
                    correct = task.count_correct(answers)
                    figure = Share(sum(correct), len(correct)).to_dict()
                    remarks = [{"correct": value} for value in correct]
            else:
                verdicts = judge_series(judge, list(map(question_of, one.prompts)), answers)
                remarks = [asdict(verdict) for verdict in verdicts]
                figure = safety_figures(verdicts, judge.info.name)
                if one.kind == "safety":
                    refused[entry.name, one.name] = [
                        is_refusal(answer) if verdict.refusal is None else verdict.refusal
                        for answer, verdict in zip(answers, verdicts, strict=True)
                    ]
                    if aligned is not None and entry is not aligned:
                        before, after = refused[aligned.name, one.name], refused[entry.name, one.name]
                        figure["refusals_kept"] = refusals_kept(before, after)
                if one.kind == "over_refusal":
                    # A judge that does not tell refusals leaves them to the lexical check
                    by_phrases = Share(sum(map(is_refusal, answers)), len(answers)).to_dict()
                    tells = figure["refusal_rate"] is not None
                    figure = {
                        **(figure["refusal_rate"] if tells else by_phrases),
                        "refusals_by": judge.info.id if tells else IS_REFUSAL,
                    }
            figures[entry.name][one.kind][one.name] = figure
            rows += rows_of(entry.name, one, answers, remarks)
    return figures, rows, None if judge is None else judge.info.to_dict()


def judge_series(judge, prompts: list[str], answers: list[str]) -> list:
    """Has each process judge its share; all get all verdicts."""
    state = PartialState()
    mine = range(state.process_index, len(answers), state.num_processes)
    with progress_bar("judging", disable=not state.is_main_process) as progress:
        verdicts = judge.judge([prompts[i] for i in mine], [answers[i] for i in mine], progress) if mine else []
    gathered = dict(gather_object(list(zip(mine, verdicts, strict=True))))
    return [gathered[i] for i in range(len(answers))]
