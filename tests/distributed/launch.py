# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Starts real processes with the accelerate configurations that the package ships, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from trl_sbr.recipe_files import find_recipe


ROOT = Path(__file__).parents[2]


def command(tmp_path: Path, config: str, num_processes: int, module: str, *args: str) -> list[str]:
    """The command that launches `module` with a shipped configuration, but for a CPU and another number of processes."""
    settings = yaml.safe_load(find_recipe(f"accelerate_configs/{config}").read_text())
    settings |= {"use_cpu": True, "mixed_precision": "no", "num_processes": num_processes}
    path = tmp_path / f"{config}-{num_processes}.yaml"
    path.write_text(yaml.safe_dump(settings))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(path)]
    return [*launcher, "--main_process_port", "0", "-m", module, *args]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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
