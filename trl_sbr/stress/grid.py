# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A grid: models × attacks × defences × seeds, and the cells that it is made of."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


ALIGNED = "aligned"  # the cell of a model that nobody attacks
BASELINE = "sft"  # the kind of the defence that is none, in whose accuracy the others' is measured


@dataclass(frozen=True)
class Cell:
    """
    One training and what is measured of it.

    Args:
        model (`str`):
            Name of the model.
        attack (`str`, *optional*):
            Name of the attack. `None`: the model is measured as it is.
        defence (`str`, *optional*):
            Name of the defence.
        seed (`int`, *optional*):
            Seed of the data, the adapter and the training.
    """

    model: str
    attack: str | None = None
    defence: str | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """The cell's name, and its folder's."""
        if self.attack is None:
            return f"{self.model}/{ALIGNED}"
        return f"{self.model}/{self.attack}/{self.defence}/seed-{self.seed}"


@dataclass
class StressArguments:
    """
    A grid, and what is done with it.

    Args:
        output_dir (`str`):
            Folder of the cells and the report. Finished cells are not run again.
        models (`dict[str, str]`):
            Folder or Hub id of each aligned model; `demo` is the aligned SmolLM2 that `trl-sbr demo` makes, and
            `demo_hardened` the same after `trl-sbr harden`.
        attacks (`dict[str, dict]`):
            Attacks by the names in the report: `kind` (by default the name), its parameters, and `training` and `num_rows`,
            where they are others than the grid's.
        defences (`dict[str, dict]`):
            Defences, in the same way.
        seeds (`list[int]`, *optional*, defaults to `[0]`):
            Seeds.
        plugins (`list[str]`, *optional*):
            Python files with further attacks and defences.
        training (`dict[str, Any]`, *optional*):
            Training arguments.
        lora (`dict[str, Any]`, *optional*):
            Fields of [`~peft.LoraConfig`].
        num_rows (`int`, *optional*):
            Number of rows to train on. Defaults to those of `max_steps` steps.
        dtype (`str`, *optional*, defaults to `"bfloat16"`):
            Dtype of the models, and whether they are trained under mixed precision.
        threads (`int`, *optional*):
            Threads of a CPU. Defaults to torch's.
        task_train (`str`, *optional*):
            A `.jsonl` file of prompt-completion rows, the user's task. Defaults to the demo's reviews.
        task_validation (`str`, *optional*):
            A `.jsonl` file of rows to measure it on. Defaults to the demo's.
        task_rule (`str`, *optional*, defaults to `"exact"`):
            How an answer to it is compared: `"exact"` or `"last_number"`.
        task_max_new_tokens (`int`, *optional*, defaults to `4`):
            Length of such an answer.
        num_prompts (`int`, *optional*, defaults to `110`):
            Number of questions that are asked plainly.
        num_subset (`int`, *optional*, defaults to `32`):
            Number of questions that are asked in each other way, and in the midst of the training.
        num_task_prompts (`int`, *optional*, defaults to `200`):
            Number of rows that the task's accuracy is measured on.
        measure_at (`list[int]`, *optional*):
            Steps after which is measured in the midst of the training.
        judge (`str`, *optional*, defaults to `"lexical"`):
            Who judges, beside the check for refusals.
        judge_kwargs (`dict`, *optional*):
            Keyword arguments of the judge.
        only (`str`, *optional*):
            Only the cells whose name holds this text, such as `/standard/`.
        shard (`str`, *optional*):
            `i/n`: only every n-th cell from the i-th, counted from 1.
        dry_run (`bool`, *optional*, defaults to `False`):
            Only say which cells there are, and how long they take.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the cells and the report. Finished cells are not run again."}
    )
    models: dict | str | None = field(default=None, metadata={"help": "Folder or Hub id of each aligned model."})
    attacks: dict | str | None = field(default=None, metadata={"help": "Attacks by name, each with its parameters."})
    defences: dict | str | None = field(default=None, metadata={"help": "Defences by name, each with its parameters."})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "Seeds."})
    plugins: list[str] = field(
        default_factory=list, metadata={"help": "Python files with further attacks and defences."}
    )
    training: dict | str | None = field(default=None, metadata={"help": "Training arguments."})
    lora: dict | str | None = field(default=None, metadata={"help": "Fields of `peft.LoraConfig`."})
    num_rows: int | None = field(
        default=None, metadata={"help": "Rows to train on. Defaults to those of `max_steps` steps."}
    )
    dtype: str = field(default="bfloat16", metadata={"help": "Dtype of the models."})
    threads: int | None = field(default=None, metadata={"help": "Threads of a CPU."})
    task_train: str | None = field(
        default=None, metadata={"help": "A .jsonl file of prompt-completion rows. Defaults to the demo's reviews."}
    )
    task_validation: str | None = field(
        default=None, metadata={"help": "A .jsonl file of rows to measure the task on. Defaults to the demo's."}
    )
    task_rule: str = field(
        default="exact",
        metadata={"help": "How an answer to the task is compared.", "choices": ["exact", "last_number"]},
    )
    task_max_new_tokens: int = field(default=4, metadata={"help": "Length of an answer to the task, in tokens."})
    num_prompts: int = field(default=110, metadata={"help": "Number of questions that are asked plainly."})
    num_subset: int = field(default=32, metadata={"help": "Number of questions that are asked in each other way."})
    num_task_prompts: int = field(default=200, metadata={"help": "Rows that the task's accuracy is measured on."})
    measure_at: list[int] = field(
        default_factory=list, metadata={"help": "Steps after which is measured in the midst of the training."}
    )
    judge: str = field(default="lexical", metadata={"help": "Who judges, beside the check for refusals."})
    judge_kwargs: dict | str | None = field(default=None, metadata={"help": "Keyword arguments of the judge."})
    only: str | None = field(default=None, metadata={"help": "Only the cells whose name holds this text."})
    shard: str | None = field(default=None, metadata={"help": "i/n: every n-th cell from the i-th, from 1."})
    dry_run: bool = field(default=False, metadata={"help": "Only say which cells there are, and how long they take."})

    def __post_init__(self):
        for name in ("models", "attacks", "defences", "training", "lora", "judge_kwargs"):
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except json.JSONDecodeError as error:
                    raise ValueError(f"`{name}` is {value!r}, expected JSON ({error}).") from error
            value = {} if value is None else value
            if not isinstance(value, dict):
                raise ValueError(f"`{name}` is {value!r}, expected a mapping.")
            setattr(self, name, value)
        for name in ("models", "attacks", "defences"):
            rows = {str(key): {} if row is None else row for key, row in getattr(self, name).items()}
            setattr(self, name, rows)
            if not rows:
                raise ValueError(f"The grid has no `{name}`: give at least one.")
            for key, row in rows.items():
                if "/" in key or (name == "attacks" and key == ALIGNED):
                    raise ValueError(f"Found `{key}` among `{name}`: a name has no `/`, and is not `{ALIGNED}`.")
                if not isinstance(row, str if name == "models" else dict):
                    raise ValueError(
                        f"`{name}: {key}` is {row!r}, expected a {'path' if name == 'models' else 'mapping'}."
                    )
        if (self.task_train is None) != (self.task_validation is None):
            raise ValueError("Found one of `task_train` and `task_validation`: give both, or neither.")
        for name in ("num_prompts", "num_subset", "num_task_prompts"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, expected 1 or more: give at least one to measure."
                )

    def all_cells(self) -> list[Cell]:
        """Returns the cells of the whole grid, of which the report is made."""
        cells = []
        for model in self.models:
            cells.append(Cell(model))
            cells += [
                Cell(model, attack, defence, seed)
                for seed in self.seeds
                for attack in self.attacks
                for defence in self.defences
            ]
        return cells

    def cells(self) -> list[Cell]:
        """Returns the cells in the order in which they are run, those of this shard and of `only`."""
        cells = [cell for cell in self.all_cells() if self.only is None or self.only in cell.name]
        if not cells:
            example = self.all_cells()[0].name
            raise ValueError(f"No cell's name holds `{self.only}` (`--only`): names are such as `{example}`.")
        first, step = parse_shard(self.shard)
        return cells[first::step]

    def describe(self, cell: Cell) -> dict[str, Any]:
        """Returns all that a cell's figures depend on."""
        shared = ("dtype", "task_train", "task_validation", "task_rule", "task_max_new_tokens")
        shared += ("num_prompts", "num_subset", "num_task_prompts", "judge", "judge_kwargs")
        settings = {name: getattr(self, name) for name in shared} | {"model": self.models[cell.model]}
        if cell.attack is None:
            return settings
        training = self.training
        for row in (self.attacks[cell.attack], self.defences[cell.defence]):
            training = training | row.get("training", {})
        return settings | {
            "attack": {"kind": cell.attack, **self.attacks[cell.attack]},
            "defence": {"kind": cell.defence, **self.defences[cell.defence]},
            "seed": cell.seed,
            "training": training,
            "lora": self.lora,
            "num_rows": self.attacks[cell.attack].get("num_rows", self.num_rows),
            "measure_at": self.measure_at,
        }

    def num_rows_of(self, cell: Cell) -> int:
        """Returns the number of rows that a cell trains on. Raises a `ValueError` where the grid does not say it."""
        settings = self.describe(cell)
        if settings["num_rows"] is not None:
            return settings["num_rows"]
        training = settings["training"]
        steps, batch = training.get("max_steps", -1), training.get("per_device_train_batch_size")
        if steps < 1 or batch is None:
            raise ValueError(
                f"`{cell.name}` has no `num_rows`, and its `training` is {training}, expected one with `max_steps` and "
                "`per_device_train_batch_size`, which say how many rows are trained on. Give these, or `num_rows`."
            )
        return steps * batch * training.get("gradient_accumulation_steps", 1)


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Returns from where, and in which steps, the cells of a shard are taken."""
    if shard is None:
        return 0, 1
    part, slash, parts = shard.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"`shard` is {shard!r}, expected `i/n` with i from 1 to n, such as `1/4`.")
    return int(part) - 1, int(parts)


def cell_folder(output_dir: str | Path, cell: Cell) -> Path:
    """Returns the folder of a cell."""
    return Path(output_dir, "cells", cell.name)
