# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
What does the anchor term cost? Times optimizer steps of plain `SFTTrainer`, of `SBRSFTTrainer`, and of the way in which
the paper's authors released the method (anchors in every micro-batch, full logits, all hidden states kept), in turn, on
rows of one length.

```bash
python benchmarks/step_overhead.py                     # SmolLM2-135M, or a model of Llama-3.1-8B's shape on a GPU
python benchmarks/step_overhead.py --growth            # the overhead of SBR against anchors, row length, accumulation
python benchmarks/step_overhead.py --points FOLDER     # of anchors in turn, and of those that hold FOLDER's hardened model
python benchmarks/step_overhead.py --memory            # peak memory, each way in a process of its own
```

Prints one table and writes `benchmarks/results/step_overhead.json`, `step_overhead_growth.json` and its picture,
`step_overhead_points.json`, or `step_overhead_memory.json`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_sbr import SafetyAnchor, SBRConfig, SBRSFTTrainer
from trl_sbr.anchors.bottleneck import pad_right, share_prefix
from trl_sbr.anchors.prompts import DEFAULT_PROMPTS
from trl_sbr.demo.data import load_questions
from trl_sbr.demo.smollm2 import TARGET_MODULES, get_smollm2
from trl_sbr.recipes import find_recipe


RESULTS = Path(__file__).parent / "results"
LAMBDA = 50.0


@dataclass(frozen=True)
class Shape:
    """What a step is made of."""

    row_tokens: int = 72
    accumulation: int = 4
    batch_size: int = 8
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = False

    def __str__(self):
        checkpointing = ", checkpointing" if self.gradient_checkpointing else ""
        return f"{self.batch_size} x {self.accumulation} rows of {self.row_tokens} tokens, {self.dtype}{checkpointing}"


@dataclass(frozen=True)
class Way:
    """A way to train: `kind` is `"sft"`, `"sbr"` or `"authors"`."""

    kind: str
    num_anchors: int = 8
    refusal_tokens: int = 1
    openers: str | None = None
    anchors_per_step: int | None = None

    def __str__(self):
        if self.kind == "sft":
            return "sft"
        points = f" of {self.refusal_tokens} tokens" if self.refusal_tokens > 1 else ""
        openers = ", behind openers" if self.openers else ""
        in_turn = f", {self.anchors_per_step} a step" if self.anchors_per_step else ""
        return f"{self.kind}, K = {self.num_anchors}{points}{openers}{in_turn}"


class AuthorsTrainer(SFTTrainer):
    """The anchor term as released: in every micro-batch, through the full logits, with all hidden states kept."""

    anchor: SafetyAnchor

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        batch = pad_right(self.anchor.input_ids, self.accelerator.device)
        hidden_states = model(**batch.inputs, output_hidden_states=True).hidden_states[-1]
        states = hidden_states[batch.rows, batch.columns].float()
        return loss + LAMBDA * torch.nn.functional.mse_loss(states, self.anchor.hidden_states.to(states.device))

    def count_anchor_tokens(self) -> int:
        """Tokens of the anchors, were they in the row where they share their prefix."""
        return share_prefix(self.anchor.input_ids, "cpu").inputs["input_ids"].numel()


class TimedSBRTrainer(SBRSFTTrainer):
    """Times the anchors' own forward and backward within the step: a noisy machine is as noisy for both."""

    anchor_seconds = 0.0

    def count_anchor_tokens(self) -> int:
        """Tokens of a step's anchor forward."""
        return self._anchor_batches[0].inputs["input_ids"].numel()

    def _anchor_step(self, model):
        start = now()
        term = super()._anchor_step(model)
        self.anchor_seconds = now() - start
        return term


