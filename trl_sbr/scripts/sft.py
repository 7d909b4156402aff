# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Supervised fine-tuning with Safety Bottleneck Regularization.

```bash
trl-sbr sft --config smollm2-135m-instruct/sbr_lora --dataset_name train.jsonl

trl-sbr sft --config llama-3.1-8b-instruct/sbr_lora --dataset_name train.jsonl --anchor_name_or_path my-anchor \
    --accelerate_config multi_gpu --num_processes 4
```

The keys and flags of `accelerate launch`, and `accelerate_config` (a file, or the name of a configuration of TRL or of
this package), launch the training as `trl sft` does; so do several GPUs. `accelerate launch -m trl_sbr.scripts.sft`
does the same.
"""

import sys

from trl_sbr.scripts.training import TrainingCommand


def get_dataclass_types() -> tuple:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_sbr import SBRConfig

    return (ScriptArguments, SBRConfig, ModelConfig, DatasetMixtureConfig)


def find_lack(columns: set[str], training_args) -> str | None:
    text = training_args.dataset_text_field
    if columns & {"messages", "conversations", "input_ids", text} or {"prompt", "completion"} <= columns:
        return None
    return f"`messages`, or `prompt` and `completion`, or `{text}` (named by `dataset_text_field`)"


COMMAND = TrainingCommand("sft", "Supervised fine-tuning", "SBRSFTTrainer", get_dataclass_types, find_lack)
main = COMMAND.main


if __name__ == "__main__":
    from trl_sbr import cli

    sys.exit(cli.run(COMMAND.run, sys.argv[1:]))
