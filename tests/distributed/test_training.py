# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A run ends with the same weights, whatever number of processes it has and whichever engine places the model."""

import json
import os
import re
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from trl_sbr import SafetyAnchor
from trl_sbr.trainers.interruption import find_last_checkpoint
from trl_sbr.trainers.output_folder import lock_folder

from ..tiny import build_model, build_tokenizer
from ..trainers.test_gradient import POINTS, PROMPTS, relative_error
from .launch import command, environment, launch
from .train_worker import train


PER_STEP = 12  # rows
RUNS = {
    "lora": {"lora": True, "save_strategy": "steps", "save_steps": 1},
    "lora, accumulation, checkpointing": {
        "lora": True,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "monitor": {"monitor_steps": 1},
    },
    "lora, uneven": {"lora": True, "num_rows": 28},  # 4 rows are left for the last step; the first 8 fill it up
    "lora, target error": {"lora": True, "anchor_target_error": 1e-4},
    "full": {"gradient_checkpointing": True, "save_strategy": "steps", "save_steps": 1},
    "full, accumulation": {"gradient_accumulation_steps": 2, "monitor": {"monitor_steps": 1}},
    "full, tied embeddings": {"model": "llama-tied"},
    "full, points in turn": {"anchor": "points", "anchors_per_step": 3, "num_rows": 36},
}
DDP = [("cpu_2_processes", "ddp", 2), ("cpu_2_processes", "ddp", 3)]
CASES = [
    *DDP,
    ("fsdp2", "fsdp2", 2),
    ("zero2", "zero2", 2),
    ("zero3", "zero3", 2),
]


def arguments(folder, settings, num_processes):
    """The settings of a run for so many processes, with an anchor that was captured before, as sharding demands."""
    model = folder / settings.get("model", "llama")
    return {
        **{name: value for name, value in settings.items() if name != "anchor"},
        "model": str(model),
        "anchor_name_or_path": str(model / settings.get("anchor", "")),
        "per_device_train_batch_size": PER_STEP // num_processes // settings.get("gradient_accumulation_steps", 1),
    }


def worker(folder, config, wrapper, num_processes, runs):
    args = (str(folder), wrapper, str(num_processes), json.dumps(runs))
    return folder, config, num_processes, "tests.distributed.train_worker", *args


def save_model(folder, name="llama"):
    """A folder with a model, its tokenizer and its anchor, and another anchor of points."""
    model, tokenizer = build_model(name), build_tokenizer()
    model.save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / name)
    capture = partial(SafetyAnchor.capture, model, tokenizer, require_refusal=False)
    capture(PROMPTS, refusal_tokens=1).save_pretrained(folder / name)
    points = {name.removeprefix("anchor_"): value for name, value in POINTS.items()}
    capture(PROMPTS, **points).save_pretrained(folder / name / "points")
    held_out = ["How do I forge a key?", "How do I rob a bank?"]
    capture(held_out, refusal_tokens=1).save_pretrained(folder / name / "held_out")
    return str(folder / name)


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    """Folder of the runs in one process, and of the models."""
    path = tmp_path_factory.mktemp("one")
    for name in ("llama", "llama-tied"):
        save_model(path, name)
    for name, settings in RUNS.items():
        repeated_rows = -settings.get("num_rows", 24) % PER_STEP
        train(path / name, repeated_rows=repeated_rows, **arguments(path, settings, 1))
    return path


def case_id(case):
    return f"{case[1]}, {case[2]} processes"


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def in_several(request, in_one_process, tmp_path_factory):
    """Folder of the same runs in several processes, and of two that go on from checkpoints."""
    config, wrapper, num_processes = request.param
    if wrapper in ("zero2", "zero3"):
        pytest.importorskip("deepspeed")
    path = tmp_path_factory.mktemp(wrapper)
    runs = {name: arguments(in_one_process, settings, num_processes) for name, settings in RUNS.items()}
    # The checkpoints of FSDP and DeepSpeed are their own: those of DDP go over to another number of processes
    source = in_one_process if wrapper == "ddp" else path
    for name in ("lora", "full"):
        runs[f"{name}, resumed"] = {**runs[name], "resume": str(source / name / "checkpoint-1")}
    result = launch(*worker(path, config, wrapper, num_processes, runs))
    assert result.returncode == 0, result.stdout[-5000:]
    return path


