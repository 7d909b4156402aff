# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Under data parallelism too, the gradient is that of the single-process reference."""

import itertools
import json
from functools import partial

import pytest
import torch

from ..releases import trains_in_a_process_of_its_own
from ..trainers.any_trainer import KINDS
from ..trainers.test_gradient import (
    COEF,
    NUM_ROWS,
    POINTS,
    reference_anchor_loss,
    reference_gradient,
    reference_points_loss,
    reference_task_loss,
    relative_error,
)
from .launch import launch


# With all tokens averaged, the gradient is that of the whole batch; else the task's share depends on the split, and
# the anchor's share alone is compared.
CONFIGURATIONS = [
    {
        "coef": coef,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": NUM_ROWS // 2 // batch_size,
        "average_tokens_across_devices": average,
        "gradient_checkpointing": checkpointing,
        # Unless it is told that all parameters are used, DDP refuses reentrant checkpointing of plain SFT too
        "gradient_checkpointing_kwargs": {"use_reentrant": average},
        "ddp_find_unused_parameters": False,
        "padding_side": "left" if checkpointing else "right",
    }
    for coef, batch_size, average, checkpointing in itertools.product(
        [COEF, 0.0], [4, 1], [True, False], [False, True]
    )
]


# Three turns, each with all rows
IN_TURN = {"per_device_train_batch_size": NUM_ROWS // 2, "max_steps": 3, "anchors_per_step": 3, **POINTS}


def run(tmp_path, configurations):
    args = str(tmp_path), json.dumps(configurations)
    return launch(tmp_path, "cpu_2_processes", 2, "tests.distributed.gradient_worker", *args)


@pytest.mark.slow
@pytest.mark.distributed
class TestTwoProcesses:
    def test_gradient(self, tmp_path):
        result = run(tmp_path, [*CONFIGURATIONS, IN_TURN])
        assert result.returncode == 0, result.stdout[-3000:]
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
        turns = torch.load(tmp_path / f"gradients-{len(CONFIGURATIONS)}.pt")
        for found, part in zip(turns, (slice(0, 2), slice(2, 5), slice(5, 8)), strict=True):
            anchors = partial(reference_points_loss, part=part, num_turns=3)
            expected = reference_gradient(lambda m, anchors=anchors: reference_task_loss(m) + COEF * anchors(m))
            assert relative_error(found, expected) < 1e-5

    @trains_in_a_process_of_its_own
    def test_anchor_term_in_any_trainer(self, tmp_path):
        pairs = [[{"kind": kind, "coef": c, "gradient_accumulation_steps": 2} for c in (COEF, 0.0)] for kind in KINDS]
        result = run(tmp_path, [settings for pair in pairs for settings in pair])
        assert result.returncode == 0, result.stdout[-3000:]
        expected = reference_gradient(reference_anchor_loss)
        for number, kind in enumerate(KINDS):
            found, plain = (torch.load(tmp_path / f"gradients-{2 * number + i}.pt") for i in range(2))
            assert len(found) == len(plain) > 0
            for step, plain_step in zip(found, plain, strict=True):
                anchor_part = {name: (step[name] - plain_step[name]) / COEF for name in step}
                assert relative_error(anchor_part, expected) < 1e-5, kind

    def test_is_reduced_once_a_step_and_not_by_the_anchors(self, tmp_path):
        result = launch(tmp_path, "cpu_2_processes", 2, "tests.distributed.reduction_worker", str(tmp_path / "run"))
        assert result.returncode == 0, result.stdout[-3000:]
        assert json.loads((tmp_path / "run" / "reductions.json").read_text()) == [1, 1, 1, 1]


@pytest.mark.slow
@pytest.mark.distributed
class TestSharded:
    def test_states_and_gradients_are_those_of_the_whole_model(self, tmp_path):
        result = launch(tmp_path, "cpu_2_processes", 2, "tests.distributed.sharded_worker")
        assert result.returncode == 0, result.stdout[-3000:]
