# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Direct Preference Optimization with Safety Bottleneck Regularization.

```bash
trl-sbr dpo --config smollm2-135m-instruct/sbr_dpo_lora --dataset_name preferences.jsonl
```

Rows and keys are those of `trl dpo`: `chosen` and `rejected`, with a `prompt` or with the prompt in both. It is launched as
`trl-sbr sft` is, see there.
"""

import sys

from trl_sbr.scripts.training import TrainingCommand


def get_dataclass_types() -> tuple:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    from trl_sbr import SBRDPOConfig

    return (ScriptArguments, SBRDPOConfig, ModelConfig, DatasetMixtureConfig)


def find_lack(columns: set[str], training_args) -> str | None:
    return (
        None
        if {"chosen", "rejected"} <= columns
        else "`chosen` and `rejected`, and a `prompt` if they do not begin with it"
    )


COMMAND = TrainingCommand("dpo", "Direct Preference Optimization", "SBRDPOTrainer", get_dataclass_types, find_lack)
main = COMMAND.main


if __name__ == "__main__":
    from trl_sbr import cli

    sys.exit(cli.run(COMMAND.run, sys.argv[1:]))
