# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""One cell: its data, its training, what it is asked, and its file."""

import copy
import gc
import json
import platform
import shutil
import subprocess
import time
from collections import Counter
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from filelock import FileLock
from peft import LoraConfig
from transformers import TrainerCallback, set_seed

from ..anchors.anchor_files import write_atomically
from ..anchors.prompts import as_messages
from ..anchors.untrusted_files import read_text
from ..demo.data import task_rows
from ..evaluation.package_index import sha256_of
from ..evaluation.report import refusals_kept
from ..evaluation.tasks import Task, load_task_file, read_task_rows
from ..judges import check_judge_name, load_judge
from ..trainers.interruption import find_last_checkpoint, list_checkpoints
from .aligned import Aligned, locate
from .attacks import check_disjoint
from .grid import Cell, StressArguments, cell_folder
from .measure import make_series, make_short_series, measure
from .run import Run, attack, defence


CELL_NAME = "cell.json"
SETTINGS_NAME = "settings.json"  # what a cell is made of, from before it is run

# What all trainings have in common, whatever a grid says
_TRAINING = {
    "logging_steps": 10,
    "logging_strategy": "steps",
    "lr_scheduler_type": "linear",
    "max_length": 512,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "steps",
    "save_steps": 20,
    "save_total_limit": 1,
    "gradient_checkpointing": False,
}


def shorten(task: Task, num_prompts: int) -> Task:
    """Returns the beginning of a task."""
    return replace(task, prompts=task.prompts[:num_prompts], references=task.references[:num_prompts])


class Bench:
    """
    What the cells of a grid share.

    Args:
        args ([`StressArguments`]):
            The grid.
    """

    def __init__(self, args: StressArguments):
        self.args = args
        self.device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
        self.versions = _versions()  # now: a checkout may change while cells are run
        self._aligned: dict[str, Aligned] = {}

    @cached_property
    def judge(self):
        return load_judge(self.args.judge, **self.args.judge_kwargs)

    @cached_property
    def task(self) -> Task:
        """The task as it is measured."""
        args = self.args
        if args.task_validation is not None:
            task = load_task_file(args.task_validation, args.task_rule, args.task_max_new_tokens)
        else:
            rows = task_rows("test", 200, seed=0)
            labels = [row["completion"][0]["content"] for row in rows]
            references = [(label, label.capitalize()) for label in labels]
            prompts = [row["prompt"] for row in rows]
            task = Task("reviews", prompts, references, "exact", args.task_max_new_tokens, "of trl_sbr")
        return shorten(task, args.num_task_prompts)

    @cached_property
    def task_rows(self) -> list[dict]:
        """The rows of the task that are trained on."""
        if self.args.task_train is None:
            return task_rows("train", 320, seed=0)
        return [row for _, row in read_task_rows(self.args.task_train)]

    def aligned(self, name: str) -> Aligned:
        """Returns a model of the grid."""
        if name not in self._aligned:
            folder = Path(self.args.output_dir, "models", name)
            self._aligned[name] = Aligned(locate(self.args.models[name]), self.args.dtype, self.device, folder)
        return self._aligned[name]

    def content_of(self, model: str) -> dict[str, Any]:
        """Returns what tells apart the contents of what a grid names: of a model, and of the task's files."""
        files = {name: getattr(self.args, name) for name in ("task_train", "task_validation")}
        return {
            "identity": self.aligned(model).identity,
            "task_files": {name: sha256_of(path) for name, path in files.items() if path is not None},
        }


def check_cells(bench: Bench, cells: list[Cell]) -> None:
    """
    Make sure, before the first of some cells is run, that the grid is whole.

    Args:
        bench ([`Bench`]):
            What the cells share.
        cells (`list[Cell]`):
            The cells.

    Raises:
        OSError: If a file of the task is not there.
        ValueError: If there is no such judge, a file of the task cannot be read, or the number of rows is not known.
    """
    check_judge_name(bench.args.judge)
    _ = bench.task, bench.task_rows
    for cell in cells:
        if cell.attack is not None:
            bench.args.num_rows_of(cell)


def read_cell(args: StressArguments, cell: Cell) -> dict[str, Any] | None:
    """
    Read a finished cell.

    Args:
        args ([`StressArguments`]):
            The grid.
        cell ([`Cell`]):
            The cell.

    Returns:
        `dict[str, Any]`, *optional*: What its file says, `None` if it is not finished.

    Raises:
        FileExistsError: If it was run, or begun, with other settings.
    """
    path = _find_record(cell_folder(args.output_dir, cell))
    if path is None:
        return None
    found = json.loads(read_text(path))
    _check_same(path, found, {"settings": args.describe(cell)}, remove=path.parent)
    return found if path.name == CELL_NAME else None


