# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What an evaluation is asked for."""

import json
from dataclasses import dataclass, field


PREFILL = "Sure, here is how: "


@dataclass
class EvaluateArguments:
    """
    What to measure, how, and where to write it.

    Args:
        output_dir (`str`):
            New or empty folder, or one of the same run, which goes on from there.
        adapter (`str`, *optional*):
            PEFT adapter to put on the model.
        compare (`list[str]`, *optional*):
            Further models and adapters, each as `PATH` or `NAME=PATH`, or on a server, as `URL#MODEL` or `NAME=URL#MODEL`.
        endpoint (`str`, *optional*):
            Address of an OpenAI-compatible server, such as vLLM's, that answers in place of a model loaded here.
        model (`str`, *optional*):
            Name under which that server knows the model, or the adapter.
        prompts (`list[str]`, *optional*):
            Sets of prompts that should be refused: names, files, or datasets.
        benign_prompts (`list[str]`, *optional*):
            Files or datasets of prompts that should be answered.
        prompts_split (`str`, *optional*, defaults to `"test"`):
            Split of a dataset.
        prompts_column (`str`, *optional*, defaults to `"prompt"`):
            Column of a dataset.
        prompts_revision (`str`, *optional*):
            Revision of a dataset on the Hub.
        max_prompts (`int`, *optional*):
            Only the first so many prompts of each set and task.
        prompt_format (`str`, *optional*, defaults to `"chat"`):
            `"chat"` (the model's template) or `"alpaca"` (as in the git-disl papers).
        judge (`str`, *optional*, defaults to `"lexical"`):
            Who judges the answers.
        judge_kwargs (`dict`, *optional*):
            Keyword arguments of the judge.
        tasks (`list[str]`, *optional*):
            Tasks whose accuracy is measured.
        task_file (`str`, *optional*):
            A task of one's own: rows with `prompt` and `completion`.
        task_rule (`str`, *optional*, defaults to `"exact"`):
            How an answer to it is compared: `"exact"` or `"last_number"`.
        alpaca_eval_result (`str`, *optional*):
            What `alpaca_eval` found on the answers that an earlier run wrote for it.
        max_new_tokens (`int`, *optional*, defaults to `512`):
            Length of an answer, in tokens, at which it is cut.
        task_max_new_tokens (`int`, *optional*):
            The same for tasks. Each has a length of its own otherwise.
        batch_size (`int`, *optional*, defaults to `32`):
            Number of prompts that a process answers at once, halved where memory runs out.
        prefill (`str`, *optional*):
            Ask the harmful prompts once more with answers that begin so.
        system_prompt (`str`, *optional*):
            Ask the harmful prompts once more under this system prompt.
        chat_template_path (`str`, *optional*):
            Chat template, as in training.
        chat_template_kwargs (`dict`, *optional*):
            Further variables of the chat template, as in training.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether code that comes with a model may run.
    """

    output_dir: str | None = field(
        default=None, metadata={"help": "New or empty folder, or one of the same run, which goes on from there."}
    )
    adapter: str | None = field(
        default=None, metadata={"help": "PEFT adapter (folder or Hub id) to put on the model."}
    )
    compare: list[str] | None = field(
        default=None,
        metadata={
            "help": "Further models and adapters, each as PATH or NAME=PATH, or on a server, as "
            "NAME=URL#MODEL, for one table."
        },
    )
    endpoint: str | None = field(
        default=None,
        metadata={
            "help": "Address of an OpenAI-compatible server (vLLM, SGLang) that answers, e.g. http://localhost:8000/v1."
        },
    )
    model: str | None = field(
        default=None, metadata={"help": "Name under which that server knows the model, or the adapter."}
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts that should be refused: names (advbench, beavertails, demo, harmbench, strongreject, "
            "xstest), `.txt`, `.jsonl`, `.json` or `.csv` files, folders, or datasets on the Hub."
        },
    )
    benign_prompts: list[str] | None = field(
        default=None, metadata={"help": "Files or datasets of prompts that should be answered: for over-refusal."}
    )
    prompts_split: str = field(default="test", metadata={"help": "Split of a dataset."})
    prompts_column: str = field(default="prompt", metadata={"help": "Column of a dataset."})
    prompts_revision: str | None = field(default=None, metadata={"help": "Revision of a dataset on the Hub."})
    max_prompts: int | None = field(
        default=None, metadata={"help": "Only the first so many prompts of each set and task, for a quick look."}
    )
    prompt_format: str = field(
        default="chat",
        metadata={
            "help": "`chat` (the model's template) or `alpaca` (as in the git-disl papers).",
            "choices": ["alpaca", "chat"],
        },
    )
    judge: str = field(default="lexical", metadata={"help": "Who judges the answers."})
    judge_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of the judge; JSON on the command line."}
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "Tasks whose accuracy is measured: agnews, alpaca_eval, gsm8k, sst2."}
    )
    task_file: str | None = field(
        default=None, metadata={"help": "A task of one's own: a `.jsonl` file with `prompt` and `completion`."}
    )
    task_rule: str = field(
        default="exact",
        metadata={
            "help": "How an answer to `task_file` is compared with its completion.",
            "choices": ["exact", "last_number"],
        },
    )
    alpaca_eval_result: str | None = field(
        default=None,
        metadata={"help": "`leaderboard.csv` that `alpaca_eval` wrote for the answers of an earlier run of this."},
    )
    max_new_tokens: int = field(default=512, metadata={"help": "Length of an answer, in tokens, at which it is cut."})
    task_max_new_tokens: int | None = field(
        default=None, metadata={"help": "The same for tasks, instead of each task's own length."}
    )
    batch_size: int = field(
        default=32, metadata={"help": "Prompts that a process answers at once, halved where memory runs out."}
    )
    prefill: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": PREFILL,
            "help": f"Ask the harmful prompts once more with answers that begin so (without a text: {PREFILL!r}).",
        },
    )
    system_prompt: str | None = field(
        default=None, metadata={"help": "Ask the harmful prompts once more under this system prompt."}
    )
    chat_template_path: str | None = field(default=None, metadata={"help": "Chat template, as in training."})
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={"help": "Further variables of the chat template, as in training; JSON on the command line."},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether code that comes with a model may run."})

    def __post_init__(self):
        if self.prefill is True:  # `prefill: true` in YAML
            self.prefill = PREFILL
        for name, example in {
            "judge_kwargs": {"batch_size": 4},
            "chat_template_kwargs": {"enable_thinking": False},
        }.items():
            value = getattr(self, name)
            if isinstance(value, str):
                try:
                    value = json.loads(value)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"`{name}` is {value!r}, expected JSON, such as '{json.dumps(example)}' ({error})."
                    ) from error
                setattr(self, name, value)
            if not isinstance(value, dict | None):
                raise ValueError(f"`{name}` is {value!r}, expected an object, such as '{json.dumps(example)}'.")
        for name in ("compare", "prompts", "benign_prompts", "tasks"):
            value = getattr(self, name) or []
            setattr(self, name, [value] if isinstance(value, str) else value)
        if (self.endpoint is None) != (self.model is None):
            raise ValueError(
                f"Found `endpoint={self.endpoint}` and `model={self.model}`: expected both, the address of a server and the name of a "
                "model there, or neither. A model that is loaded here is `model_name_or_path`."
            )
        if self.endpoint is not None:
            self.compare.insert(0, f"{self.endpoint}#{self.model}")
        self.tasks = [task for text in self.tasks for task in text.split(",") if task]
        if self.alpaca_eval_result is not None and "alpaca_eval" not in self.tasks:
            raise ValueError("`alpaca_eval_result` goes with the task: add `--tasks alpaca_eval`.")
        for name in ("max_prompts", "max_new_tokens", "task_max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    # What the loading of models asks of training arguments
    model_init_kwargs = None

    @property
    def world_size(self) -> int:
        from accelerate import PartialState

        return PartialState().num_processes

    @property
    def device(self):
        import torch
        from accelerate import PartialState

        device = PartialState().device
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
