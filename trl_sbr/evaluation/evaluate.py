# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""One evaluation, from its arguments to its report."""

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import jinja2
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from accelerate.utils.memory import clear_device_cache

from ..anchors.adapters import load_processing_class, tokenizer_source
from ..anchors.generation import BatchSize
from ..anchors.prompts import get_chat_template
from ..anchors.untrusted_files import read_text
from ..trainers.loading import load_model_and_processing_class
from ..trainers.output_folder import lock_folder
from .evaluate_arguments import EvaluateArguments
from .judging import check_judge, judge_all
from .models import ModelEntry, check_records, resolve_models
from .prompt_sets import load_prompt_set
from .report import make_report, read_alpaca_eval, write_report
from .responses import PROMPT_FORMATS, ResponseFile, Series, ask, describe_series, progress_bar
from .served_model import ask_served_model
from .tasks import load_task, load_task_file


_OF_4_BITS = ("bnb_4bit_quant_type", "bnb_4bit_quant_storage", "use_bnb_nested_quant")


def evaluate(args: EvaluateArguments, model_args):
    """
    Asks, judges, and writes the report.

    Args:
        args ([`EvaluateArguments`]):
            What to measure, how, and where to write it.
        model_args ([`~trl.ModelConfig`]):
            The model, and how models are loaded.
    """
    # Left to itself, it takes several processes on CPUs for one, and each would do all the work
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
    check_judge(args)
    models = resolve_models(model_args.model_name_or_path, model_args.model_revision, args.adapter, args.compare)
    _check_servers_can_be_asked(args, models)
    check_records(models)
    with state.main_process_first():  # which fetches what the others find in the cache
        prompt_sets, tasks = load_data(args)
    series = make_series(args, prompt_sets, tasks)
    if not series:
        raise ValueError("Nothing to measure: give `--prompts`, `--benign_prompts`, `--tasks` or `--task_file`.")
    win_rates = read_win_rates(args, models, tasks)
    models = broadcast_object_list([entry.pinned() for entry in models])  # one commit in all processes

    start = time.monotonic()
    settings = describe(args, model_args, models, series) if state.is_main_process else {}
    output_dir = Path(args.output_dir)
    with lock_folder(output_dir, state.is_main_process, all_are_here=True):
        responses = ResponseFile(output_dir, settings)
        found = sum(map(len, responses.answers.values()))
        if found:
            state.print(f"Found {found} answers in {responses.path}: going on from there.")
        seconds = ask_all(args, model_args, models, series, responses)
        begin = time.monotonic()
        figures, rows, judge = judge_all(args, models, series, tasks, win_rates, responses)
        seconds |= {"judge": round(time.monotonic() - begin, 1), "total": round(time.monotonic() - start, 1)}
        if state.is_main_process:
            responses.finish(rows)
            sets = {data.name: data.to_dict() for data in (*prompt_sets, *tasks)}
            report = make_report(args, settings, figures, judge, sets, seconds, found, state)
            write_report(report, output_dir)
            outputs = write_alpaca_eval_outputs(tasks, models, responses, output_dir)
            if outputs and args.alpaca_eval_result is None:
                say_who_judges(outputs, output_dir)
            print(f"\nWrote report.json, report.png and responses.jsonl to {output_dir}.")  # noqa: T201
        state.wait_for_everyone()


def read_win_rates(args: EvaluateArguments, models: list[ModelEntry], tasks: list) -> dict[str, dict]:
    """Returns what `alpaca_eval` found on an earlier run's answers, by the model's name."""
    if args.alpaca_eval_result is None:
        return {}
    asked = next(len(task.prompts) for task in tasks if task.references is None)
    return read_alpaca_eval(args.alpaca_eval_result, [entry.name for entry in models], asked)


def _check_servers_can_be_asked(args: EvaluateArguments, models: list[ModelEntry]) -> None:
    served = [entry.name for entry in models if entry.endpoint is not None]
    if served and (args.prompt_format != "chat" or args.chat_template_path is not None):
        raise ValueError(
            f"Found `prompt_format={args.prompt_format}` and `chat_template_path={args.chat_template_path}` beside models on a server "
            f"({', '.join(served)}), which formats the prompts itself. Leave both out, and give the server its template."
        )


def load_data(args: EvaluateArguments) -> tuple[list, list]:
    """Loads the sets of prompts and the tasks, each cut to its first `max_prompts`."""
    prompt_sets = [
        load_prompt_set(name, benign, args.prompts_split, args.prompts_column, args.prompts_revision)
        for benign, names in ((False, args.prompts), (True, args.benign_prompts))
        for name in names
    ]
    tasks = [load_task(name) for name in args.tasks]
    if args.task_file is not None:
        tasks.append(load_task_file(args.task_file, args.task_rule))
    names = [data.name for data in (*prompt_sets, *tasks)]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ValueError(f"Two sets or tasks are called `{double.pop()}` in the report: rename one's file.")
    n = args.max_prompts
    prompt_sets = [replace(data, harmful=data.harmful[:n], benign=data.benign[:n]) for data in prompt_sets]
    tasks = [
        replace(
            task,
            prompts=task.prompts[:n],
            references=task.references and task.references[:n],
            max_new_tokens=args.task_max_new_tokens or task.max_new_tokens,
        )
        for task in tasks
    ]
    return prompt_sets, tasks


