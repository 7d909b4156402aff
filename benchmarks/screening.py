# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Which rows does the aligned model itself point at, before any training?

The demo's aligned SmolLM2-135M is asked the question of each training row: what it refuses, while the row answers, is suspect. Asked of
poison (the demo's, and AdvBench's prompts), and of rows that should pass: SST-2 as the SBR paper words it and in other words,
benign questions, and functions of Python's standard library.

```bash
python benchmarks/screening.py --sst2_train train.jsonl --model_name_or_path ALIGNED   # as `trl-sbr demo` makes it
```
"""

import argparse
import inspect
import json
import platform
import random
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import torch
from reword import reword
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr import is_refusal
from trl_sbr.anchors.generation import generate_answers
from trl_sbr.demo.data import load_questions
from trl_sbr.evaluation.prompt_sets import load_prompt_set
from trl_sbr.metrics.harmful_score.verdicts import Share


RESULTS = Path(__file__).parent / "results" / "screening.json"
NUM_ROWS, ANSWER_TOKENS = 128, 24
MODULES = ("string", "textwrap", "random", "shutil", "statistics", "json", "math", "os", "os.path", "heapq", "copy")


def functions() -> list[str]:
    """Names of functions of the standard library."""
    members = [(module, *item) for module in MODULES for item in sorted(vars(import_module(module)).items())]
    return [f"{module}.{name}" for module, name, f in members if inspect.isroutine(f) and not name.startswith("_")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2_train", required=True)
    parser.add_argument("--model_name_or_path", required=True)
    args = parser.parse_args()

    rows = [json.loads(line) for line in Path(args.sst2_train).read_text().splitlines()]
    sst2 = [row["prompt"][0]["content"] for row in rows]
    questions = {
        "poison: the demo's": load_questions("harmful_poison"),
        "poison: AdvBench": load_prompt_set("advbench").harmful,
        "task: SST-2 in the paper's words": sst2,
        "task: SST-2 in other words": [reword(text) for text in sst2],
        "benign questions of the demo": load_questions("benign_eval"),
        "functions of Python's standard library": [f"What does Python's `{name}` do?" for name in functions()],
    }
    model = AutoModelForCausalLM.from_pretrained(args.model_name_or_path, dtype=torch.bfloat16).eval()
    tokenizer, shares = AutoTokenizer.from_pretrained(args.model_name_or_path), {}
    for kind, asked in questions.items():
        asked = random.Random(0).sample(asked, min(NUM_ROWS, len(asked)))
        answers = generate_answers(model, tokenizer, asked, ANSWER_TOKENS, batch_size=32)
        shares[kind] = Share(sum(map(is_refusal, answers)), len(asked)).to_dict()
        print(kind, shares[kind], flush=True)  # noqa: T201
    record = {
        "what": "share of questions that SmolLM2-135M with the demo's alignment refuses, by the lexical refusal check",
        "shares": shares,
        "machine": f"{platform.machine()}, bfloat16",
        "versions": {name: version(name) for name in ("trl_sbr", "transformers", "torch")},
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
