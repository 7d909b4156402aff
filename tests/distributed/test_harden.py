# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from trl_sbr.cli import main

from ..tiny import build_refusing_model, build_tokenizer
from .launch import launch


pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture
def flags(tmp_path):
    for part in (build_refusing_model(), build_tokenizer()):
        part.save_pretrained(tmp_path / "aligned")
    for kind in ("harmful", "benign"):
        (tmp_path / f"{kind}.txt").write_text("\n".join(f"A {kind} question {i}?" for i in range(4)))
    return [
        *("--config", "smollm2-135m-instruct/harden_lora", "--model_name_or_path", str(tmp_path / "aligned")),
        *("--harmful_prompts", str(tmp_path / "harmful.txt"), "--benign_prompts", str(tmp_path / "benign.txt")),
        *("--dtype", "float32", "--bf16", "false", "--use_peft", "false", "--max_steps", "3"),
    ]


def test_two_processes_end_with_the_weights_of_one(flags, tmp_path):
    module = "trl_sbr.scripts.harden"
    run = launch(
        *(tmp_path, "ddp", 2, module, *flags),
        *("--per_device_train_batch_size", "2", "--output_dir", str(tmp_path / "two")),
    )
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("Wrote the hardened model") == 1
    assert json.loads((tmp_path / "two" / "hardening.json").read_text())["training"]["num_processes"] == 2
    one = ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "one")]
    assert main(["harden", *flags, *one]) == 0
    one, two, aligned = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("one", "two", "aligned"))
    assert not torch.equal(one.model.layers[0].mlp.fc1.weight, aligned.model.layers[0].mlp.fc1.weight)
    for (name, expected), found in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5, msg=name)


def test_a_sharded_model_is_an_error(flags, tmp_path):
    pytest.importorskip("deepspeed")
    run = launch(tmp_path, "zero2", 2, "trl_sbr.scripts.harden", *flags, "--output_dir", str(tmp_path / "out"))
    assert run.returncode != 0
    assert "Found FSDP or DeepSpeed" in run.stdout
