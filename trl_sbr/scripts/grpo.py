# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

"""
Group Relative Policy Optimization with Safety Bottleneck Regularization.

```bash
trl-sbr grpo --config smollm2-135m-instruct/sbr_grpo_lora --dataset_name prompts.jsonl --reward_funcs my_rewards.brevity
```

Rows and keys are those of `trl grpo`: `prompt`, and what the rewards read; `reward_funcs` (a name of TRL's, or the import path of
a function, looked for from here) and `reward_model_name_or_path` say what is rewarded. It is launched as `trl-sbr sft` is, see
there.
"""

import importlib
import os
import sys

from trl_sbr.scripts.training import TrainingCommand


def get_dataclass_types() -> tuple:
    from trl import DatasetMixtureConfig, ModelConfig
    from trl.scripts.grpo import GRPOScriptArguments

    from trl_sbr import SBRGRPOConfig

    return (GRPOScriptArguments, SBRGRPOConfig, ModelConfig, DatasetMixtureConfig)


def find_lack(columns: set[str], training_args) -> str | None:
    return None if "prompt" in columns else "`prompt`"


def get_trainer_arguments(script_args) -> dict:
    """The rewards that `trl grpo` takes, by the same names."""
    rewards = [script_args.reward_model_name_or_path] if script_args.reward_model_name_or_path else []
    rewards += [find_reward(name) for name in script_args.reward_funcs or []]
    if not rewards:
        raise ValueError(
            "No reward: give `reward_funcs` (a name of TRL's, or the import path of a function, such as `my_rewards.brevity`), or "
            "`reward_model_name_or_path`."
        )
    return {"reward_funcs": rewards}


def find_reward(name: str):
    """
    A reward function by its name.

    Args:
        name (`str`):
            One of those of `trl grpo`, or the import path of a function.
    """
    from trl import rewards

    if name == "get_soft_overlong_punishment":  # makes one; the values are those of `trl grpo`
        return rewards.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
    if name in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"):
        return getattr(rewards, name)
    module, _, function = name.rpartition(".")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(
            f"`reward_funcs` has `{name}`, which is neither one of `trl grpo` (`accuracy_reward`, `reasoning_accuracy_reward`, "
            f"`think_format_reward`, `get_soft_overlong_punishment`) nor the import path of a function: {error}."
        ) from error


COMMAND = TrainingCommand(
    "grpo",
    "Group Relative Policy Optimization",
    "SBRGRPOTrainer",
    get_dataclass_types,
    find_lack,
    get_trainer_arguments,
)
main = COMMAND.main


if __name__ == "__main__":
    from trl_sbr import cli

    sys.exit(cli.run(COMMAND.run, sys.argv[1:]))
