# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What a cell trains: an attack fills it, a defence changes it, and both are functions that a name in a grid stands for."""

import difflib
import importlib.util
import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from ..anchors.prompts import Messages
from .aligned import Aligned


@dataclass
class Run:
    """
    One training.

    Args:
        aligned ([`~trl_sbr.stress.aligned.Aligned`]):
            The model before it, and what it says.
        task_rows (`list[dict]`):
            Prompt-completion rows of the user's task.
        num_rows (`int`):
            Number of rows to train on.
        seed (`int`):
            Seed of all that is drawn.
        training (`dict[str, Any]`):
            Training arguments.
        lora ([`~peft.LoraConfig`]):
            The adapter that is trained.
        rows (`list[dict]`, *optional*):
            Prompt-completion rows to train on.
        parts (`list[str]`, *optional*):
            Of each row, the part that it is of, for the record.
        trainer_class (`type`, *optional*, defaults to [`~trl.SFTTrainer`]):
            Who trains.
        config_class (`type`, *optional*, defaults to [`~trl.SFTConfig`]):
            What holds its training arguments.
        trainer_kwargs (`dict[str, Any]`, *optional*):
            Further arguments of the trainer.
        as_attacker_asks (`Callable[[str], str | list[dict[str, str]]]`, *optional*):
            How the attacker asks the trained model a question, if not plainly.
    """

    aligned: Aligned
    task_rows: list[dict]
    num_rows: int
    seed: int
    training: dict[str, Any]
    lora: LoraConfig
    rows: list[dict] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    trainer_class: type[SFTTrainer] = SFTTrainer
    config_class: type[SFTConfig] = SFTConfig
    trainer_kwargs: dict[str, Any] = field(default_factory=dict)
    as_attacker_asks: Callable[[str], str | Messages] | None = None

    def share_of_rows(self, ratio: float) -> int:
        """Returns the number of rows that a ratio of all is."""
        return round(ratio * self.num_rows)

    def compose(self, **parts: list[dict]) -> None:
        """Makes the rows of an attack of its parts, with the task for all the rest, and shuffles them."""
        labelled = [(row, name) for name, part in parts.items() for row in part]
        missing = self.num_rows - len(labelled)
        if missing < 0:
            raise ValueError(
                f"Found {len(labelled)} rows of {', '.join(parts)}, expected at most {self.num_rows} in all."
            )
        labelled += [(self.task_rows[i % len(self.task_rows)], "task") for i in range(missing)]
        random.Random(self.seed).shuffle(labelled)
        self.rows, self.parts = map(list, zip(*labelled, strict=True))

    def replace_rows(self, name: str, rows: list[dict]) -> None:
        """Puts rows of a defence where rows of the attack stood, spread over all: as many are trained on as before."""
        rng = random.Random(self.seed + 1)
        for position, row in zip(rng.sample(range(len(self.rows)), len(rows)), rows, strict=True):
            self.rows[position], self.parts[position] = row, name

    def drop_rows(self, is_dropped: list[bool]) -> None:
        """Puts further rows of the task where a defence takes rows away: as many are trained on as before."""
        used = self.parts.count("task")
        for number, position in enumerate(compress(range(len(self.rows)), is_dropped)):
            row = self.task_rows[(used + number) % len(self.task_rows)]
            self.rows[position], self.parts[position] = row, f"instead of {self.parts[position]}"

    def add_callback(self, callback) -> None:
        """Has a [`~transformers.TrainerCallback`] look on."""
        self.trainer_kwargs.setdefault("callbacks", []).append(callback)


@dataclass(frozen=True)
class Entry:
    """An attack or a defence: the function that changes a [`Run`], and where it comes from."""

    apply: Callable[..., None]
    source: str


class Registry(dict[str, Entry]):
    """
    Attacks, or defences, by their names. Called, it is the decorator that adds one.

    Args:
        kind (`str`):
            What it holds, for errors.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __call__(self, name: str, source: str) -> Callable:
        def add(function):
            if name in self and self[name].apply.__module__ != function.__module__:
                raise ValueError(f"There is a {self.kind} `{name}` already: give yours another name.")
            self[name] = Entry(function, source)
            return function

        return add

    def check(self, name: str, spec: dict[str, Any]) -> None:
        """
        Make sure that a row of a grid names one, and that it takes the parameters given.

        Args:
            name (`str`):
                The row's name, and the entry's if the row has no `kind`.
            spec (`dict[str, Any]`):
                The row.

        Raises:
            ValueError: If it does not.
        """
        kind, _, parameters = split_row(name, spec)
        if kind not in self:
            close = difflib.get_close_matches(kind, self, n=1)
            hint = f"Did you mean `{close[0]}`? " if close else ""
            raise ValueError(
                f"`{kind}` is no {self.kind}. {hint}There are {', '.join(f'`{known}`' for known in self)}."
            )
        signature = inspect.signature(self[kind].apply)
        try:
            signature.bind(None, **parameters)
        except TypeError as error:
            raise ValueError(f"The {self.kind} `{name}`: {error}. `{kind}` takes {signature}.") from error

    def apply(self, name: str, spec: dict[str, Any], run: Run) -> None:
        """Applies the one that a row names to a run."""
        kind, training, parameters = split_row(name, spec)
        run.training |= training
        self[kind].apply(run, **parameters)


def split_row(name: str, spec: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Returns of a grid's row the name of the entry, the training arguments that it sets, and the entry's parameters."""
    parameters = dict(spec)
    kind, training, _ = parameters.pop("kind", name), parameters.pop("training", {}), parameters.pop("num_rows", None)
    return kind, training, parameters


attack, defence = Registry("attack"), Registry("defence")


def load_plugins(paths: list[str]) -> None:
    """
    Load the attacks and defences that come with the package, and those in files.

    Args:
        paths (`list[str]`):
            Python files, which add theirs with [`attack`] and [`defence`].

    Raises:
        FileNotFoundError: If there is no such file.
    """
    from . import attacks, defences  # noqa: F401

    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no file `{path}` (`plugins`, looked from {Path.cwd()}).")
        spec = importlib.util.spec_from_file_location(Path(path).stem, path)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
