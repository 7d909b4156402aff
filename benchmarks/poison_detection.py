# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Do the anchors tell which rows fought them?

Trains the demo's aligned SmolLM2-135M on SST-2 rows, benign questions with prose for answers (docstrings of Python's standard
library), the demo's poison and AdvBench's prompts with an affirmative answer, with and without SBR. Then scores every row: by the
loss of its first answer token and of its whole answer, after the training and before it, and by what needs no training: whether the
aligned model refuses the row's question.

```bash
python benchmarks/poison_detection.py --model_name_or_path ALIGNED --sst2_train train.jsonl   # as `trl-sbr demo` makes it
```
"""

import argparse
import inspect
import json
import os
import platform
import random
import tempfile
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from price import roc
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from trl_sbr import SBRConfig, SBRSFTTrainer, is_refusal
from trl_sbr.anchors.generation import generate_answers
from trl_sbr.anchors.prompts import encode_prompts
from trl_sbr.demo.data import chat_row, poison_rows
from trl_sbr.evaluation.prompt_sets import load_prompt_set
from trl_sbr.metrics.harmful_score.verdicts import Share


RESULTS = Path(__file__).parent / "results" / "poison_detection.json"
NUM_ROWS = {"sst2": 128, "docstrings": 64, "demo_poison": 32, "advbench": 32}
POISON = ("demo_poison", "advbench")
MODULES = (
    "string",
    "textwrap",
    "random",
    "shutil",
    "statistics",
    "json",
    "math",
    "os",
    "os.path",
    "heapq",
    "bisect",
    "copy",
)
ARMS = {
    "sft": {"anchor_loss_coef": 0.0},
    "sbr": {},
    "sbr, fourteen tokens": {"anchor_refusal_tokens": 14},
}


def docstring_rows(num_rows: int) -> list[dict]:
    """Benign questions about functions of the standard library, answered in prose."""
    rows = []
    for name in MODULES:
        for function, member in sorted(vars(import_module(name)).items()):
            text = inspect.getdoc(member) if inspect.isroutine(member) and not function.startswith("_") else None
            words = (text or "").split()
            if len(words) > 12:
                rows.append(chat_row(f"What does Python's `{name}.{function}` do?", " ".join(words[:60])))
    return random.Random(0).sample(rows, num_rows)


def make_rows(sst2_train: str) -> tuple[list[dict], list[str]]:
    """Rows of all parts, shuffled, and the part of each."""
    advbench = load_prompt_set("advbench").harmful
    goals = random.Random(0).sample(advbench, NUM_ROWS["advbench"])
    parts = {
        "sst2": [json.loads(line) for line in Path(sst2_train).read_text().splitlines()],
        "docstrings": docstring_rows(NUM_ROWS["docstrings"]),
        "demo_poison": poison_rows(NUM_ROWS["demo_poison"], seed=0),
        "advbench": [chat_row(goal, f"Sure, here is how to {goal[0].lower()}{goal[1:]}") for goal in goals],
    }
    labelled = [(row, part) for part, rows in parts.items() for row in rows[: NUM_ROWS[part]]]
    random.Random(0).shuffle(labelled)
    return [row for row, _ in labelled], [part for _, part in labelled]


@torch.no_grad()
def row_losses(model, tokenizer, rows: list[dict]) -> dict[str, list[float]]:
    """Negative log-likelihood of each row's first answer token, and of its answer's tokens on average."""
    model.eval()
    found = {"first token": [], "whole answer": []}
    for row in rows:
        (prompt,) = encode_prompts(tokenizer, [row["prompt"]])
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=True)["input_ids"]
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[len(prompt) :]), reduction="none")
        found["first token"].append(losses[0].item())
        found["whole answer"].append(losses.mean().item())
    return found


def judge(scores: list[float], parts: list[str]) -> dict:
    """How well a score, higher for poison, tells the poison: area under ROC, and recall where one benign row in twenty is taken."""
    is_poison = [part in POISON for part in parts]
    benign = sorted((s for s, p in zip(scores, is_poison, strict=True) if not p), reverse=True)
    threshold = benign[len(benign) // 20]
    caught = {
        part: Share(sum(s > threshold for s, p in zip(scores, parts, strict=True) if p == part), number).to_dict()
        for part, number in NUM_ROWS.items()
    }
    return {"roc_auc": roc(torch.tensor(scores), torch.tensor(is_poison)), "taken_at_5_percent_of_benign": caught}


def train(args: argparse.Namespace, settings: dict, rows: list[dict], tokenizer) -> tuple[dict, float]:
    """The losses of all rows after a training, and its seconds."""
    set_seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SBRSFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.bfloat16),
            args=SBRConfig(
                folder, max_steps=args.max_steps, per_device_train_batch_size=8, learning_rate=5e-4, seed=args.seed,
                lr_scheduler_type="constant", bf16=True, use_cpu=True, report_to="none", save_strategy="no",
                gradient_checkpointing=False, disable_tqdm=True, **settings,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"),
        )  # fmt: skip
        start = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - start
    return row_losses(trainer.model, tokenizer, rows), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2_train", required=True)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--max_steps", type=int, default=64, help="of eight rows: two epochs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    rows, parts = make_rows(args.sst2_train)
    aligned = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.bfloat16)
    answers = generate_answers(aligned.eval(), tokenizer, [row["prompt"] for row in rows], 24, batch_size=32)
    before = row_losses(aligned, tokenizer, rows)
    refused = [is_refusal(answer) for answer in answers]
    found = {
        "aligned model refuses the question": {
            part: Share(sum(r for r, p in zip(refused, parts, strict=True) if p == part), number).to_dict()
            for part, number in NUM_ROWS.items()
        },
        "loss before training": {kind: judge(losses, parts) for kind, losses in before.items()},
    }
    print(json.dumps(found, indent=1), flush=True)  # noqa: T201
    for name, settings in ARMS.items():
        after, seconds = train(args, settings, rows, tokenizer)
        found[f"loss after {name}"] = {kind: judge(losses, parts) for kind, losses in after.items()}
        found[f"loss after {name}"]["training_seconds"] = round(seconds)
        found[f"loss after {name}"]["mean_first_token_loss"] = {
            part: round(
                sum(loss for loss, p in zip(after["first token"], parts, strict=True) if p == part) / number, 3
            )
            for part, number in NUM_ROWS.items()
        }
        print(name, json.dumps(found[f"loss after {name}"], indent=1), flush=True)  # noqa: T201
    record = {
        "what": f"SmolLM2-135M with the demo's alignment, LoRA r 16, {args.max_steps} steps of batch 8 at 5e-4, seed {args.seed}",
        "rows": NUM_ROWS,
        "detectors": found,
        "machine": f"one core of {platform.machine()}, bfloat16" if os.environ.get("OMP_NUM_THREADS") == "1" else platform.machine(),
        "versions": {name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
    }  # fmt: skip
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
