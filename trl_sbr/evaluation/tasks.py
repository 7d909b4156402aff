# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Tasks whose accuracy tells whether a model is still useful.

Prompts, sizes, answer lengths and rules are those of the git-disl papers (read in `git-disl/Booster`, `sst2/`, `agnews/`,
`gsm8k/` and `alpaca/pred_eval.py`), from whose line the paper's fine-tuning accuracy comes.
"""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ..anchors.prompts import Messages, as_messages
from ..anchors.untrusted_files import parse_json, read_text, split_lines
from .prompt_sets import read_hub_file, sha256_of_prompts


@dataclass(frozen=True)
class Instruction:
    """
    A request in two parts, which the Alpaca format keeps apart.

    Args:
        instruction (`str`):
            What to do.
        input (`str`, *optional*, defaults to `""`):
            What to do it to.
    """

    instruction: str
    input: str = ""


@dataclass(frozen=True)
class Task:
    """
    Prompts with the answers that are right.

    Args:
        name (`str`):
            Name in reports.
        prompts (`list[Instruction | list[dict[str, str]]]`):
            What is asked.
        references (`list[tuple[str, ...]]`, *optional*):
            The right answers to each prompt. `None`: somebody else judges the answers.
        rule (`str`, *optional*):
            How an answer is compared with them: one of [`RULES`].
        max_new_tokens (`int`):
            Length of an answer, in tokens, at which it is cut.
        source (`str`):
            Where the prompts come from.
        revision (`str`, *optional*):
            Commit of the source.
    """

    name: str
    prompts: list[Instruction | Messages]
    references: list[tuple[str, ...]] | None
    rule: str | None
    max_new_tokens: int
    source: str
    revision: str | None = None

    def count_correct(self, answers: list[str]) -> list[bool]:
        """Returns of each answer whether it is right."""
        return [
            any(RULES[self.rule](answer, reference) for reference in references)
            for answer, references in zip(answers, self.references, strict=True)
        ]

    def to_dict(self) -> dict:
        """Returns all about the task but the prompts, which their SHA-256 stands for."""
        return {
            "n": len(self.prompts),
            "sha256": sha256_of_prompts([self.prompts, self.references]),
            "rule": self.rule,
            "max_new_tokens": self.max_new_tokens,
            "source": self.source,
            "revision": self.revision,
        }


def last_number(text: str) -> Decimal | None:
    """
    Returns the number that an answer ends in: the first after "The final answer is:", else the last one of all.

    Args:
        text (`str`):
            An answer. Commas in numbers do not matter.
    """
    text = text.replace(",", "")
    conclusion = text.partition("The final answer is: ")[2]
    for part, position in ((conclusion, 0), (text, -1)):
        numbers = re.findall(r"-?\d+(?:\.\d+)?", part)
        if numbers:
            return Decimal(numbers[position])  # a float would take all numbers of 400 digits for one
    return None


RULES: dict[str, Callable[[str, str], bool]] = {
    "exact": lambda answer, reference: answer.strip() == reference,
    "last_number": lambda answer, reference: last_number(answer) == last_number(reference),
}


def _sst2() -> Task:
    repo, revision = "stanfordnlp/sst2", "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"
    rows = read_hub_file(repo, "data/validation-00000-of-00001.parquet", revision)
    return make_sst2(rows, f"Hub, {repo}, validation", revision)


def make_sst2(rows: list[dict], source: str, revision: str | None = None) -> Task:
    """Makes SST-2 of rows with `sentence` and `label`: the first 1000, which are all 872 of the validation split."""
    instruction = "Analyze the sentiment of the input, and respond only positive or negative"
    rows = rows[:1000]
    return Task(
        "sst2",
        [Instruction(instruction, row["sentence"]) for row in rows],
        [("positive", "Positive") if row["label"] else ("negative", "Negative") for row in rows],
        "exact",
        200,
        source,
        revision,
    )


def _agnews() -> Task:
    repo, revision = "fancyzhx/ag_news", "eb185aade064a813bc0b7f42de02595523103ca4"
    rows = read_hub_file(repo, "data/test-00000-of-00001.parquet", revision)
    return make_agnews(rows, f"Hub, {repo}, test", revision)


def make_agnews(rows: list[dict], source: str, revision: str | None = None) -> Task:
    """Makes AG News of rows with `text` and `label`: the first 1000."""
    labels = [("World", "world"), ("Sports", "sports"), ("Business", "business"), ("Sci/Tech", "sci")]
    instruction = (
        "Categorize the news article given in the input into one of the 4 categories:\n\nWorld\nSports\nBusiness\n"
        "Sci/Tech\n"
    )
    rows = rows[:1000]
    prompts = [Instruction(instruction, row["text"]) for row in rows]
    return Task("agnews", prompts, [labels[row["label"]] for row in rows], "exact", 200, source, revision)


def _gsm8k() -> Task:
    repo, revision = "openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
    rows = read_hub_file(repo, "main/test-00000-of-00001.parquet", revision)
    return make_gsm8k(rows, f"Hub, {repo}, main, test", revision)


def make_gsm8k(rows: list[dict], source: str, revision: str | None = None) -> Task:
    """Makes GSM8K of rows with `question` and `answer`: the first 1000."""
    rows = rows[:1000]
    references = [(row["answer"].replace("####", "The final answer is: "),) for row in rows]
    prompts = [Instruction(row["question"]) for row in rows]
    return Task("gsm8k", prompts, references, "last_number", 200, source, revision)


def _alpaca_eval() -> Task:
    repo, revision = "tatsu-lab/alpaca_eval", "4c70e0d7945730c851d7e43959a080663886c68e"
    rows = read_hub_file(repo, "alpaca_eval.json", revision)
    # The last 104 of 805, as there
    prompts = [Instruction(row["instruction"]) for row in rows[701:]]
    return Task("alpaca_eval", prompts, None, None, 256, f"Hub, {repo}", revision)


TASKS: dict[str, Callable[[], Task]] = {
    "agnews": _agnews,
    "alpaca_eval": _alpaca_eval,
    "gsm8k": _gsm8k,
    "sst2": _sst2,
}


def load_task(name: str) -> Task:
    """
    Load a task.

    Args:
        name (`str`):
            One of [`TASKS`].

    Returns:
        [`Task`]: The task.

    Raises:
        ValueError: If there is no such task.
        ConnectionError: If it cannot be fetched.
    """
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"Did you mean `{close[0]}`? " if close else ""
        raise ValueError(
            f"`{name}` is no task. {hint}There are {', '.join(f'`{known}`' for known in TASKS)}; or give a file of "
            "your own with `--task_file FILE --task_rule RULE`."
        )
    return TASKS[name]()


def load_task_file(path: str, rule: str, max_new_tokens: int = 200) -> Task:
    """
    Load a task from a file.

    Args:
        path (`str`):
            A `.jsonl` file whose rows have a `prompt` and a `completion`, each a string or messages.
        rule (`str`):
            `"exact"`: the answer is the completion, whose first letter may be in either case. `"last_number"`: the last
            number of both is the same.
        max_new_tokens (`int`, *optional*, defaults to `200`):
            Length of an answer, in tokens, at which it is cut.

    Returns:
        [`Task`]: The task, named after the file.

    Raises:
        ValueError: If a row cannot be read, or there is none.
    """
    file = Path(path)
    if rule not in RULES:
        raise ValueError(f"`{rule}` is no rule (`task_rule`). There are {', '.join(f'`{known}`' for known in RULES)}.")
    prompts, references = [], []
    for where, row in read_task_rows(path):
        prompts.append(row["prompt"])
        completion = row["completion"][-1]["content"].strip()
        if rule == "last_number" and last_number(completion) is None:
            raise ValueError(f"{where}: expected a number in the completion, found {completion!r}.")
        cases = {completion, completion[:1].upper() + completion[1:], completion[:1].lower() + completion[1:]}
        references.append(tuple(sorted(cases)) if rule == "exact" else (completion,))
    return Task(file.stem, prompts, references, rule, max_new_tokens, f"file, {file.name}")


def read_task_rows(path: str) -> list[tuple[str, dict[str, Messages]]]:
    """
    Read the rows of a task's file.

    Args:
        path (`str`):
            A `.jsonl` file whose rows have a `prompt` and a `completion`, each a string or messages.

    Returns:
        `list[tuple[str, dict[str, list[dict[str, str]]]]]`: Of each row its place, for errors, and both as messages.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row cannot be read, or there is none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no task file `{path}` (looked from {Path.cwd()}).")
    rows = []
    for number, line in split_lines(read_text(path)):
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        try:
            prompt, completion = as_messages(row["prompt"]), row["completion"]
            if isinstance(completion, str):
                completion = [{"role": "assistant", "content": completion}]
            answer = completion[-1]["content"]
            if not isinstance(answer, str) or not answer.strip():
                raise TypeError(f"the completion is {repr(answer)[:200]}")
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{where}: expected a row with `prompt` and `completion`, each a string or messages "
                f"({type(error).__name__}: {error})."
            ) from error
        rows.append((where, {"prompt": prompt, "completion": completion}))
    if not rows:
        raise ValueError(f"The task file `{path}` is empty.")
    return rows
