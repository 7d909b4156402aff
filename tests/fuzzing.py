# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Files with faults, made from good ones, and the readers that must not fall through on any of them: each reads it, or raises a
`ValueError` or `OSError` that names the file, within a second.

A case is told by its target and its number alone, so that each can be run again.
"""

import contextlib
import copy
import csv
import io
import json
import os
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from trl import ModelConfig, ScriptArguments

from trl_sbr import SafetyAnchor, SBRConfig
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME, _seal, anchor_to_files, sha256_hex, tensor_to_bytes
from trl_sbr.anchors.prompts import as_messages, load_prompts
from trl_sbr.evaluation.report import read_alpaca_eval
from trl_sbr.evaluation.report_file import read_report
from trl_sbr.evaluation.responses import RESPONSES_NAME, SETTINGS_NAME, ResponseFile
from trl_sbr.evaluation.tasks import load_task_file
from trl_sbr.hub.cards import eval_results_yaml, own_model, render_anchor_card, render_model_card
from trl_sbr.judges.endpoint import EndpointJudge
from trl_sbr.recipes import find_recipe
from trl_sbr.scripts.common import parse_strictly
from trl_sbr.trainers.run_record import RECORD_NAME, read_record

from .hub.test_cards import DEMO_REPORT, HARDENING, REPORT, RUN, anchor_config


MAX_SECONDS = 1.0

SEEDS = ["How?", "Why, Zoë?", "A \u2028 B", '"quoted", <b>x</b>']
SETTINGS = {
    "models": {"a": {"sha256": "0"}, "b": {"sha256": "1"}},
    "decoding": {"strategy": "greedy", "chat_template": None},
    "series": {"safety/s": {"n": 4, "sha256": "2", "prefill": ""}, "tasks/t": {"n": 2, "sha256": "3", "prefill": ""}},
}
ROWS = [
    {"model": model, "kind": kind, "set": name, "index": i, "prompt": "How?", "response": "No.", "harmful": None}
    for model in ("a", "b")
    for kind, name, n in (("safety", "s", 4), ("tasks", "t", 2))
    for i in range(n)
]

_VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    1.5,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud83d",
    "<b>`x`\n|",
]
_VALUES += [
    "x" * 10**5,
    "0" * 64,
    "2" * 40,
    [],
    [[]],
    {},
    {"x": []},
    [None],
    ["x", 1],
    {"": None},
    "../..",
    "é\u2028\x85\0",
]


@dataclass
class Target:
    """
    A kind of file.

    Args:
        name (`str`):
            Name of the file.
        contents (`list[bytes]`):
            What good ones hold.
        read (`Callable[[Path], None]`):
            Reads it and does with it what is done with it.
        prepare (`Callable[[Path], None]`, *optional*):
            Makes the folder that it lies in.
        mend (`Callable[[random.Random, bytes], bytes]`, *optional*):
            Brings what was changed past a check of a hash, so that what lies behind it is tried too.
    """

    name: str
    contents: list[bytes]
    read: Callable[[Path], None]
    prepare: Callable[[Path], None] = lambda folder: None
    mend: Callable[[random.Random, bytes], bytes] | None = None


@dataclass
class Outcome:
    """How many files were read, how many refused, and what fell through."""

    counts: Counter = field(default_factory=Counter)
    fallen: list[str] = field(default_factory=list)


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Makes one to three changes, of structure where the content is JSON, else of bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice((_change_json, _change_json, _change_bytes))
        content = change(rng, content)
    return content


def _change_json(rng: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    whole = len(lines) < 2 or not lines[0].strip().endswith(b"}")
    at = rng.randrange(len(lines))
    try:
        text = _edit(rng, json.loads(content if whole else lines[at])).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # changed before, and no JSON any more
        return _change_bytes(rng, content)
    return text if whole else b"\n".join([*lines[:at], text, *lines[at + 1 :]])


def _places(value: Any, depth: int = 0) -> list[tuple]:
    if depth > 60:
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in ((value, key), *_places(item, depth + 1))]


def _edit(rng: random.Random, value: Any) -> str:
    places = _places(value)
    if not places:
        return json.dumps(rng.choice(_VALUES))
    parent, key = rng.choice(places)
    kind = rng.choice(("value", "value", "value", "remove", "other", "wrap", "nest", "key", "twice", "case"))
    if kind == "value":
        parent[key] = copy.deepcopy(rng.choice(_VALUES))
    elif kind == "remove":
        del parent[key]
    elif kind == "other":
        other, place = rng.choice(places)
        parent[key] = copy.deepcopy(other[place])
    elif kind == "wrap":
        parent[key] = [parent[key]]
    elif kind == "nest":
        for _ in range(rng.choice((3, 70, 600))):
            parent[key] = {"x": parent[key]} if rng.random() < 0.5 else [parent[key]]
    elif isinstance(parent, dict) and kind == "key":
        parent[rng.choice(("", "x", "\ud83d", "x" * 1000, f"{key} "))] = parent.pop(key)
    elif isinstance(parent[key], str) and kind == "case":
        parent[key] = parent[key].swapcase()
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if isinstance(parent, dict) and kind == "twice":
        name = json.dumps(key)
        text = text.replace(f"{name}:", f"{name}: {json.dumps(rng.choice(_VALUES))}, {name}:", 1)
    return text


def _change_bytes(rng: random.Random, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    end = min(len(content), start + rng.choice((1, 1, 4, 30)))
    kind = rng.choice(("flip", "remove", "repeat", "insert", "insert", "cut", "encode", "lines"))
    if kind == "flip" and start < len(content):
        return content[:start] + bytes([content[start] ^ (1 << rng.randrange(8))]) + content[start + 1 :]
    if kind == "remove":
        return content[:start] + content[end:]
    if kind == "repeat":
        return content[:end] + content[start:end] * rng.choice((1, 100)) + content[end:]
    if kind == "cut":
        return content[:start]
    if kind == "encode":
        text, to = (
            content.decode("utf-8", "replace"),
            rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "cp1252", "utf-32")),
        )
        return text.encode(to, "replace")
    if kind == "lines":
        lines = content.split(b"\n")
        rng.shuffle(lines)
        return rng.choice((b"\r\n", b"\r", b"\n\n", "\u2028".encode(), b"\x0c")).join(lines)
    tokens = (
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b'"',
        b"\\ud800",
        b"{",
        b"[" * 10**5,
        b"NaN",
        b"1e999",
    )
    return content[:start] + rng.choice((*tokens, rng.randbytes(8))) + content[start:]


def run(target: Target, name: str, case: int, folder: Path, outcome: Outcome) -> None:
    """
    Runs a case.

    Args:
        target (`Target`):
            The kind of file.
        name (`str`):
            Its name in [`TARGETS`].
        case (`int`):
            Number of the case.
        folder (`Path`):
            An empty folder, or that of the case before.
        outcome (`Outcome`):
            Where it is counted.
    """
    rng = random.Random(f"{name}:{case}")
    content = mutate(rng, rng.choice(target.contents))
    if target.mend is not None and rng.random() < 0.7:
        content = target.mend(rng, content)
    path = folder / target.name
    target.prepare(folder)
    path.write_bytes(content)
    start = time.process_time()
    problem = None
    try:
        target.read(path)
        kind = "read"
    except (ValueError, OSError) as error:
        kind = "refused"
        if path.name not in str(error) and str(folder) not in str(error):
            problem = f"names no file: {error!r:.300}"
        elif len(str(error)) > 3000:
            problem = f"an error of {len(str(error))} characters"
    except Exception as error:
        problem = f"{error!r:.300}\n{''.join(traceback.format_tb(error.__traceback__)[-2:])}"
    if time.process_time() - start > MAX_SECONDS:
        problem = f"took {time.process_time() - start:.1f} s"
    outcome.counts[kind if problem is None else "fallen_through"] += 1
    if problem is not None:
        outcome.fallen.append(f"{name}, case {case}: {problem}")


_STATES = torch.ones(2, 32)
_ANCHOR = anchor_config(
    prompts=[[{"role": "user", "content": "How?"}], [{"role": "user", "content": "Why?"}]],
    input_ids=[[1, 2, 3], [4, 5]],
    positions=[[2], [1]],
    tensor_sha256=sha256_hex(tensor_to_bytes(_STATES)),
)
_ANCHOR_FILES = anchor_to_files(_ANCHOR, _STATES)


def _prepare_anchor(folder: Path) -> None:
    for name, content in _ANCHOR_FILES.items():
        (folder / name).write_bytes(content)


def _read_anchor(path: Path) -> None:
    anchor = SafetyAnchor.from_pretrained(path.parent)
    anchor_to_files(anchor.config, anchor.hidden_states)
    render_anchor_card(anchor.config, "org/anchor")
    torch.testing.assert_close(anchor.hidden_states.isfinite().all(), torch.tensor(True))


def _read_anchor_of_this_tensor(path: Path) -> None:
    content = path.read_bytes()
    if len(content) % 3:  # as who wrote it would say himself
        config = replace(_ANCHOR, tensor_sha256=sha256_hex(content))
        (path.parent / CONFIG_NAME).write_bytes(anchor_to_files(config, _STATES)[CONFIG_NAME])
    _read_anchor(path)


def _seal_again(rng: random.Random, content: bytes) -> bytes:
    try:
        value = json.loads(content)
        value["anchor_sha256"] = _seal({key: item for key, item in value.items() if key != "anchor_sha256"})
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return content


_RECORD = {
    **RUN,
    "sbr": {**RUN["sbr"], "anchor_reference": "base", "anchors_per_step": 4},
    "hardening": HARDENING,
    "files": {"adapter_model.safetensors": "0" * 64, TENSOR_NAME: "1" * 64, CONFIG_NAME: "2" * 64},
}


def _read_record(path: Path) -> None:
    render_model_card(read_record(path), "org/adapter", anchor_config())


def _read_recipe(path: Path) -> None:
    environment = dict(os.environ)
    try:
        with contextlib.redirect_stderr(io.StringIO()) as shown, contextlib.redirect_stdout(shown):
            parse_strictly((ScriptArguments, SBRConfig, ModelConfig), "sft", "", ["--config", str(path)])
    except SystemExit as error:  # of argparse, which names the key and the value
        raise ValueError(f"{path}: {shown.getvalue()[-500:]}") from error
    finally:
        os.environ.clear()
        os.environ.update(environment)


def _read_report(path: Path) -> None:
    report = read_report(path)
    own = own_model(report)
    render_model_card(RUN, "org/adapter", anchor_config(), report, own)
    eval_results_yaml(report, own)


def _prepare_run(folder: Path) -> None:
    (folder / SETTINGS_NAME).write_text(json.dumps(SETTINGS))
    (folder / RESPONSES_NAME).write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def _read_run(path: Path) -> None:
    answers = ResponseFile(path.parent, SETTINGS).answers
    for (model, kind, name), known in answers.items():
        n = SETTINGS["series"][f"{kind}/{name}"]["n"]
        if model not in SETTINGS["models"] or not all(
            type(i) is int and 0 <= i < n and isinstance(answer, str) for i, answer in known.items()
        ):
            raise AssertionError(f"took {model, kind, name, known}")


def _read_prompts(path: Path) -> None:
    for prompt in load_prompts(path):
        "".join(message["content"] for message in as_messages(prompt)).encode()


def _read_task(path: Path) -> None:
    task = load_task_file(str(path), "exact")
    if len(task.count_correct(["x"] * len(task.prompts))) != len(task.prompts):
        raise AssertionError("took a task of another shape")


def _read_cache(path: Path) -> None:
    cache = EndpointJudge("rubric", "m", "http://localhost/v1", cache_path=path)._cache
    if not all(isinstance(text, str) for pair in cache._answers.items() for text in pair):
        raise AssertionError("took an answer that is no text")


def _lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(header: list[str], rows: list[list]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


_MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How?"}]
_PROMPT_ROWS = [*({"prompt": text} for text in SEEDS), {"messages": _MESSAGES}]
_RATES = {"win_rate": 45.8, "standard_error": 1.7, "n_total": 104}

TARGETS: dict[str, Target] = {
    "anchor_config": Target(CONFIG_NAME, [_ANCHOR_FILES[CONFIG_NAME]], _read_anchor, _prepare_anchor, _seal_again),
    "anchor_tensor": Target(TENSOR_NAME, [_ANCHOR_FILES[TENSOR_NAME]], _read_anchor_of_this_tensor, _prepare_anchor),
    "record": Target(RECORD_NAME, [json.dumps(_RECORD).encode()], _read_record),
    "recipe": Target("recipe.yaml", [find_recipe("smollm2-135m-instruct/sbr_lora").read_bytes()], _read_recipe),
    "report": Target("report.json", [json.dumps(report).encode() for report in (REPORT, DEMO_REPORT)], _read_report),
    "responses": Target(RESPONSES_NAME, [_lines(*ROWS)], _read_run, _prepare_run),
    "run": Target(SETTINGS_NAME, [json.dumps(SETTINGS).encode()], _read_run, _prepare_run),
    "prompts_txt": Target("prompts.txt", ["\n".join(SEEDS).encode()], _read_prompts),
    "prompts_jsonl": Target("prompts.jsonl", [_lines(*_PROMPT_ROWS)], _read_prompts),
    "prompts_json": Target("prompts.json", [json.dumps([*SEEDS, *_PROMPT_ROWS]).encode()], _read_prompts),
    "prompts_csv": Target("prompts.csv", [_csv(["id", "prompt"], list(enumerate(SEEDS)))], _read_prompts),
    "task": Target("task.jsonl", [_lines(*({**row, "completion": "yes"} for row in _PROMPT_ROWS[:4]))], _read_task),
    "leaderboard_csv": Target(
        "leaderboard.csv",
        [_csv(["", *_RATES], [["sbr", *_RATES.values()], ["sft", *_RATES.values()]])],
        lambda path: read_alpaca_eval(str(path), ["sbr", "sft"]),
    ),
    "leaderboard_json": Target(
        "leaderboard.json",
        [json.dumps({"sbr": _RATES, "sft": _RATES}).encode(), json.dumps([{"name": "sbr", **_RATES}]).encode()],
        lambda path: read_alpaca_eval(str(path), ["sbr", "sft"]),
    ),
    "judge_answers": Target(
        "judge_answers.jsonl",
        [b"\n".join(json.dumps({"request": str(i) * 64, "answer": "Score: 1"}).encode() for i in range(4))],
        _read_cache,
    ),
}
