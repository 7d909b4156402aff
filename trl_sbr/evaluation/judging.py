# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Answers into figures."""

from dataclasses import asdict
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from ..judges import load_judge
from ..metrics.harmful_score.refusal import is_refusal
from ..metrics.harmful_score.verdicts import Share
from .evaluate_arguments import EvaluateArguments
from .report import read_alpaca_eval, refusals_kept, safety_figures
from .responses import progress_bar, question_of, rows_of


def judge_all(args: EvaluateArguments, models: list, series: list, tasks: list, responses) -> tuple[dict, list, dict]:
    """Returns the figures of each model, the rows of `responses.jsonl`, and what made the judgements."""
    judge = None
    if any(one.kind != "tasks" for one in series):
        kwargs = dict(args.judge_kwargs or {})
        if args.judge.startswith("endpoint-"):  # an interrupted run pays for no answer twice
            kwargs.setdefault("cache_path", str(Path(args.output_dir) / "judge_answers.jsonl"))
        judge = load_judge(args.judge, **kwargs)
    win_rates = {}
    if args.alpaca_eval_result is not None:
        win_rates = read_alpaca_eval(args.alpaca_eval_result, [entry.name for entry in models])
    task_of = {task.name: task for task in tasks}
    figures = {entry.name: {"safety": {}, "over_refusal": {}, "tasks": {}} for entry in models}
    rows, refused = [], {}
    aligned = models[0]  # unless it is an adapter: then nobody knows what there was to keep
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
                    if entry is not aligned and aligned.adapter is None:
                        before, after = refused[aligned.name, one.name], refused[entry.name, one.name]
                        figure["refusals_kept"] = refusals_kept(before, after)
                if one.kind == "over_refusal":
                    # A judge that does not tell refusals leaves them to the lexical check
                    by_phrases = Share(sum(map(is_refusal, answers)), len(answers)).to_dict()
                    tells = figure["refusal_rate"] is not None
                    figure = {
                        **(figure["refusal_rate"] if tells else by_phrases),
                        "refusals_by": judge.info.id if tells else "trl_sbr.is_refusal",
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