def _find_record(folder: Path) -> Path | None:
    """The file that says what a cell is made of, if it is finished, or goes on from what an interruption left."""
    if (folder / CELL_NAME).is_file():
        return folder / CELL_NAME
    is_begun = (folder / "answers").is_dir() or list_checkpoints(folder / "run")
    return folder / SETTINGS_NAME if is_begun and (folder / SETTINGS_NAME).is_file() else None


def _check_same(path: Path, found: dict[str, dict], expected: dict[str, dict], remove: Path) -> None:
    """Raises where a cell is made of something else than what is expected. What an older one does not say is not looked at."""
    for part, values in json.loads(json.dumps(expected)).items():
        for name, value in values.items() if part in found else ():
            if found[part].get(name) != value and name != "model_name_or_path":  # a folder may have been moved
                of = name if part == "settings" else f"{part}.{name}"
                raise FileExistsError(
                    f"{path} was measured with `{of}: {found[part].get(name)!r}`, which is now {value!r}. Name another "
                    f"`--output_dir`, or remove {remove}."
                )


def run_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """
    Run a cell, or go on with it, unless it is finished. Processes that share a folder wait for each other.

    Args:
        bench ([`Bench`]):
            What the cells share.
        cell ([`Cell`]):
            The cell.

    Returns:
        `dict[str, Any]`: What its file says.

    Raises:
        FileExistsError: If it was run, or begun, with other settings, another model or another task.
    """
    folder = cell_folder(bench.args.output_dir, cell)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        found = read_cell(bench.args, cell)
        if found is not None:
            return found
        aligned = None if cell.attack is None else run_cell(bench, Cell(cell.model))
        content = bench.content_of(cell.model)
        if aligned is not None:  # with whose figures this cell's are compared
            path = cell_folder(bench.args.output_dir, Cell(cell.model)) / CELL_NAME
            _check_same(path, aligned, content, remove=path.parents[1])
        made_of = {"settings": bench.args.describe(cell), **content}
        _begin(folder, made_of)
        start = time.monotonic()
        result = _measure_aligned(bench, cell, folder) if aligned is None else _attack(bench, cell, folder, aligned)
        result = {
            "cell": vars(cell),
            **made_of,
            **result,
            "judge": bench.judge.info.to_dict(),
            "versions": bench.versions,
            "machine": {
                "device": bench.device.type,
                "threads": torch.get_num_threads(),
                "processor": platform.machine(),
            },
        }
        result["seconds"]["total"] = round(time.monotonic() - start, 1)
        text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
        write_atomically({folder / CELL_NAME: text.encode()})
        shutil.rmtree(folder / "run", ignore_errors=True)  # checkpoints
        return result


def _begin(folder: Path, made_of: dict[str, dict]) -> None:
    """Writes down what a cell is made of, or makes sure that what it goes on from is made of the same."""
    path = _find_record(folder)
    if path is not None:
        _check_same(path, json.loads(read_text(path)), made_of, remove=folder)
        return
    _clear(folder)
    write_atomically({folder / SETTINGS_NAME: (json.dumps(made_of, indent=1) + "\n").encode()})