def make_series(args: EvaluateArguments, prompt_sets: list, tasks: list) -> list:
    """Returns what each model is asked."""
    series = []
    for data in prompt_sets:
        if data.harmful:
            plain = Series("safety", data.name, data.harmful, args.max_new_tokens)
            series.append(plain)
            if args.prefill is not None:
                series.append(replace(plain, name=f"{data.name}+prefill", prefill=args.prefill))
            if args.system_prompt is not None:
                name = f"{data.name}+system_prompt"
                series.append(replace(plain, name=name, system_prompt=args.system_prompt))
        if data.benign:
            series.append(Series("over_refusal", data.name, data.benign, args.max_new_tokens))
    series += [Series("tasks", task.name, task.prompts, task.max_new_tokens) for task in tasks]
    names = [f"{one.kind}/{one.name}" for one in series]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise ValueError(
            f"Found two series of prompts called `{double.pop()}`, expected one: a set has the name that another has with its "
            "prefill or system prompt. Rename its file."
        )
    return [replace(one, chat_template_kwargs=args.chat_template_kwargs) for one in series]


def describe(args: EvaluateArguments, model_args, models: list, series: list) -> dict:
    """Returns all that the answers depend on."""
    template = args.chat_template_path
    if template is not None and Path(template).is_file():
        template = read_text(template)
    # The models' own identities say more than their names, and only 4 bits have settings of their own
    left_out = ("model_name_or_path", "model_revision") + (() if model_args.load_in_4bit else _OF_4_BITS)
    return {
        "models": {
            entry.name: entry.identify() | {"chat_template": describe_chat_template(args, entry)} for entry in models
        },
        "decoding": {
            "strategy": "greedy",
            "prompt_format": args.prompt_format,
            "chat_template": template,
            "chat_template_kwargs": args.chat_template_kwargs,
            **{name: value for name, value in asdict(model_args).items() if name not in left_out},
        },
        "series": describe_series(series),
    }


def describe_chat_template(args: EvaluateArguments, entry: ModelEntry) -> dict | None:
    """Returns where the chat template comes from that a model is asked in, and its hash; `None` if it is asked without one."""
    if args.prompt_format != "chat":
        return None
    if entry.endpoint is not None:
        return {"from": "the server"}
    if args.chat_template_path is not None:
        return {"from": args.chat_template_path}
    processing_class = load_processing_class(
        entry.model_name_or_path, entry.revision, entry.adapter, args.trust_remote_code
    )
    template = get_chat_template(processing_class).encode()
    source = tokenizer_source(entry.model_name_or_path, entry.revision, entry.adapter)
    return {"from": source["pretrained_model_name_or_path"], "sha256": hashlib.sha256(template).hexdigest()}


def ask_all(args: EvaluateArguments, model_args, models: list, series: list, responses) -> dict[str, float]:
    """Has all models answer all series, and returns how long each took, in seconds."""
    seconds = {}
    try:
        for entry in models:
            begin = time.monotonic()
            ask_model(args, model_args, entry, series, responses)
            seconds[f"answers_{entry.name}"] = round(time.monotonic() - begin, 1)
    except KeyboardInterrupt:
        PartialState().print(f"\nInterrupted. Repeat the command to go on from the answers in {responses.path}.")
        raise
    return seconds


def ask_model(args: EvaluateArguments, model_args, entry, series: list, responses):
    """Loads a model, or finds it on its server, and has it answer all series, unless the answers are there already."""
    if all(len(responses.of(entry.name, one.kind, one.name)) == len(one.prompts) for one in series):
        return
    if entry.endpoint is not None:
        for one in series:
            with progress_bar(f"{entry.name}: {one.name}", disable=not PartialState().is_main_process) as progress:
                ask_served_model(entry, one, responses, progress)
        return
    model_args = replace(model_args, model_name_or_path=entry.model_name_or_path, model_revision=entry.revision)
    model, processing_class = load_model_and_processing_class(args, model_args, entry.adapter, allow_base_weights=True)
    # In float32 an adapter is merged, which is faster; in fewer bits, merging would round
    if (
        entry.adapter is not None
        and model_args.dtype == "float32"
        and not hasattr(model.config, "quantization_config")
    ):
        model = model.merge_and_unload()
    for one in series:  # all, before the first is asked: answers take hours
        _check_can_be_asked(processing_class, args.prompt_format, one)
    batch_size = BatchSize(args.batch_size)
    for one in series:
        with progress_bar(f"{entry.name}: {one.name}", disable=not PartialState().is_main_process) as progress:
            ask(model, processing_class, entry.name, one, args.prompt_format, batch_size, responses, progress)
    del model
    clear_device_cache(garbage_collection=True)


def _check_can_be_asked(processing_class, prompt_format: str, series: Series):
    try:
        PROMPT_FORMATS[prompt_format](processing_class, series)
    except jinja2.TemplateError as error:
        system_prompt = ", as with a system prompt: drop `--system_prompt`" if series.system_prompt is not None else ""
        raise ValueError(
            f"The model's chat template does not take the prompts of `{series.name}` ({error}){system_prompt}. Or give "
            "another template with `--chat_template_path`."
        ) from error


def write_alpaca_eval_outputs(tasks: list, models: list, responses, output_dir: Path) -> list[Path]:
    """Writes answers for `alpaca_eval` to judge, and returns where."""
    paths = []
    for task in tasks:
        if task.references is not None:
            continue
        for entry in models:
            answers = responses.of(entry.name, "tasks", task.name)
            outputs = [
                {"instruction": prompt.instruction, "output": answers[i], "generator": entry.name}
                for i, prompt in enumerate(task.prompts)
            ]
            path = output_dir / f"{task.name}_outputs_{entry.name}.json"
            path.write_text(json.dumps(outputs, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            paths.append(path)
    return paths


def say_who_judges(outputs: list[Path], output_dir: Path) -> None:
    """Says how `alpaca_eval` comes to judge the answers that were written for it."""
    for path in outputs:
        print(f"Next: alpaca_eval --model_outputs {path} --output_path {output_dir}")  # noqa: T201
    print("Then repeat this command with `--alpaca_eval_result LEADERBOARD.csv` to have its result in the report.")  # noqa: T201
