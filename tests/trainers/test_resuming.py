# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A run goes on from a checkpoint of its own kind, or not at all."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers.trainer import TRAINER_STATE_NAME
from trl import SFTConfig, SFTTrainer

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.trainers.interruption import find_last_checkpoint, list_checkpoints
from trl_sbr.trainers.run_record import RECORD_NAME

from ..tiny import build_refusing_model, build_tokenizer
from .test_sbr_sft_trainer import LORA, make_trainer


SAVE = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}


def trainer_in(folder, **kwargs):
    return make_trainer(folder, build_refusing_model(), peft_config=LoraConfig(**LORA), **{**SAVE, **kwargs})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of a protected run, of an unprotected one, and of one by plain `SFTTrainer`."""
    folder = tmp_path_factory.mktemp("runs")
    trainer_in(folder / "protected").train()
    trainer_in(folder / "unprotected", anchor_loss_coef=0.0).train()
    trainer_in(folder / "plain", cls=SFTTrainer, config=SFTConfig).train()
    return folder


@pytest.fixture
def protected(runs, tmp_path):
    return shutil.copytree(runs / "protected", tmp_path / "protected")


class Named:
    """A path of a class of its own, as `os.fspath` takes it."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


class TestKinds:
    @pytest.mark.parametrize("kind", [str, Path, Named, bool])
    def test_unprotected_checkpoint_is_refused_however_it_is_named(self, runs, tmp_path, kind):
        folder = shutil.copytree(runs / "unprotected", tmp_path / "run")
        checkpoint = kind(folder / "checkpoint-2")
        with pytest.raises(ValueError, match="carries no safety anchor"):
            trainer_in(folder, max_steps=3).train(resume_from_checkpoint=checkpoint)

    @pytest.mark.parametrize("kind", [str, Path, Named, bool])
    def test_protected_one_goes_on(self, protected, kind):
        trainer = trainer_in(protected, max_steps=3)
        trainer.train(resume_from_checkpoint=kind(protected / "checkpoint-2"))
        assert [log["step"] for log in trainer.state.log_history if "anchor_loss" in log] == [1, 2, 3]

    @pytest.mark.parametrize("nothing", [None, False])
    def test_none_begins_anew(self, protected, nothing):
        trainer = trainer_in(protected)
        trainer.train(resume_from_checkpoint=nothing)
        assert trainer.state.log_history[0]["anchor_loss"] == 0

    def test_checkpoint_of_sfttrainer(self, runs, tmp_path):
        checkpoint = runs / "plain" / "checkpoint-1"
        with pytest.raises(ValueError, match="carries no safety anchor"):
            trainer_in(tmp_path).train(resume_from_checkpoint=checkpoint)
        trainer = trainer_in(tmp_path, anchor_loss_coef=0.0)
        trainer.train(resume_from_checkpoint=checkpoint)
        assert trainer.state.global_step == 2

    def test_path_that_is_no_checkpoint(self, tmp_path):
        with pytest.raises(ValueError, match="nowhere cannot be resumed: It has no `trainer_state.json`"):
            trainer_in(tmp_path).train(resume_from_checkpoint=tmp_path / "nowhere")


class TestTurns:
    def test_a_resumed_run_goes_on_with_the_next_turn_and_ends_with_the_same_bits(self, tmp_path):
        settings = {"anchors_per_step": 3, "max_steps": 4}
        whole = trainer_in(tmp_path / "whole", **settings)
        whole.train()
        shutil.copytree(tmp_path / "whole" / "checkpoint-1", tmp_path / "resumed" / "checkpoint-1")
        resumed = trainer_in(tmp_path / "resumed", **settings)
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.log_history[0] == whole.state.log_history[0]
        losses = [[log["anchor_loss"] for log in run.state.log_history[:4]] for run in (whole, resumed)]
        assert losses[0] == losses[1]
        expected = dict(whole.model.named_parameters())
        assert all(torch.equal(p, expected[name]) for name, p in resumed.model.named_parameters())

    def test_the_steps_before_the_checkpoint_count(self, tmp_path):
        settings = {"anchors_per_step": 3, "max_steps": 3}
        trainer_in(tmp_path, **settings).train()
        trainer_in(tmp_path, **settings).train(resume_from_checkpoint=tmp_path / "checkpoint-2")


