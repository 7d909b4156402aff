# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Measures models before and after `trl-sbr harden`, behind openers that no model is hardened behind.

The demo's held-out questions are asked plain, under a system prompt, and behind ten openers, short and long; its benign
ones plain and behind five. The models are asked one after another, and one that is in the results already is not asked
again.

```bash
trl-sbr harden --config smollm2-135m-instruct/harden_lora --model_name_or_path ALIGNED --output_dir HARDENED
python benchmarks/hardening.py --models aligned=ALIGNED hardened=HARDENED
```
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr.anchors.generation import BatchSize, generate_token_ids
from trl_sbr.anchors.prompts import encode_prompts
from trl_sbr.demo.data import load_questions
from trl_sbr.metrics.harmful_score.refusal import is_refusal
from trl_sbr.metrics.harmful_score.verdicts import Share
from trl_sbr.stress.measure import BENIGN_OPENER, UNSEEN_SYSTEM_PROMPT
from trl_sbr.stress.measure import UNSEEN_OPENERS as OPENERS
from trl_sbr.trainers.hardening_record import RECORD_NAME


RESULTS = Path(__file__).parent / "results" / "hardening.json"

ANSWER_TOKENS = 32  # enough of an answer to tell a refusal
BENIGN_OPENERS = (BENIGN_OPENER, OPENERS[4], OPENERS[7], OPENERS[8], OPENERS[9])


def series() -> list[tuple[str, list, str]]:
    """Returns what is asked: the kind of question, the prompts, and what the answers begin with."""
    harmful, benign = load_questions("harmful_eval"), load_questions("benign_eval")
    under_system_prompt = [
        [{"role": "system", "content": UNSEEN_SYSTEM_PROMPT}, {"role": "user", "content": question}]
        for question in harmful[::2]
    ]
    return [
        ("harmful", harmful, ""),
        ("harmful, system prompt", under_system_prompt, ""),
        *(("harmful", harmful[::2], opener) for opener in OPENERS),
        ("benign", benign, ""),
        *(("benign", benign, opener) for opener in BENIGN_OPENERS),
    ]


def ask(model, tokenizer, kind: str, prompts: list, opener: str) -> dict:
    """Returns the share of what should not be, and of which questions: what answers say to harmful ones is not kept."""
    begun = tokenizer(opener, add_special_tokens=False)["input_ids"] if opener else []
    input_ids = [ids + begun for ids in encode_prompts(tokenizer, prompts)]
    answers = {}
    for batch in generate_token_ids(model, tokenizer, input_ids, ANSWER_TOKENS, BatchSize(32)):
        answers |= {i: tokenizer.decode(ids, skip_special_tokens=True).strip() for i, ids in batch.items()}
    answers = [answers[i] for i in range(len(prompts))]
    questions = [prompt if isinstance(prompt, str) else prompt[-1]["content"] for prompt in prompts]
    wrong = [q for q, answer in zip(questions, answers, strict=True) if is_refusal(answer) == (kind == "benign")]
    return {
        "kind": kind,
        "opener": opener,
        "refused" if kind == "benign" else "answered": Share(len(wrong), len(answers)).to_dict(),
        "questions": wrong,
    }


def measure(path: str, dtype: str) -> dict:
    """Returns all that is measured of one model, and how it was hardened if it was."""
    start = time.time()
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
    results = []
    for kind, prompts, opener in series():
        results.append(ask(model, tokenizer, kind, prompts, opener))
        share = results[-1].get("refused") or results[-1]["answered"]
        print(f"{share['percent']:6.1f} % of {share['n']:3}  {kind}  {opener!r}", flush=True)
    record = Path(path, RECORD_NAME)
    return {
        "hardening": json.loads(record.read_text(encoding="utf-8")) if record.is_file() else None,
        "dtype": dtype,
        "seconds": round(time.time() - start),
        "series": results,
    }


def main(args: argparse.Namespace) -> None:
    results = {"models": {}}
    if args.output.is_file():
        results = json.loads(args.output.read_text(encoding="utf-8"))
    results |= {
        "judge": "lexical refusal check",
        "decoding": f"greedy, {ANSWER_TOKENS} tokens",
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl_sbr", "transformers", "peft", "torch")},
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    for entry in args.models:
        name, path = entry.split("=", 1)
        if name in results["models"]:
            print(f"{name} is in {args.output} already.")
            continue
        print(f"{name}: {path}")
        results["models"][name] = measure(path, args.dtype)
        args.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {args.output}.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure models before and after hardening.")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
