# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What README promises under "What it promises": a test a promise, in its order. Each has a room of its own beside this one."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from trl_sbr import SafetyAnchor
from trl_sbr.cli import main
from trl_sbr.hub.folder import collect_files

from .distributed.launch import launch
from .distributed.test_training import arguments, assert_same, train, weights, worker
from .distributed.test_training import save_model as save_aligned_model
from .tiny import ARCHITECTURES, build_model, build_refusing_model, build_tokenizer
from .trainers.test_gradient import gradients, reference_gradient, relative_error, total_gradient  # noqa: F401  a fixture
from .trainers.test_guard import At, replace_module, unfreeze
from .trainers.test_sbr_sft_trainer import LORA, capture, make_trainer


PROMISES = [
    "The gradient is right.",
    "Any number of processes ends with the same weights.",
    "It raises, and never degrades.",
    "What is saved as held is held.",
    "What lies in one folder is of one training.",
    "An anchor is an artifact that can be checked.",
    "A bad file is one clear line.",
    "Any causal LM of transformers.",
]


def test_readme_promises_no_more():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = readme[readme.index("## What it promises") : readme.index("## What it does not protect against")]
    assert re.findall(r"^- \*\*(.*?)\*\*", section, re.MULTILINE) == PROMISES


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_is_right(tmp_path, total_gradient, accumulation):  # noqa: F811
    (found,) = gradients(
        tmp_path, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation
    )
    assert relative_error(found, total_gradient) < 1e-5


@pytest.mark.slow
@pytest.mark.distributed
def test_any_number_of_processes_ends_with_the_same_weights(tmp_path):
    save_aligned_model(tmp_path)
    train(tmp_path / "one", **arguments(tmp_path, {"lora": True}, 1))
    result = launch(*worker(tmp_path, "cpu_2_processes", "ddp", 2, {"two": arguments(tmp_path, {"lora": True}, 2)}))
    assert result.returncode == 0, result.stdout[-3000:]
    assert_same(weights(tmp_path / "two"), weights(tmp_path / "one"))


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (lambda: build_model("llama", seed=1), {}, "not the anchor's"),
        (build_refusing_model, {"peft_config": LoraConfig(**LORA, modules_to_save=["lm_head"])}, "unembedding"),
        (build_refusing_model, {"peft_config": LoraConfig(**LORA, bias="lora_only")}, "trains biases"),
        (build_refusing_model, {"optim": "lomo"}, "within a backward"),
    ],
    ids=["another model's anchor", "adapter on the unembedding", "biases of the base", "optimizer within a backward"],
)
def test_it_raises_and_never_degrades(tmp_path, model, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, model(), anchor=capture(build_refusing_model()), **settings)


@pytest.mark.parametrize("change", [unfreeze, replace_module])
def test_what_is_saved_as_held_is_held(tmp_path, change):
    trainer = make_trainer(tmp_path, build_refusing_model(), callbacks=[At("on_step_end", change)])
    with pytest.raises((RuntimeError, ValueError), match="unembedding"):
        trainer.train()
    with pytest.raises((RuntimeError, ValueError), match="unembedding"):
        trainer.save_model()
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "safety_anchor.safetensors"])
def test_what_lies_in_one_folder_is_of_one_training(tmp_path, file):
    for number in (1, 2):
        prompts = [f"Do harm number {number}!", "Do something worse!"]
        trainer = make_trainer(
            tmp_path / str(number),
            build_refusing_model(),
            peft_config=LoraConfig(**LORA),
            anchor_prompts=prompts,
            seed=number,
        )
        trainer.train()
        trainer.save_model()
    assert collect_files(tmp_path / "1", "org/adapter")
    (tmp_path / "1" / file).write_bytes((tmp_path / "2" / file).read_bytes())
    with pytest.raises(ValueError, match=re.escape(file)):
        collect_files(tmp_path / "1", "org/adapter")


def test_an_anchor_is_an_artifact_that_can_be_checked(tmp_path):
    model, tokenizer = build_refusing_model(), build_tokenizer()
    capture(model).save_pretrained(tmp_path)
    anchor = SafetyAnchor.from_pretrained(tmp_path)
    assert anchor.verify(model, tokenizer).max_relative_error < 1e-5
    with torch.no_grad():
        model.lm_head.weight[5] += 1.0
    with pytest.raises(ValueError, match="unembedding"):
        anchor.verify(model, tokenizer)
    file = tmp_path / "safety_anchor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "bfloat16"}))
    with pytest.raises(ValueError, match="was edited or corrupted"):
        SafetyAnchor.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00", b"[" * 10_000, b"{}", b'{"format_version": 2}'])
def test_a_bad_file_is_one_clear_line(tmp_path, content, capsys):
    (tmp_path / "safety_anchor_config.json").write_bytes(content)
    save_file({"hidden_states": torch.ones(1, 4)}, tmp_path / "safety_anchor.safetensors")
    assert main(["anchor", "--show", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "safety_anchor_config.json" in error and error.count("\n") == 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_causal_lm_of_transformers(architecture):
    model = build_model(architecture)
    assert capture(model).verify(model, build_tokenizer()).max_relative_error < 1e-4