class TestSettings:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"anchor_loss_coef": 49.0}, r"`anchor_loss_coef=50.0`, found `anchor_loss_coef=49.0`.*Resume with"),
            ({"anchor_loss_coef": 0.0}, r"`anchor_loss_coef=50.0`, found `anchor_loss_coef=0.0`"),
            ({"anchor_loss_type": "relative"}, "`anchor_loss_type='mse'`, found `anchor_loss_type='relative'`"),
            ({"anchors_per_step": 4}, "`anchors_per_step=None`, found `anchors_per_step=4`"),
            ({"anchor_reference": "current"}, "its `reference` is 'base', this run's 'current'"),
        ],
    )
    @pytest.mark.parametrize("kind", [Path, bool])
    def test_others_than_the_checkpoints_raise(self, protected, tmp_path, kind, changed, message):
        folder = protected
        if "anchor_loss_coef" in changed and changed["anchor_loss_coef"] == 0:
            folder, kind = tmp_path / "elsewhere", Path  # where no anchor lies
        trainer = trainer_in(folder, max_steps=3, **changed)
        with pytest.raises(ValueError, match=message):
            trainer.train(resume_from_checkpoint=kind(protected / "checkpoint-2"))
        assert trainer.state.global_step == 0

    def test_a_record_that_knows_no_turns_is_of_a_run_on_all_anchors(self, protected):
        path = protected / "checkpoint-2" / RECORD_NAME
        record = json.loads(path.read_text())
        del record["sbr"]["anchors_per_step"]
        path.write_text(json.dumps(record))
        trainer_in(protected, max_steps=3).train(resume_from_checkpoint=True)

    def test_record_that_says_another_lambda(self, protected):
        path = protected / "checkpoint-2" / RECORD_NAME
        record = json.loads(path.read_text())
        record["sbr"]["anchor_loss_coef"] = 1e-9
        path.write_text(json.dumps(record))
        with pytest.raises(ValueError, match="`anchor_loss_coef=1e-09`, found `anchor_loss_coef=50.0`"):
            trainer_in(protected).train(resume_from_checkpoint=True)

    @pytest.mark.parametrize("content", [None, "{}", '{"sbr": 1}', "[]", "{"])
    def test_record_that_is_none(self, protected, content):
        path = protected / "checkpoint-2" / RECORD_NAME
        path.unlink() if content is None else path.write_text(content)
        message = "sbr_run.json is not there" if content is None else "is not the record of a training"
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            trainer_in(protected).train(resume_from_checkpoint=protected / "checkpoint-2")


def add_to_weights(folder):
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 0.1 for name, tensor in weights.items()}, path)


def swap_anchor(folder):
    model = build_refusing_model()
    SafetyAnchor.capture(model, build_tokenizer(), ["Do harm!"]).save_pretrained(folder, overwrite=True)


def cut_off(name):
    def cut(folder):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return cut


def remove(name):
    return lambda folder: (folder / name).unlink()


DAMAGE = {
    "weights of another": (add_to_weights, "adapter_model.safetensors is not of the training"),
    "anchor of another": (swap_anchor, "safety_anchor.* is not of the training"),
    "half the weights": (cut_off("adapter_model.safetensors"), "adapter_model.safetensors is not of the training"),
    "no weights": (remove("adapter_model.safetensors"), "holds no `adapter_model.safetensors`"),
    "half the state": (cut_off(TRAINER_STATE_NAME), "Its `trainer_state.json` cannot be read"),
    "no state": (remove(TRAINER_STATE_NAME), "It has no `trainer_state.json`"),
    "half the optimizer": (cut_off("optimizer.pt"), "Its `optimizer.pt` was cut off"),
    "half the random state": (cut_off("rng_state.pth"), "Its `rng_state.pth` was cut off"),
    "half the record": (cut_off(RECORD_NAME), "is not the record of a training"),
    "no anchor": (remove(CONFIG_NAME), f"holds no `{CONFIG_NAME}`"),
    "half an anchor": (cut_off(TENSOR_NAME), f"{TENSOR_NAME} is not of the training"),
    "other weights too": (lambda f: save_file({"x": torch.ones(1)}, f / "model.safetensors"), "names no such file"),
}


class TestDamage:
    @pytest.mark.parametrize("kind", DAMAGE)
    def test_is_found_out_and_the_one_before_is_taken(self, runs, tmp_path, caplog, kind):
        folder = shutil.copytree(runs / "protected", tmp_path / "run")
        damage, message = DAMAGE[kind]
        damage(folder / "checkpoint-2")
        with caplog.at_level(logging.WARNING):
            assert find_last_checkpoint(folder) == str(folder / "checkpoint-1")
        (warning,) = [record.getMessage() for record in caplog.records if "Passed over" in record.getMessage()]
        assert str(folder / "checkpoint-2") in warning
        with pytest.raises(ValueError, match=f"checkpoint-2 cannot be resumed: .*{message}"):
            trainer_in(folder).train(resume_from_checkpoint=str(folder / "checkpoint-2"))

    def test_run_goes_on_from_the_one_before(self, protected):
        cut_off(TRAINER_STATE_NAME)(protected / "checkpoint-2")
        trainer = trainer_in(protected)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 2
        assert find_last_checkpoint(protected) == str(protected / "checkpoint-2")

    def test_none_is_left(self, protected):
        for step in (1, 2):
            cut_off(TRAINER_STATE_NAME)(protected / f"checkpoint-{step}")
        with pytest.raises(ValueError, match="No valid checkpoint found"):
            find_last_checkpoint(protected)


class TestNames:
    def test_others_are_none_of_the_runs(self, protected):
        for name in ("x9", "2-v2", "old-500", "9x", "-3", "", "3.bak", "٣", "+7", "1_0"):
            shutil.copytree(protected / "checkpoint-1", protected / f"checkpoint-{name}")
        (protected / "checkpoint-77").write_text("a file")
        assert [path.name for path in list_checkpoints(protected)] == ["checkpoint-1", "checkpoint-2"]
        assert find_last_checkpoint(protected) == str(protected / "checkpoint-2")

    def test_the_last_is_that_of_the_most_steps(self, protected):
        shutil.copytree(protected / "checkpoint-1", protected / "checkpoint-10")
        assert find_last_checkpoint(protected) == str(protected / "checkpoint-10")