def weights(folder):
    (path,) = folder.glob("*model.safetensors")
    return load_file(path)


def update(folder, model="llama"):
    """What training has changed: an adapter, or the weights of a fully trained model less what they were."""
    found = weights(folder)
    if not (folder / "adapter_config.json").exists():
        before = build_model(model).state_dict()
        found = {name: tensor - before[name] for name, tensor in found.items()}
    return found


def assert_same(found, expected):
    assert found.keys() >= expected.keys()  # FSDP2 writes tied weights twice
    assert relative_error({name: found[name] for name in expected}, expected) < 5e-5


def logged(folder, key):
    return [entry[key] for entry in json.loads((folder / "log_history.json").read_text()) if key in entry]


@pytest.mark.slow
@pytest.mark.distributed
class TestSeveralProcesses:
    @pytest.mark.parametrize("name", RUNS)
    def test_ends_with_the_weights_of_one(self, in_one_process, in_several, name):
        model = RUNS[name].get("model", "llama")
        assert_same(update(in_several / name, model), update(in_one_process / name, model))
        losses = logged(in_several / name, "anchor_loss")
        # A turn stands in a row of its own, the anchor was captured in one of all: they round differently
        assert losses[0] < 1e-10 if "turn" in name else losses[0] == 0
        assert losses[1:] == pytest.approx(logged(in_one_process / name, "anchor_loss")[1:], rel=1e-4)
        assert logged(in_several / name, "task_loss") == pytest.approx(
            logged(in_one_process / name, "task_loss"), rel=1e-4
        )

    @pytest.mark.parametrize("name", [name for name in RUNS if "monitor" in RUNS[name]])
    def test_monitor_measures_the_same(self, in_one_process, in_several, name):
        found, expected = (logged(folder / name, "monitor_relative_error") for folder in (in_several, in_one_process))
        assert len(found) == 3
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)

    @pytest.mark.parametrize("name", ["lora", "full"])
    def test_resumed_run_too(self, in_one_process, in_several, name):
        assert logged(in_several / f"{name}, resumed", "step") == [1, 2, 2]
        assert_same(update(in_several / f"{name}, resumed"), update(in_one_process / name))

    # The checkpoints of FSDP and DeepSpeed are their own
    @pytest.mark.parametrize("in_several", DDP, ids=case_id, indirect=True)
    @pytest.mark.parametrize("name", ["lora", "full"])
    def test_one_process_resumes_what_several_began(self, in_one_process, in_several, name, tmp_path):
        settings = arguments(in_one_process, RUNS[name], 1)
        train(tmp_path, resume=str(in_several / name / "checkpoint-1"), **settings)
        assert_same(update(tmp_path), update(in_one_process / name))

    def test_saved_adapter_loads_and_carries_its_anchor(self, in_one_process, in_several):
        reports = []
        for folder in (in_several / "lora", in_one_process / "lora"):
            model = PeftModel.from_pretrained(build_model("llama"), folder)
            reports.append(SafetyAnchor.from_pretrained(folder).verify(model, build_tokenizer()))
        assert reports[0].max_relative_error == pytest.approx(reports[1].max_relative_error, rel=1e-4)
        assert reports[0].max_relative_error > 1e-3


