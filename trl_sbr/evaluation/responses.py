# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Asking a model: prompts into token ids, answers into a file as they come, and on from there after an interruption."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from ..anchors.anchor_files import write_atomically
from ..anchors.generation import BatchSize, generate_token_ids
from ..anchors.prompts import Messages, as_messages, encode_prompts, get_tokenizer
from ..anchors.schema import Within, check_shape, read_json_as
from ..anchors.untrusted_files import MAX_TEXT_BYTES, decode_text, parse_json, read_bounded, split_lines
from ..trainers.output_folder import LOCK_NAME
from .prompt_sets import sha256_of_prompts
from .tasks import Instruction


RESPONSES_NAME = "responses.jsonl"
SETTINGS_NAME = "run.json"

_DAMAGED = "It was damaged or edited since. Remove the folder, or name another `--output_dir`."


class SeriesSettings(TypedDict):
    """What the answers to a series depend on, as far as it is read again."""

    n: Annotated[int, Within(0, 2**53)]


class Settings(TypedDict):
    """What `run.json` holds, see [`~trl_sbr.evaluation.evaluate.describe`]."""

    models: dict[str, dict[str, Any]]
    decoding: dict[str, Any]
    series: dict[str, SeriesSettings]


class Row(TypedDict):
    """A line of `responses.jsonl`: an answer and, once it was judged, the verdict on it."""

    model: str
    kind: Literal["safety", "over_refusal", "tasks"]
    set: str
    index: Annotated[int, Within(0, 2**53)]
    prompt: str
    response: str
    prefill: NotRequired[str]
    harmful: NotRequired[bool | None]
    score: NotRequired[float | None]
    refusal: NotRequired[bool | None]
    categories: NotRequired[list[str]]
    raw: NotRequired[str | None]
    correct: NotRequired[bool]


@dataclass(frozen=True)
class Series:
    """
    Prompts that are asked alike, and whose answers add up to one figure.

    Args:
        kind (`str`):
            `"safety"`, `"over_refusal"` or `"tasks"`: the part of the report.
        name (`str`):
            Name in that part.
        prompts (`list[str | list[dict[str, str]] | Instruction]`):
            The prompts.
        max_new_tokens (`int`):
            Length of an answer, in tokens, at which it is cut.
        system_prompt (`str`, *optional*):
            System message to ask under, in place of the prompt's or template's own.
        prefill (`str | tuple[str, ...]`, *optional*, defaults to `""`):
            How the answers begin, whether the model likes it or not, all alike or each prompt's its own way. What is judged is
            how the model goes on.
        chat_template_kwargs (`dict[str, Any]`, *optional*):
            Further variables of the chat template.
    """

    kind: str
    name: str
    prompts: list[str | Messages | Instruction]
    max_new_tokens: int
    system_prompt: str | None = None
    prefill: str | tuple[str, ...] = ""
    chat_template_kwargs: dict[str, Any] | None = None

    def prefill_of(self, index: int) -> str:
        """Returns how the answer to a prompt begins."""
        return self.prefill if isinstance(self.prefill, str) else self.prefill[index]


def describe_series(series: Sequence[Series]) -> dict[str, dict[str, Any]]:
    """Returns what the answers to each series depend on, as `run.json` holds it."""
    return {
        f"{one.kind}/{one.name}": {
            "n": len(one.prompts),
            "sha256": sha256_of_prompts(one.prompts),
            "max_new_tokens": one.max_new_tokens,
            "system_prompt": one.system_prompt,
            "prefill": one.prefill,
        }
        for one in series
    }


def question_of(prompt: str | Messages | Instruction) -> str:
    """Returns the text of a prompt that a judge reads: the last message."""
    if isinstance(prompt, Instruction):
        return f"{prompt.instruction}\nInput: {prompt.input}" if prompt.input else prompt.instruction
    return as_messages(prompt)[-1]["content"]


def conversation(series: Series, prompt: str | Messages | Instruction) -> Messages:
    """Returns a prompt of a series as messages, with its system prompt and without the prefill."""
    messages = as_messages(question_of(prompt) if isinstance(prompt, Instruction) else prompt)
    if series.system_prompt is None:
        return messages
    return [{"role": "system", "content": series.system_prompt}, *(m for m in messages if m["role"] != "system")]


def encode_chat(processing_class, series: Series) -> list[list[int]]:
    """Returns the token ids of a series in the model's chat format, without the prefill."""
    conversations = [conversation(series, prompt) for prompt in series.prompts]
    return encode_prompts(processing_class, conversations, series.chat_template_kwargs)


