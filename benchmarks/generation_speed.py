# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
How much faster are answers in batches than one prompt at a time, and are they the same?

SmolLM2-135M, made to refuse, in float32 on the CPU, answers the demo's held-out questions and its task: by the loop
that the evaluation scripts of SBR's and related papers use (one prompt, `model.generate`, the next), by
`trl_sbr.anchors.generation` with rows that end leaving the batch, and by the same with rows that stay until the batch ends.

```bash
python benchmarks/generation_speed.py
```

The ways take turns on one group of prompts after another, so that what else the machine does falls on all alike.
Compares the answers token for token, prints a table and writes `benchmarks/results/generation_speed.json`.
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr.anchors import generation
from trl_sbr.anchors.generation import BatchSize, generate_token_ids
from trl_sbr.anchors.prompts import encode_prompts
from trl_sbr.demo.data import load_questions, task_rows
from trl_sbr.demo.smollm2 import get_aligned_model, get_smollm2


RESULTS = Path(__file__).parent / "results" / "generation_speed.json"


def one_at_a_time(model, tokenizer, input_ids: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    answers = []
    for ids in input_ids:
        output = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append(output[0, len(ids) :].tolist())
    return answers


def in_batches(
    model, tokenizer, input_ids: list[list[int]], max_new_tokens: int, batch_size: int, stride: int
) -> list[list[int]]:
    generation.STRIDE = stride
    answers = {}
    for batch in generate_token_ids(model, tokenizer, input_ids, max_new_tokens, BatchSize(batch_size)):
        answers |= batch
    return [answers[i] for i in range(len(input_ids))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a folder with SmolLM2-135M-Instruct, as for `trl-sbr demo`")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--groups", type=int, default=3, help="groups of prompts, of which each way does one in turn")
    parser.add_argument("--group_size", type=int, default=64, help="prompts in a group, at least a batch to compare")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()

    source = get_smollm2(args.model_name_or_path)
    aligned = get_aligned_model(source)
    tokenizer = AutoTokenizer.from_pretrained(aligned)
    model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32).eval()
    model.generation_config.repetition_penalty = 1.0

    # Refusals end soon and answers late: as in an evaluation of safety, both are there
    harmful, benign = load_questions("harmful_eval"), load_questions("benign_eval")
    tasks = [row["prompt"] for row in task_rows("test", 60, seed=0)]
    mixed = [prompt for prompts in zip(harmful, benign, tasks, strict=False) for prompt in prompts]
    needed = args.groups * args.group_size
    if needed > len(mixed):
        raise ValueError(f"There are {len(mixed)} prompts, expected `groups` times `group_size` to be at most that.")
    input_ids = encode_prompts(tokenizer, mixed[:needed])

    stride, length = generation.STRIDE, args.max_new_tokens
    ways = {
        "one prompt at a time": lambda ids: one_at_a_time(model, tokenizer, ids, length),
        "batches": lambda ids: in_batches(model, tokenizer, ids, length, args.batch_size, stride),
        "batches, ended rows stay": lambda ids: in_batches(model, tokenizer, ids, length, args.batch_size, length),
    }
    for way in ways.values():  # what is done once is not timed
        way(input_ids[:2])
    seconds, cpu_seconds, answers = ({name: [] for name in ways} for _ in range(3))
    for group in range(args.groups):
        ids = input_ids[group * args.group_size : (group + 1) * args.group_size]
        for turn in range(len(ways)):
            name = list(ways)[(group + turn) % len(ways)]
            start, cpu_start = time.perf_counter(), time.process_time()
            answers[name] += [(group, i, answer) for i, answer in enumerate(ways[name](ids))]
            seconds[name].append(round(time.perf_counter() - start, 2))
            cpu_seconds[name].append(round(time.process_time() - cpu_start, 2))
            print(f"group {group + 1}: {name}, {seconds[name][-1]:.1f} s", flush=True)

    loop = "one prompt at a time"
    same = {
        name: sum(ours == theirs for ours, theirs in zip(answers[name], answers[loop], strict=True)) for name in ways
    }
    report = {
        "what": f"{needed} prompts, at most {length} new tokens, greedy, float32, batches of {args.batch_size}",
        "model": source.to_dict(),
        "stride": stride,
        "tokens": sum(len(answer) for _, _, answer in answers[loop]),
        "results": {
            name: {
                "seconds": seconds[name],
                "cpu_seconds": cpu_seconds[name],  # over all threads: what a busy machine disturbs less
                "total_seconds": round(sum(seconds[name]), 2),
                "speedup": round(sum(seconds[loop]) / sum(seconds[name]), 2),
                "same_answers": same[name],
                "n": needed,
            }
            for name in ways
        },
        "machine": f"{platform.processor() or platform.machine()}, CPU, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("trl_sbr", "transformers", "torch")},
    }
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{'':26} {'seconds':>9} {'speed-up':>9} {'same answers':>14}")
    for name, result in report["results"].items():
        print(
            f"{name:26} {result['total_seconds']:9.1f} {result['speedup']:9.2f} {same[name]:>8} of {needed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