class OneStep(TrainerCallback):
    """Ends a training after its first step."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


class StepTimer(TrainerCallback):
    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(now() - self._start)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def load_model(shape: Shape, folder: str | None):
    """
    The model in a folder, else SmolLM2-135M-Instruct, or on a GPU a model of Llama-3.1-8B's shape with random weights; and a
    tokenizer.
    """
    path = folder or get_smollm2(None, report=lambda text: None).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    if folder or not torch.cuda.is_available():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), tokenizer
    config = AutoConfig.for_model(
        "llama",
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    torch.set_default_dtype(getattr(torch, shape.dtype))
    try:
        with torch.device("cuda"):
            return AutoModelForCausalLM.from_config(config), tokenizer
    finally:
        torch.set_default_dtype(torch.float32)


def prompts(num_anchors: int) -> list[str]:
    return [*DEFAULT_PROMPTS, *load_questions("harmful_align")][:num_anchors]


def build_trainer(way: Way, shape: Shape, output_dir: str, folder: str | None = None):
    torch.manual_seed(0)
    model, tokenizer = load_model(shape, folder)
    bf16 = shape.dtype == "bfloat16"
    num_rows = shape.batch_size * shape.accumulation * PartialState().num_processes
    rows = torch.randint(100, 1000, (num_rows, shape.row_tokens)).tolist()
    settings = {
        "output_dir": output_dir,
        "max_steps": 100,  # as many as anchors in turn take; each training is of one
        "per_device_train_batch_size": shape.batch_size,
        "gradient_accumulation_steps": shape.accumulation,
        "gradient_checkpointing": shape.gradient_checkpointing,
        "bf16": bf16,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1000,
        "disable_tqdm": True,
    }
    arguments = {
        "model": model,
        "train_dataset": Dataset.from_list([{"input_ids": row} for row in rows]),
        "processing_class": tokenizer,
        "callbacks": [OneStep()],
        "peft_config": LoraConfig(r=16, lora_alpha=16, target_modules=TARGET_MODULES, task_type="CAUSAL_LM"),
    }
    if way.kind == "sft":
        return SFTTrainer(args=SFTConfig(**settings), **arguments)
    with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16, enabled=bf16):
        anchor = SafetyAnchor.capture(
            model,
            tokenizer,
            prompts(way.num_anchors),
            require_refusal=False,
            refusal_tokens=way.refusal_tokens,
            openers=way.openers,
        )
    if way.kind == "sbr":
        config = SBRConfig(
            anchor_loss_coef=LAMBDA, anchor_require_refusal=False, anchors_per_step=way.anchors_per_step, **settings
        )
        return TimedSBRTrainer(args=config, anchor=anchor, **arguments)
    trainer = AuthorsTrainer(args=SFTConfig(**settings), **arguments)
    trainer.anchor = anchor
    return trainer


def time_steps(
    ways: list[Way], shape: Shape, rounds: int, folder: str | None
) -> tuple[dict[Way, list[tuple[float, float]]], dict[Way, int]]:
    """
    Seconds of an optimizer step, and of the anchors' part of it, the ways in turn, after a round that is not counted; and the
    anchor tokens of a step.
    """
    seconds = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as output_dir:
        trainers = {way: build_trainer(way, shape, output_dir, folder) for way in ways}
        timers = {way: StepTimer() for way in ways}
        for way, trainer in trainers.items():
            trainer.add_callback(timers[way])
        for number in range(rounds + 1):
            for way, trainer in trainers.items():
                trainer.train()
                step, anchors = timers[way].seconds[-1], getattr(trainer, "anchor_seconds", 0.0)
                print(f"  round {number} of {rounds}, {way}: {step:.3f} s, anchors {anchors:.3f} s", flush=True)
                seconds[way].append((step, anchors))
        tokens = {way: 0 if way.kind == "sft" else trainer.count_anchor_tokens() for way, trainer in trainers.items()}
    return {way: durations[1:] for way, durations in seconds.items()}, tokens


def peak_memory(way: Way, shape: Shape) -> int:
    """Peak memory in bytes of two steps in a process of their own."""
    command = [sys.executable, __file__, "--memory_of", json.dumps([asdict(way), asdict(shape)])]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def print_peak_memory(way: Way, shape: Shape) -> None:
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = build_trainer(way, shape, output_dir)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        trainer.train()
    if torch.cuda.is_available():
        print(torch.cuda.max_memory_allocated())
    else:  # not `ru_maxrss`, which a process inherits from the one that started it
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        print(int(line.split()[1]) * 1024)


def compare_memory(ways: list[Way], shapes: list[Shape]) -> list[dict]:
    rows = []
    for shape in shapes:
        peaks = {way: peak_memory(way, shape) for way in ways}
        for way, peak in peaks.items():
            percent = round(100 * (peak / peaks[ways[0]] - 1), 2)
            rows.append({"way": str(way), **asdict(shape), "peak_memory_bytes": peak, "over_sft_percent": percent})
            print(f"{str(shape):58} {str(way):16} {peak / 1e9:8.3f} GB {percent:+8.1f} %", flush=True)
    return rows


def median_and_range(values: list[float], digits: int) -> list[float]:
    return [round(function(values), digits) for function in (statistics.median, min, max)]


def compare(ways: list[Way], shape: Shape, rounds: int, folder: str | None = None) -> list[dict]:
    """
    One row a way, with medians, minima and maxima: the overhead is the ratio to the step of plain SFT in the same round,
    the anchors' share is timed within the step and divided by its rest.
    """
    print(f"{shape}", flush=True)
    seconds, tokens = time_steps(ways, shape, rounds, folder)
    plain = [step for step, _ in seconds[ways[0]]]
    rows = []
    for way in ways:
        steps, anchors = zip(*seconds[way], strict=True)
        rows.append(
            {
                "way": str(way),
                "num_anchors": 0 if way.kind == "sft" else way.num_anchors,
                "anchor_tokens": tokens[way],
                "refusal_tokens": way.refusal_tokens,
                "openers": way.openers,
                "anchors_per_step": way.anchors_per_step,
                "num_processes": PartialState().num_processes,
                "threads": torch.get_num_threads(),
                **asdict(shape),
                "step_seconds": [round(step, 4) for step in steps],
                "overhead_percent": median_and_range(
                    [100 * (s / p - 1) for s, p in zip(steps, plain, strict=True)], 2
                ),
                "anchor_seconds": median_and_range(anchors, 4),
                "anchor_percent": median_and_range(
                    [100 * a / (s - a) for s, a in zip(steps, anchors, strict=True)], 2
                ),
            }
        )
    return rows


def print_table(rows: list[dict]) -> None:
    print(f"\n{'':58} {'way':52} {'step, s':>8} {'over SFT, %':>22} {'anchors, %':>20}")
    for row in rows:
        shape = Shape(**{name: row[name] for name in Shape.__dataclass_fields__})
        overhead, anchors = (
            "{:6.1f} [{:5.1f}, {:5.1f}]".format(*row[k]) for k in ("overhead_percent", "anchor_percent")
        )
        step = statistics.median(row["step_seconds"])
        print(f"{str(shape):58} {row['way']:52} {step:8.3f} {overhead:>22} {anchors:>20}")


def standard_shapes() -> list[Shape]:
    if torch.cuda.is_available():
        return [Shape(gradient_checkpointing=checkpointing) for checkpointing in (False, True)]
    return [Shape(), Shape(dtype="float32"), Shape(accumulation=1), Shape(row_tokens=512, accumulation=1)]


def growth(rounds: int) -> list[dict]:
    """SBR against anchors, row length and accumulation on all threads, and against processes of one thread each."""
    cases = [(Shape(accumulation=1), k) for k in (1, 4, 8, 16, 64)]
    cases += [(Shape(row_tokens=tokens, accumulation=1), 8) for tokens in (36, 144, 288)]
    cases += [(Shape(accumulation=accumulation), 8) for accumulation in (2, 4)]
    rows = []
    for shape in dict.fromkeys(shape for shape, _ in cases):
        ways = [Way("sft"), *(Way("sbr", k) for other, k in cases if other == shape)]
        rows += compare(ways, shape, rounds)
    if not torch.cuda.is_available():
        for num_processes in (1, 2):
            rows += compare_in_processes(num_processes, Shape(accumulation=1), rounds)
    return rows


def compare_in_processes(num_processes: int, shape: Shape, rounds: int) -> list[dict]:
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(find_recipe("accelerate_configs/cpu_2_processes")),
    ]
    launcher += ["--num_processes", str(num_processes), "--main_process_port", "0"]
    command = [sys.executable, *launcher, __file__, "--rounds", str(rounds), "--compare_at", json.dumps(asdict(shape))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def print_comparison(shape: Shape, rounds: int) -> None:
    rows = compare([Way("sft"), Way("sbr")], shape, rounds)
    if PartialState().is_main_process:
        print(json.dumps(rows))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def draw_growth(rows: list[dict], path: Path) -> None:
    """Seconds added to a step: against anchor tokens, and at eight anchors for steps of every size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def draw(axes, positions, rows, **kwargs):
        seconds = [row["anchor_seconds"] for row in rows]
        errors = [[median - low for median, low, _ in seconds], [high - median for median, _, high in seconds]]
        axes.errorbar(positions, [median for median, _, _ in seconds], errors, marker="o", capsize=3, **kwargs)
        axes.set_ylim(0)

    rows = [row for row in rows if row["num_anchors"] and row["num_processes"] == 1 and row["threads"] > 1]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    several = sorted(
        (row for row in rows if {**row, **asdict(Shape(accumulation=1))} == row), key=lambda row: row["num_anchors"]
    )
    draw(left, [row["anchor_tokens"] for row in several], several)
    for row in several:
        point = row["anchor_tokens"], row["anchor_seconds"][0]
        left.annotate(f"K = {row['num_anchors']}", point, (7, -7), textcoords="offset points", fontsize=8)
    left.margins(x=0.15)
    left.set(xlabel="anchor tokens", ylabel="seconds added to a step", title="The cost grows with the anchors")

    eight = [row for row in rows if row["num_anchors"] == 8]
    eight.sort(key=lambda row: row["row_tokens"] * row["accumulation"])
    draw(right, range(len(eight)), eight, linestyle="none")
    labels = [f"{row['batch_size']} x {row['accumulation']}\nrows of {row['row_tokens']}" for row in eight]
    right.set_xticks(range(len(eight)), labels, fontsize=8)
    right.set_title("and with nothing else (K = 8)")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="counted steps of each way (default: %(default)s)")
    parser.add_argument("--growth", action="store_true", help="how the overhead grows, instead of the comparison")
    parser.add_argument(
        "--points", metavar="FOLDER", help="anchors in turn, and of a hardened model, not the comparison"
    )
    parser.add_argument("--memory", action="store_true", help="peak memory, instead of the comparison")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # for the processes that this script starts
    parser.add_argument("--compare_at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compare_at is not None:
        return print_comparison(Shape(**json.loads(args.compare_at)), args.rounds)
    if args.memory_of is not None:
        way, shape = json.loads(args.memory_of)
        return print_peak_memory(Way(**way), Shape(**shape))

    ways = [Way("sft"), Way("sbr"), Way("sbr", 1), Way("authors")]
    if args.memory:
        name, rows = "step_overhead_memory", compare_memory(ways, standard_shapes()[:2])
    elif args.growth:
        name, rows = "step_overhead_growth", growth(args.rounds)
    elif args.points:
        in_turn = [Way("sbr", anchors_per_step=number) for number in (None, 4, 2, 1)]
        deep = [Way("sbr", refusal_tokens=14, anchors_per_step=number) for number in (None, 4, 2)]
        deep.append(Way("sbr", refusal_tokens=14, openers="default", anchors_per_step=8))
        shapes = (Shape(), Shape(accumulation=1))
        rows = [row for s in shapes for row in compare([Way("sft"), *in_turn, *deep], s, args.rounds, args.points)]
        name = "step_overhead_points"
    else:
        name, rows = "step_overhead", [row for s in standard_shapes() for row in compare(ways, s, args.rounds)]
    if not args.memory:
        print_table(rows)
    report = {
        "machine": {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": {name: version(name) for name in ("trl_sbr", "trl", "transformers", "peft", "torch")},
        "rows": rows,
    }
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    if args.growth:
        draw_growth(rows, path.with_suffix(".png"))
    print(f"\nWrote {path}.")


if __name__ == "__main__":
    main()
