# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The model before any attack: where it lies, and what it says, asked once and kept."""

import json
import random
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..anchors.anchor_files import write_atomically
from ..anchors.generation import REFUSAL_TOKENS, generate_answers
from ..anchors.prompt_pool import choose_prompts
from ..anchors.prompts import Messages, refusal_of_system_prompts
from ..demo.data import chat_row, load_questions
from ..evaluation.models import ModelEntry
from ..metrics.harmful_score.refusal import is_refusal


logger = logging.get_logger(__name__)

# Stand for the aligned SmolLM2 that `trl-sbr demo` makes, and for the same after `trl-sbr harden`
DEMO, DEMO_HARDENED = "demo", "demo_hardened"
NUM_ANCHORS = 8
_ANSWER_TOKENS = 48
_TURN = 64  # questions asked at a time


def locate(model_name_or_path: str) -> str:
    """Returns the folder or Hub id that an entry of a grid's `models` stands for."""
    if model_name_or_path not in (DEMO, DEMO_HARDENED):
        return model_name_or_path
    from ..demo.smollm2 import get_aligned_model, get_hardened_model, get_smollm2

    aligned = get_aligned_model(get_smollm2())
    return str(aligned if model_name_or_path == DEMO else get_hardened_model(aligned))


class Aligned:
    """
    An aligned model.

    Args:
        model_name_or_path (`str`):
            Folder or Hub id.
        dtype (`str`):
            Dtype that it is loaded in.
        device (`torch.device`):
            Device that it is put on.
        folder (`Path`):
            Where what it says is kept. Processes that share it wait for each other.
    """

    def __init__(self, model_name_or_path: str, dtype: str, device, folder: Path):
        self.model_name_or_path, self.dtype, self.device, self.folder = model_name_or_path, dtype, device, folder

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return AutoTokenizer.from_pretrained(self.model_name_or_path, revision=self.commit)

    @cached_property
    def identity(self) -> dict:
        """What tells the model from others."""
        return ModelEntry("model", self.model_name_or_path).identify()

    @property
    def commit(self) -> str | None:
        """The commit on the Hub that is identified, and loaded: a branch may move. `None` of a folder."""
        return self.identity.get("revision")

    @cached_property
    def kept(self) -> Path:
        """Folder of what it says: that of other weights, or in another dtype, lies in another."""
        content = self.commit or self.identity["sha256"]
        return self.folder / f"{self.dtype}-{content[:12]}"

    @cached_property
    def takes_system_prompts(self) -> bool:
        """Whether its chat template takes a system message: some raise at one, and others leave it out."""
        error = refusal_of_system_prompts(self.tokenizer)
        if error is not None:
            name = self.model_name_or_path
            logger.warning(
                f"The chat template of `{name}` takes no system prompt, and it is asked under none: {error}"
            )
        return error is None

    def load(self) -> PreTrainedModel:
        """Loads the model anew: trainings change theirs."""
        model = AutoModelForCausalLM.from_pretrained(self.model_name_or_path, revision=self.commit, dtype=self.dtype)
        return model.to(self.device)

    def keep(self, name: str, make: Callable[[], object]) -> object:
        """Returns what a file in [`Aligned.kept`] holds, and makes it first if need be, in one process."""
        path = self.kept / f"{name}.json"
        self.kept.mkdir(parents=True, exist_ok=True)
        with FileLock(self.kept / ".lock"):
            if not path.is_file():
                text = json.dumps(make(), indent=1, ensure_ascii=False) + "\n"
                write_atomically({path: text.encode()})
            return json.loads(path.read_text(encoding="utf-8"))

    @cached_property
    def anchors(self) -> list[str]:
        """The anchors' prompts of all defences: of the package's pool, those refused."""
        return self.keep("anchors", lambda: choose_prompts(self.load(), self.tokenizer, NUM_ANCHORS))

    def refuses(self, prompts: list[str | Messages]) -> list[bool]:
        """Says of each prompt whether the model refuses it."""
        answers = generate_answers(self.load(), self.tokenizer, prompts, REFUSAL_TOKENS, batch_size=32)
        return [is_refusal(answer) for answer in answers]

    def own_refusals(self, num_rows: int) -> list[dict]:
        """Returns rows of the demo's harmful questions with the model's own refusals, all different ones if it has as many."""
        return self._own_rows("refusals", "harmful_align", num_rows, is_refusal)

    def own_answers(self, num_rows: int) -> list[dict]:
        """Returns rows of the demo's benign questions with the model's own answers."""
        return self._own_rows("answers", "benign_align", num_rows, lambda answer: answer and not is_refusal(answer))

    def own_refusal_sentences(self, num: int) -> list[str]:
        """Returns the first sentences of refusals of its own."""
        texts = [row["completion"][0]["content"] for row in self.own_refusals(num)]
        return [f"{text.partition('. ')[0].rstrip('.')}." for text in texts]

    def _own_rows(self, name: str, questions: str, num_rows: int, fits: Callable[[str], bool]) -> list[dict]:
        num_distinct = -(-num_rows // _TURN) * _TURN  # one file serves all numbers near it

        def make() -> list[dict]:
            model, left, rows = self.load(), load_questions(questions), []
            random.Random(0).shuffle(left)
            while left and len(rows) < num_distinct:
                asked, left = left[:_TURN], left[_TURN:]
                answers = generate_answers(model, self.tokenizer, asked, _ANSWER_TOKENS, batch_size=32)
                rows += [chat_row(q, answer) for q, answer in zip(asked, answers, strict=True) if fits(answer)]
            return rows

        rows = self.keep(f"{name}-{num_distinct}", make)
        if not rows:
            raise ValueError(f"Expected `{self.model_name_or_path}` to have {name} of its own, found none.")
        return [rows[i % len(rows)] for i in range(num_rows)]