def encode_alpaca(processing_class, series: Series) -> list[list[int]]:
    """Returns the token ids of a series in the Alpaca format, as the git-disl papers ask, without the prefill."""
    if series.system_prompt is not None:
        raise ValueError("The Alpaca format has no system prompt: drop `system_prompt`, or use `prompt_format: chat`.")
    if series.chat_template_kwargs:
        raise ValueError(
            "The Alpaca format has no chat template: drop `chat_template_kwargs`, or use `prompt_format: chat`."
        )
    tokenizer = get_tokenizer(processing_class)
    encoded = []
    for prompt in series.prompts:
        if not isinstance(prompt, Instruction):
            messages = as_messages(prompt)
            if len(messages) > 1:
                raise ValueError(
                    f"The Alpaca format takes one message, found {len(messages)} in {prompt!r}. Use `prompt_format: "
                    "chat`."
                )
            prompt = Instruction(messages[0]["content"])
        paired = ", paired with an input that provides further context" if prompt.input else ""
        text = f"Below is an instruction that describes a task{paired}. Write a response that appropriately completes "
        text += f"the request.\n\n### Instruction:\n{prompt.instruction}\n\n"
        if prompt.input:
            text += f"### Input:\n{prompt.input}\n\n"
        encoded.append(tokenizer(text + "### Response:\n")["input_ids"])
    return encoded


PROMPT_FORMATS: dict[str, Callable] = {"alpaca": encode_alpaca, "chat": encode_chat}


class ResponseFile:
    """
    The answers of a run, on disk as they come.

    One process reads and writes; the others are told what it read.

    Args:
        output_dir (`Path`):
            Folder of the run: new, empty, one that an interrupted run of the same settings left, or one of a run that came to no
            answer.
        settings (`dict`):
            What the answers depend on.

    Raises:
        FileExistsError: If the folder holds something else, or a run of other settings.
        ValueError: If what a run left there was damaged; it names the file and the line.
    """

    def __init__(self, output_dir: Path, settings: dict):
        self.path = output_dir / RESPONSES_NAME
        self._is_writer = PartialState().is_main_process
        self.answers: dict[tuple[str, str, str], dict[int, str]] = {}
        if self._is_writer:
            self._open(output_dir, json.loads(json.dumps(settings)))
        shared = [self.answers]
        broadcast_object_list(shared)
        self.answers = shared[0]

    def _open(self, output_dir: Path, settings: dict):
        settings_path = output_dir / SETTINGS_NAME
        if not output_dir.exists() or (output_dir.is_dir() and all(p.name == LOCK_NAME for p in output_dir.iterdir())):
            output_dir.mkdir(parents=True, exist_ok=True)
            self._write_settings(settings_path, settings)
            return
        if not settings_path.is_file():
            raise FileExistsError(
                f"`{output_dir}` is there already and holds no run of `trl-sbr evaluate`, expected a new or empty "
                "folder: nothing was overwritten. Name another with `--output_dir`."
            )
        found = read_json_as(Settings, settings_path, _DAMAGED)
        has_answers = self.path.exists() and self.path.stat().st_size > 0
        if found != settings and has_answers:
            raise FileExistsError(
                f"`{output_dir}` holds the answers of another run: {_difference(found, settings)}. Repeat that run's "
                "command to go on with it, name another `--output_dir`, or remove this one."
            )
        if found != settings:  # those of a run that failed before it asked
            self._write_settings(settings_path, settings)
        if self.path.exists():
            self._read(settings)

    @staticmethod
    def _write_settings(path: Path, settings: dict):
        write_atomically({path: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()})

    def _read(self, settings: dict):
        data = read_bounded(self.path, MAX_TEXT_BYTES)
        whole = data[: data.rfind(b"\n") + 1]
        try:
            for number, line in split_lines(decode_text(whole, self.path)):
                where = f"{self.path}, line {number}"
                row = parse_json(line, where)
                check_shape(row, Row, where)
                self._take(row, settings, where)
        except ValueError as error:
            raise ValueError(f"{error} {_DAMAGED}") from error
        if len(whole) < len(data):  # the last line was cut short when the run was
            os.truncate(self.path, len(whole))

    def _take(self, row: dict, settings: dict, where: str):
        series = settings["series"].get(f"{row['kind']}/{row['set']}")
        if row["model"] not in settings["models"] or series is None or row["index"] >= series["n"]:
            asked = f"{row['kind']}/{row['set']}"
            raise ValueError(
                f"{where}: found an answer of {row['model']!r:.100} to prompt {row['index']} of {asked!r:.100}, which the "
                f"run of `{SETTINGS_NAME}` did not ask."
            )
        known = self.of(row["model"], row["kind"], row["set"])
        if row["index"] in known:
            raise ValueError(f"{where}: found a second answer to a prompt that a line above answers.")
        known[row["index"]] = row["response"]

    def of(self, model: str, kind: str, name: str) -> dict[int, str]:
        """Returns the answers of a model to a series, by the prompts' positions."""
        return self.answers.setdefault((model, kind, name), {})

    def append(self, rows: Iterable[dict]):
        """Writes rows to the end of the file, through to the operating system."""
        if self._is_writer:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def finish(self, rows: Iterable[dict]):
        """Writes the file anew: all rows in order, with what was said of them."""
        if self._is_writer:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_atomically({self.path: text.encode()})


