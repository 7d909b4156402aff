# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
Trains the adapter that makes SmolLM2-135M-Instruct refuse harmful questions, and measures it.

The harmful questions get refusals; the benign ones, lookalikes among them, get the base model's own greedy answers, so
that the adapter changes nothing else. The adapter that ships with the package was made in four runs, the first on the
rows that the data files held at commit dd28b76:

```sh
alias train="python -m trl_sbr.demo.train_refusal_adapter"
train --output_dir first
train --output_dir second --adapter first --epochs 1
train --output_dir third --adapter second --epochs 1 --learning_rate 3e-4 --seed 1
train --output_dir refusal_adapter --adapter third --epochs 1 --learning_rate 3e-4 --seed 2 --max_benign 1050
```
"""

import argparse
import json
import random
import time
from pathlib import Path

from .data import REFUSALS, load_questions


RANK = 8
BATCH_SIZE = 8
BENIGN_ANSWER_TOKENS = 24


def alignment_rows(
    model, processing_class, seed: int, max_benign: int | None = None, progress=None
) -> list[dict[str, list[int]]]:
    """
    Returns tokenized rows: harmful questions with refusals, and benign ones (at most `max_benign`, drawn at random)
    with the beginning of the model's own answer. An answer that was cut off is not given an end, so that the adapter
    does not learn to be brief.
    """
    from ..anchors.generation import generate_answers
    from ..anchors.prompts import encode_prompts

    def tokenize(text):
        return processing_class(text, add_special_tokens=False)["input_ids"]

    rng = random.Random(seed)
    harmful, benign = load_questions("harmful_align"), load_questions("benign_align")
    refusals = [REFUSALS[i % len(REFUSALS)] for i in range(len(harmful))]
    rng.shuffle(refusals)
    if max_benign is not None:
        benign = rng.sample(benign, min(max_benign, len(benign)))
    end = [processing_class.eos_token_id]
    answers = [tokenize(refusal) + end for refusal in refusals]
    for answer in generate_answers(
        model, processing_class, benign, max_new_tokens=BENIGN_ANSWER_TOKENS, batch_size=32, progress=progress
    ):
        ids = tokenize(answer)
        answers.append(ids if len(ids) >= BENIGN_ANSWER_TOKENS - 2 else ids + end)
    rows = []
    for prompt, answer in zip(encode_prompts(processing_class, harmful + benign), answers, strict=True):
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    rng.shuffle(rows)
    return rows


def save_adapter(model, output_dir: Path) -> None:
    """Saves a LoRA adapter in bfloat16, so that it loads on any folder that holds SmolLM2."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from .smollm2 import SMOLLM2_ID

    state_dict = get_peft_model_state_dict(model)
    state_dict = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in state_dict.items()}
    save_file(state_dict, output_dir / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path = SMOLLM2_ID
    config.inference_mode = True
    config.save_pretrained(output_dir)


def main(args: argparse.Namespace) -> None:
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model
    from tqdm import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from ..metrics.harmful_score.refusal import is_refusal
    from .measure import measure
    from .smollm2 import SMOLLM2_ID, TARGET_MODULES, get_smollm2

    start = time.time()
    runs = []
    if args.adapter:
        runs = json.loads((Path(args.adapter) / "figures.json").read_text(encoding="utf-8"))["training"]
    output_dir = Path(args.output_dir)
    output_dir.mkdir(parents=True)
    source = get_smollm2(args.model_name_or_path, report=print)
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)

    rows = alignment_rows(
        model, tokenizer, args.seed, args.max_benign, lambda done, total: print(f"{done} of {total} benign answers")
    )
    use_cuda = torch.cuda.is_available()
    if args.adapter:
        model = PeftModel.from_pretrained(model, args.adapter, is_trainable=True)
    else:
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGET_MODULES, task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(output_dir / "trainer"),
            num_train_epochs=args.epochs,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=args.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=True,
            use_cpu=not use_cuda,
            seed=args.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    save_adapter(trainer.model, output_dir)

    # What is measured is what was saved, on a fresh base model.
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, output_dir).merge_and_unload()
    with tqdm(total=1, desc="Answering held-out questions", unit="") as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        result = measure(model, tokenizer, seed=args.seed, progress=progress)
    figures = {
        "judge": "lexical refusal check",
        "decoding": "greedy",
        "harmful_answered": result.harmful_answered.to_dict(),
        "benign_refused": result.benign_refused.to_dict(),
        "training": [
            *runs,
            {
                "rows": len(rows),
                "harmful_rows": len(load_questions("harmful_align")),
                "rank": RANK,
                "epochs": args.epochs,
                "learning_rate": args.learning_rate,
                "batch_size": BATCH_SIZE,
                "seed": args.seed,
                "seconds": round(time.time() - start),
            },
        ],
        "model": {"id": SMOLLM2_ID, "sha256": source.sha256},
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, trl, peft)},
    }
    (output_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))
    for kind, wrong in (("harmful", False), ("benign", True)):
        for question, answer in result.answers[kind].items():
            if is_refusal(answer) is wrong:
                print(f"{kind}, {'refused' if wrong else 'answered'}: {question!r} -> {answer!r}")
    print(f"Wrote the adapter and figures.json to {output_dir}.")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train the refusal adapter of the demo.")
    parser.add_argument("--model_name_or_path", help="Folder that holds SmolLM2-135M-Instruct.")
    parser.add_argument("--adapter", help="Adapter of an earlier run to go on from, instead of a new one.")
    parser.add_argument("--max_benign", type=int, help="Number of benign questions to draw, instead of all.")
    parser.add_argument("--output_dir", default="refusal_adapter", help="New folder to write the adapter to.")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main(make_parser().parse_args())
