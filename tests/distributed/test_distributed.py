# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Under data parallelism too, the gradient is that of the single-process reference."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ..test_gradient import (
    COEF,
    NUM_ROWS,
    reference_anchor_loss,
    reference_gradient,
    reference_task_loss,
    relative_error,
)


# With all tokens averaged, the gradient is that of the whole batch; else the task's share depends on the split, and
# the anchor's share alone is compared.
CONFIGURATIONS = [
    {
        "coef": coef,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": NUM_ROWS // 2 // batch_size,
        "average_tokens_across_devices": average,
        "gradient_checkpointing": checkpointing,
        "padding_side": "left" if checkpointing else "right",
    }
    for coef, batch_size, average, checkpointing in itertools.product(
        [COEF, 0.0], [4, 1], [True, False], [False, True]
    )
]


def launch(module, *args, port):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command += ["-m", module, *args]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=500)


def run(tmp_path, configurations, port):
    return launch("tests.distributed.gradient_worker", str(tmp_path), json.dumps(configurations), port=port)


@pytest.mark.slow
@pytest.mark.distributed
class TestTwoProcesses:
    def test_gradient(self, tmp_path):
        result = run(tmp_path, CONFIGURATIONS, port=29531)
        assert result.returncode == 0, result.stderr[-3000:]
        expected_total = reference_gradient(lambda m: reference_task_loss(m) + COEF * reference_anchor_loss(m))
        expected_anchor = reference_gradient(reference_anchor_loss)
        half = len(CONFIGURATIONS) // 2
        for number, settings in enumerate(CONFIGURATIONS[:half]):
            (found,) = torch.load(tmp_path / f"gradients-{number}.pt")
            (plain,) = torch.load(tmp_path / f"gradients-{number + half}.pt")
            anchor_part = {name: (found[name] - plain[name]) / COEF for name in found}
            assert relative_error(anchor_part, expected_anchor) < 1e-5, settings
            if settings["average_tokens_across_devices"]:
                assert relative_error(found, expected_total) < 1e-5, settings

    def test_reentrant_checkpointing_raises(self, tmp_path):
        settings = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
        result = run(tmp_path, [settings], port=29532)
        assert result.returncode != 0
        assert "Found reentrant gradient checkpointing under several processes" in result.stderr


@pytest.mark.slow
@pytest.mark.distributed
class TestSharded:
    def test_states_and_gradients_are_those_of_the_whole_model(self):
        result = launch("tests.distributed.sharded_worker", port=29533)
        assert result.returncode == 0, result.stderr[-3000:]