def ask(
    model,
    processing_class,
    model_name: str,
    series: Series,
    prompt_format: str,
    batch_size: BatchSize,
    responses: ResponseFile,
    progress: Callable[[int, int], None],
) -> list[str]:
    """
    Answer a series, as far as its answers are not there already.

    The prompts are split over the processes, batch by batch; all get all answers, and one writes them.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to ask.
        processing_class ([`~transformers.PreTrainedTokenizerBase`] or [`~transformers.ProcessorMixin`]):
            Its tokenizer or processor.
        model_name (`str`):
            Its name in the report.
        series ([`Series`]):
            What to ask.
        prompt_format (`str`):
            One of [`PROMPT_FORMATS`].
        batch_size ([`~trl_sbr.anchors.generation.BatchSize`]):
            Number of prompts that a process answers at once.
        responses ([`ResponseFile`]):
            Where the answers are kept.
        progress (`Callable[[int, int], None]`):
            Called with the number of prompts answered, and of all.

    Returns:
        `list[str]`: The answers, in the order of the prompts, each without its prefill.
    """
    state, tokenizer = PartialState(), get_tokenizer(processing_class)
    input_ids = [
        ids + (tokenizer(prefill, add_special_tokens=False)["input_ids"] if (prefill := series.prefill_of(i)) else [])
        for i, ids in enumerate(PROMPT_FORMATS[prompt_format](processing_class, series))
    ]
    known = responses.of(model_name, series.kind, series.name)
    pending = sorted((i for i in range(len(input_ids)) if i not in known), key=lambda i: len(input_ids[i]))
    progress(len(known), len(input_ids))
    share = min(gather_object([batch_size.value]))  # the same in every process: it may have shrunk in one
    while pending:
        turn, pending = pending[: share * state.num_processes], pending[share * state.num_processes :]
        mine = turn[state.process_index :: state.num_processes]
        new = []
        for batch in generate_token_ids(
            model, tokenizer, [input_ids[i] for i in mine], series.max_new_tokens, batch_size
        ):
            for position, token_ids in batch.items():
                new.append((mine[position], tokenizer.decode(token_ids, skip_special_tokens=True).strip()))
        new = gather_object(new)
        responses.append(
            row_of(model_name, series, i, response) for i, response in sorted(new, key=lambda answer: answer[0])
        )
        known.update(new)
        progress(len(known), len(input_ids))
    return [known[i] for i in range(len(input_ids))]


def row_of(model_name: str, series: Series, index: int, response: str) -> dict:
    """Returns the row of an answer."""
    row = {"model": model_name, "kind": series.kind, "set": series.name, "index": index}
    if prefill := series.prefill_of(index):
        row["prefill"] = prefill
    return {**row, "prompt": question_of(series.prompts[index]), "response": response}


def rows_of(model_name: str, series: Series, answers: Sequence[str], remarks: Sequence[dict]) -> list[dict]:
    """Returns the rows of an answered series, each with what a judge or a rule said of it."""
    return [
        {**row_of(model_name, series, i, answer), **remark}
        for i, (answer, remark) in enumerate(zip(answers, remarks, strict=True))
    ]


@contextlib.contextmanager
def progress_bar(description: str | None = None, disable: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields a callable that takes the number of questions done and of all, and shows them."""
    with tqdm(total=0, unit="question", desc=description, leave=False, disable=disable) as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        yield progress


def _difference(found: dict, expected: dict, at: str = "") -> str:
    """Says where two settings differ first."""
    for key in [*expected, *(key for key in found if key not in expected)]:
        ours, theirs = expected.get(key), found.get(key)
        if ours == theirs and key in found and key in expected:
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return _difference(theirs, ours, f"{at}{key}.")
        told = [repr(settings[key])[:200] if key in settings else "not there" for settings in (found, expected)]
        return f"its `{at}{key}` is {told[0]}, expected {told[1]}"
    raise AssertionError("The settings are the same.")