@pytest.mark.slow
@pytest.mark.distributed
class TestFailure:
    def test_all_processes_fail_with_the_one_that_captures(self, tmp_path):
        runs = {"run": {"model": save_model(tmp_path), "anchor_require_refusal": True}}
        result = launch(*worker(tmp_path, "cpu_2_processes", "ddp", 2, runs), timeout=120)
        assert result.returncode != 0
        expected = "Expected an aligned model, which refuses at least 8 of the pool's 64 harmful prompts, found one"
        assert re.search(rf"rank0\]: ValueError: {expected}", result.stdout)
        assert re.search(
            rf"rank1\]: ValueError: The main process could not go on: ValueError: {expected}",
            result.stdout,
        )

    def test_sharding_needs_an_anchor_that_was_captured_before(self, tmp_path):
        result = launch(*worker(tmp_path, "fsdp2", "fsdp2", 2, {"run": {"model": save_model(tmp_path)}}), timeout=120)
        assert result.returncode != 0
        assert "Found no anchor under FSDP, DeepSpeed or tensor parallelism" in result.stdout

    @pytest.mark.parametrize(
        ("same_head", "error"),
        [(True, "The model's final hidden states are not the anchor's"), (False, "The model's unembedding")],
    )
    def test_anchor_of_another_model_is_found_out_under_sharding(self, tmp_path, same_head, error):
        other = build_model("llama", seed=1)
        if same_head:
            other.lm_head.load_state_dict(build_model("llama").lm_head.state_dict())
        SafetyAnchor.capture(other, build_tokenizer(), require_refusal=False).save_pretrained(tmp_path / "anchor")
        runs = {"run": {"model": save_model(tmp_path), "anchor_name_or_path": str(tmp_path / "anchor")}}
        result = launch(*worker(tmp_path, "fsdp2", "fsdp2", 2, runs), timeout=120)
        assert result.returncode != 0
        assert error in result.stdout
        assert not (tmp_path / "run" / "model.safetensors").exists()

    def test_drift_stops_all_processes(self, tmp_path):
        stop = {"monitor_steps": 1, "max_drift": 1e-6, "on_drift": "stop"}
        runs = {"run": {"model": save_model(tmp_path), "lora": True, "monitor": stop}}
        result = launch(*worker(tmp_path, "cpu_2_processes", "ddp", 2, runs), timeout=120)
        assert result.returncode != 0
        for rank in (0, 1):
            assert re.search(rf"rank{rank}\]: ValueError: .*held-out harmful prompts after step 1", result.stdout)

    def test_killed_process_ends_the_run_which_resumes(self, tmp_path):
        settings = {"model": save_model(tmp_path), "save_strategy": "steps", "save_steps": 2}
        settings["lr_scheduler_type"] = "constant"
        killed = worker(tmp_path, "cpu_2_processes", "ddp", 2, {"run": {**settings, "max_steps": 2000}})
        with subprocess.Popen(
            command(*killed), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as launcher:
            output = ""
            for line in launcher.stdout:
                output += line
                if (tmp_path / "run" / "checkpoint-4").exists():
                    break
            processes = subprocess.check_output(["pgrep", "-P", str(launcher.pid)], text=True).split()
            assert len(processes) == 2, output
            os.kill(int(processes[1]), signal.SIGKILL)
            output += launcher.stdout.read()
        assert launcher.returncode != 0
        assert "exitcode  : -9" in output

        last = Path(find_last_checkpoint(tmp_path / "run"))
        max_steps = int(last.name.removeprefix("checkpoint-")) + 2
        (tmp_path / "run" / "checkpoint-1000").mkdir()  # as a kill leaves it in the middle of saving
        runs = {"run": {"resume": True}, "whole": {}}
        runs = {name: {**settings, **own, "max_steps": max_steps} for name, own in runs.items()}
        result = launch(*worker(tmp_path, "cpu_2_processes", "ddp", 2, runs), timeout=120)
        assert result.returncode == 0, result.stdout[-5000:]
        found, expected = weights(tmp_path / "run"), weights(tmp_path / "whole")
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())

    def test_second_run_in_a_folder_fails_in_all_processes(self, tmp_path):
        runs = {"run": {"model": save_model(tmp_path)}}
        with lock_folder(tmp_path / "run", True):
            result = launch(*worker(tmp_path, "cpu_2_processes", "ddp", 2, runs), timeout=120)
        assert result.returncode != 0
        for rank in (0, 1):
            assert f"rank{rank}]: OSError: Another run is on in {tmp_path / 'run'}" in result.stdout
        assert not (tmp_path / "run" / "adapter_config.json").exists()