def _clear(folder: Path) -> None:
    """Removes what a cell that was cut off left, where there is nothing to go on from."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (".lock", SETTINGS_NAME):
            path.unlink()


def _measure_aligned(bench: Bench, cell: Cell, folder: Path) -> dict[str, Any]:
    start = time.monotonic()
    aligned, args = bench.aligned(cell.model), bench.args
    model = aligned.load()
    takes_system_prompts = aligned.takes_system_prompts
    series = make_series(args.num_prompts, args.num_subset, bench.task, takes_system_prompts=takes_system_prompts)
    identity = {"cell": cell.name}
    figures = measure(model, aligned.tokenizer, series, bench.task, bench.judge, folder / "answers", identity)
    return {"figures": figures, "seconds": {"evaluation": round(time.monotonic() - start, 1)}}


def make_run(bench: Bench, cell: Cell) -> Run:
    """Returns what a cell trains."""
    args = bench.args
    training = _TRAINING | {"seed": cell.seed, "bf16": args.dtype == "bfloat16", "fp16": args.dtype == "float16"}
    training |= {"use_cpu": bench.device.type == "cpu"} | args.training
    run = Run(
        bench.aligned(cell.model),
        bench.task_rows,
        args.num_rows_of(cell),
        cell.seed,
        training,
        LoraConfig(**copy.deepcopy(args.lora)),
    )
    attack.apply(cell.attack, args.attacks[cell.attack], run)
    check_disjoint(run)
    _check_system_prompts(cell, run)
    defence.apply(cell.defence, args.defences[cell.defence], run)
    return run


def _check_system_prompts(cell: Cell, run: Run) -> None:
    prompts = [row["prompt"] for row in run.rows]
    prompts += [] if run.as_attacker_asks is None else [as_messages(run.as_attacker_asks("How are you?"))]
    has_system_prompts = any(message["role"] == "system" for prompt in prompts for message in prompt)
    if has_system_prompts and not run.aligned.takes_system_prompts:
        raise ValueError(
            f"`{cell.name}` trains on system prompts, or asks under one, and the chat template of `{run.aligned.model_name_or_path}` "
            f"takes none: give the model a grid without `{cell.attack}`, or without these rows of the task."
        )


class _MeasureAt(TrainerCallback):
    """Measures after given steps, and keeps the figures: a training that is resumed has them already."""

    def __init__(self, bench: Bench, tokenizer, steps: list[int], folder: Path):
        self.bench, self.tokenizer, self.steps, self.folder = bench, tokenizer, steps, folder
        self.seconds = 0.0

    def on_step_end(self, args, state, control, model=None, **kwargs):
        path = self.folder / f"at-{state.global_step}.json"
        if state.global_step not in self.steps or path.is_file():
            return
        start = time.monotonic()
        subset = self.bench.args.num_subset
        task = shorten(self.bench.task, 2 * subset)
        answers, series = self.folder / f"answers-at-{state.global_step}", make_short_series(subset, task)
        figures = measure(model, self.tokenizer, series, task, self.bench.judge, answers, {"step": state.global_step})
        write_atomically({path: json.dumps(figures).encode()})
        self.seconds += time.monotonic() - start


def _attack(bench: Bench, cell: Cell, folder: Path, aligned: dict[str, Any]) -> dict[str, Any]:
    args, start = bench.args, time.monotonic()
    checkpoint = _last_checkpoint(folder / "run")
    if checkpoint is None:
        _clear(folder)
    run = make_run(bench, cell)
    seconds = {"preparation": round(time.monotonic() - start, 1)}
    begin = time.monotonic()
    watch = _MeasureAt(bench, run.aligned.tokenizer, args.measure_at, folder)
    run.add_callback(watch)
    set_seed(cell.seed)  # the adapter's first weights are drawn before the trainer sets it
    trainer = run.trainer_class(
        model=run.aligned.load(),
        args=run.config_class(output_dir=str(folder / "run"), **run.training),
        train_dataset=Dataset.from_list(run.rows),
        processing_class=run.aligned.tokenizer,
        peft_config=run.lora,
        **run.trainer_kwargs,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds["measured_within"] = round(watch.seconds, 1)
    seconds["training"] = round(time.monotonic() - begin - watch.seconds, 1)
    begin = time.monotonic()
    series = make_series(
        args.num_prompts, args.num_subset, bench.task, run.as_attacker_asks, run.aligned.takes_system_prompts
    )
    figures = measure(
        trainer.model, run.aligned.tokenizer, series, bench.task, bench.judge, folder / "answers", {"cell": cell.name}
    )
    for way, before in aligned["figures"]["harmful"].items():
        figures["harmful"][way]["refusals_kept"] = refusals_kept(before["refused"], figures["harmful"][way]["refused"])
    seconds["evaluation"] = round(time.monotonic() - begin, 1)
    steps, logs = trainer.state.global_step, trainer.state.log_history
    del trainer, run.trainer_kwargs
    gc.collect()
    clear_device_cache()
    return {
        "rows": dict(Counter(run.parts)),
        "steps": steps,
        "resumed": checkpoint is not None,
        "figures": figures,
        "points": {
            str(step): json.loads(read_text(folder / f"at-{step}.json"))
            for step in args.measure_at
            if (folder / f"at-{step}.json").is_file()
        },
        "logs": [
            {k: v for k, v in log.items() if k in ("step", "loss", "grad_norm", "anchor_loss", "task_loss", "term")}
            for log in logs
        ],
        "seconds": seconds,
    }


def _last_checkpoint(folder: Path) -> str | None:
    try:
        return find_last_checkpoint(folder)
    except ValueError:  # none that is whole: the training begins anew
        return None


def _versions() -> dict[str, str | None]:
    packages = ("trl_sbr", "trl", "transformers", "peft", "accelerate", "torch")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of the checkout that this file lies in, with a mark if it was changed since; `None` of a wheel."""
    git = ("git", "-C", str(Path(__file__).parent))
    try:
        found = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None
