# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Starts real processes with the accelerate configurations that the package ships, on a CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

from trl_sbr.recipes import find_recipe


ROOT = Path(__file__).parents[2]


def zero3_for_tiny_models(tmp_path: Path, settings: dict) -> dict:
    """The same ZeRO-3, which by itself would not shard parameters as small as theirs."""
    zero = {
        "stage": 3,
        "stage3_param_persistence_threshold": 0,
        "stage3_prefetch_bucket_size": 0,
        "stage3_max_live_parameters": 0,
        "stage3_max_reuse_distance": 0,
        "stage3_gather_16bit_weights_on_model_save": settings["zero3_save_16bit_model"],
    }
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({**dict.fromkeys(names, "auto"), "zero_optimization": zero}))
    return {"deepspeed_config_file": str(path), "zero3_init_flag": settings["zero3_init_flag"]}


def command(tmp_path: Path, config: str, num_processes: int, module: str, *args: str) -> list[str]:
    """The command that launches `module` with a shipped configuration, but for a CPU and another number of processes."""
    settings = yaml.safe_load(find_recipe(f"accelerate_configs/{config}").read_text())
    settings |= {"use_cpu": True, "mixed_precision": "no", "num_processes": num_processes}
    if config == "zero3":
        del settings["mixed_precision"]  # may not stand beside DeepSpeed's own configuration
        settings["deepspeed_config"] = zero3_for_tiny_models(tmp_path, settings["deepspeed_config"])
    path = tmp_path / f"{config}-{num_processes}.yaml"
    path.write_text(yaml.safe_dump(settings))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    return [*launcher, "--main_process_port", "0", "-m", module, *args]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def launch(*args, timeout: int = 500) -> subprocess.CompletedProcess:
    """Run [`command`] to its end."""
    return subprocess.run(
        command(*args),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
