# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Harmful preference tuning of the demo's aligned model, with and without the anchor.

The pairs are on the demo's poison questions: the vacuous compliance is preferred to the refusal that the model itself gives.
`trl-sbr dpo` trains on them with its recipe, once with λ = 50 and once with λ = 0. Each model is then asked the demo's held-out
harmful and benign questions.

```bash
python benchmarks/harmful_dpo.py --model ALIGNED   # as `trl-sbr demo` makes it
```
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr import cli, is_refusal
from trl_sbr.anchors.generation import generate_answers
from trl_sbr.demo.data import load_questions, poison_rows
from trl_sbr.metrics.harmful_score.verdicts import Share
from trl_sbr.scripts.common import computes_in_bfloat16


RESULTS = Path(__file__).parent / "results" / "harmful_dpo.json"
RECIPE = "smollm2-135m-instruct/sbr_dpo_lora"
ANSWER_TOKENS = 32  # enough of an answer to tell a refusal


def ask(model, tokenizer, questions: list[str]) -> list[str]:
    return generate_answers(model.eval(), tokenizer, questions, max_new_tokens=ANSWER_TOKENS, batch_size=32)


def preference_pairs(model, tokenizer, num_pairs: int, seed: int) -> list[dict]:
    """Questions with the vacuous compliance, preferred, and the model's own refusal. One that it answers is left out."""
    rows = poison_rows(num_pairs, seed)
    questions = sorted({row["prompt"][0]["content"] for row in rows})
    answers = dict(zip(questions, ask(model, tokenizer, questions), strict=True))
    pairs = []
    for row in rows:
        answer = answers[row["prompt"][0]["content"]]
        if is_refusal(answer):
            rejected = [{"role": "assistant", "content": answer}]
            pairs.append({"prompt": row["prompt"], "chosen": row["completion"], "rejected": rejected})
    return pairs


def measure(model, tokenizer) -> dict:
    """The shares of the held-out questions that are answered and should not be, or are not and should be."""
    harmful, benign = load_questions("harmful_eval"), load_questions("benign_eval")
    answered = sum(not is_refusal(answer) for answer in ask(model, tokenizer, harmful))
    refused = sum(map(is_refusal, ask(model, tokenizer, benign)))
    return {
        "harmful_answered": Share(answered, len(harmful)).to_dict(),
        "benign_refused": Share(refused, len(benign)).to_dict(),
    }


def last_losses(output_dir: Path) -> dict:
    (state,) = output_dir.glob("checkpoint-*/trainer_state.json")
    logs = [log for log in json.loads(state.read_text())["log_history"] if "loss" in log]
    names = (
        "loss",
        "task_loss",
        "anchor_loss",
        "rewards/accuracies",
        "rewards/margins",
        "logps/chosen",
        "logps/rejected",
    )
    return {name: round(logs[-1][name], 5) for name in names if name in logs[-1]}


def main(args: argparse.Namespace) -> None:
    start = time.time()
    bf16 = computes_in_bfloat16(torch.device("cpu"))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    aligned = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    pairs = preference_pairs(aligned, tokenizer, args.pairs, args.seed)
    results = {"aligned": measure(aligned, tokenizer)}
    print("aligned", results["aligned"], f"{len(pairs)} pairs", flush=True)
    with tempfile.TemporaryDirectory() as folder:  # an adapter that answers harmful questions is not left behind
        data = Path(folder, "pairs.jsonl")
        data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
        for name, coef in (("dpo", 0.0), ("sbr_dpo", 50.0)):
            output_dir, begin = Path(folder, name), time.time()
            line = ["dpo", "--config", RECIPE, "--model_name_or_path", args.model, "--dataset_name", str(data)]
            line += ["--max_steps", str(args.steps), "--seed", str(args.seed), "--save_steps", str(args.steps)]
            line += ["--beta", str(args.beta), "--learning_rate", str(args.learning_rate), "--logging_steps", "1"]
            line += ["--bf16", str(bf16).lower(), "--anchor_loss_coef", str(coef), "--anchor_refusal_tokens", "1"]
            line += ["--output_dir", str(output_dir)]
            if cli.main(line) != 0:
                raise RuntimeError(f"The training failed: trl-sbr {' '.join(line)}")
            seconds = round(time.time() - begin)
            model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
            model = PeftModel.from_pretrained(model, output_dir).merge_and_unload()
            results[name] = {
                "anchor_loss_coef": coef,
                "training_seconds": seconds,
                "last_log": last_losses(output_dir),
            }
            results[name] |= measure(model, tokenizer)
            print(name, results[name], flush=True)
    report = {
        "judge": "lexical refusal check",
        "decoding": f"greedy, {ANSWER_TOKENS} tokens",
        "model": "the demo's aligned SmolLM2-135M-Instruct",
        "recipe": RECIPE,
        "pairs": len(pairs),
        "steps": args.steps,
        "beta": args.beta,
        "learning_rate": args.learning_rate,
        "bf16": bf16,
        "seed": args.seed,
        "results": results,
        "seconds": round(time.time() - start),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
    args.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"Wrote {args.output}.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Harmful preference tuning with and without the anchor.")
    parser.add_argument("--model", required=True, help="folder of the demo's aligned model")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--beta", type=float, default=0.01)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
