# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""With `anchor_target_error` λ is driven by the error of the anchors' states, and is all that changes."""

import json
import math
import shutil

import pytest
import torch
from transformers import TrainerCallback

from trl_sbr.trainers.run_record import RECORD_NAME

from ..tiny import build_model
from .any_trainer import KINDS, build
from .test_any_trainer import capture
from .test_gradient import (
    gradients,
    reference_anchor_loss,
    reference_gradient,
    reference_state,
    relative_error,
)
from .test_resuming import trainer_in
from .test_sbr_sft_trainer import history


def expected_coefs(errors, target, least=50.0):
    """λ of each step and of the next one, from the error in each."""
    coefs = [least]
    for error in errors:
        risen = coefs[-1] * math.exp(0.05 * min(error / target - 1, 1))
        coefs.append(min(max(risen, least), 100 * least))
    return coefs


class ErrorRecorder(TrainerCallback):
    """Keeps the mean relative error of the anchors' states before each step, by plain forwards."""

    def __init__(self, model, input_ids):
        self.input_ids, self.errors = input_ids, []
        self.aligned = self.read(model)

    @torch.no_grad()
    def read(self, model):
        return torch.stack([reference_state(model, ids) for ids in self.input_ids])

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        model.eval()
        difference = self.read(model) - self.aligned
        self.errors.append((difference.norm(dim=-1) / self.aligned.norm(dim=-1)).mean().item())


class TestCoefficient:
    @pytest.mark.parametrize(
        ("kind", "target"), [("Trainer", 1e-4), ("Trainer", 0.9), *((kind, 0.05) for kind in KINDS)]
    )
    def test_follows_the_error(self, tmp_path, kind, target):
        model = build_model("llama")
        anchor = capture(model)
        recorder = ErrorRecorder(model, anchor.input_ids)
        trainer = build(
            kind, tmp_path, model, anchor, target_error=target, max_steps=6, learning_rate=3e-3, callbacks=[recorder]
        )
        trainer.train()
        coefs = expected_coefs(recorder.errors, target)
        assert history(trainer, "anchor_coef") == pytest.approx(coefs[1:], rel=1e-4)
        assert (max(coefs) > 50) == (target < 0.9)
        losses = zip(history(trainer, "task_loss"), coefs[:-1], history(trainer, "anchor_loss"), strict=True)
        total = [task + coef * loss for task, coef, loss in losses]
        assert total == pytest.approx(history(trainer, "loss"), rel=1e-4)

    def test_rises_to_a_hundred_times_where_it_began_and_no_further(self, tmp_path):
        # A learning rate of zero: the error stays what it is, and λ rises by 5 % a step
        settings = {"per_device_train_batch_size": 1, "num_rows": 120, "anchor_target_error": 1e-3}
        steps = gradients(tmp_path / "driven", 1.0, **settings)
        plain = gradients(tmp_path / "plain", 0.0, per_device_train_batch_size=1, num_rows=120)
        reference = reference_gradient(reference_anchor_loss)
        for number in (0, 1, 50, 119):
            coef = min(math.exp(0.05 * number), 100)
            part = {name: (g - plain[number][name]) / coef for name, g in steps[number].items()}
            assert relative_error(part, reference) < 1e-5

    def test_begins_anew_with_each_training(self, tmp_path):
        trainer = trainer_in(tmp_path, anchor_target_error=1e-4, save_strategy="no", max_steps=3)
        trainer.train()
        first = history(trainer, "anchor_coef")[-1]
        trainer.train()
        assert history(trainer, "anchor_coef")[0] < first

    def test_constant_without_it(self, tmp_path):
        trainer = trainer_in(tmp_path, save_strategy="no")
        trainer.train()
        assert not history(trainer, "anchor_coef")


class TestResuming:
    def test_goes_on_with_its_lambda_and_ends_with_the_same_bits(self, tmp_path):
        settings = {"anchor_target_error": 1e-4, "max_steps": 4}
        whole = trainer_in(tmp_path / "whole", **settings)
        whole.train()
        shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
        resumed = trainer_in(tmp_path / "resumed", **settings)
        resumed.train(resume_from_checkpoint=True)
        assert history(resumed, "anchor_coef") == history(whole, "anchor_coef")
        expected = dict(whole.model.named_parameters())
        assert all(torch.equal(p, expected[name]) for name, p in resumed.model.named_parameters())
        record = json.loads((tmp_path / "resumed" / "checkpoint-4" / RECORD_NAME).read_text())
        assert record["sbr"]["anchor_coef"] == history(whole, "anchor_coef")[-1]

    @pytest.mark.parametrize(("target", "recorded"), [(1e-4, 1e-9), (None, 1e9)])
    def test_edited_record_neither_weakens_nor_drives_a_run(self, tmp_path, target, recorded):
        trainer_in(tmp_path, anchor_target_error=target).train()
        path = tmp_path / "checkpoint-2" / RECORD_NAME
        record = json.loads(path.read_text())
        record["sbr"]["anchor_coef"] = recorded
        path.write_text(json.dumps(record))
        trainer = trainer_in(tmp_path, anchor_target_error=target, max_steps=3)
        trainer.train(resume_from_checkpoint=True)
        (log,) = [log for log in trainer.state.log_history if log.get("step") == 3 and "loss" in log]
        assert log["loss"] - log["task_loss"] == pytest.approx(50 * log["anchor_loss"], rel=1e-3)

    def test_another_target_raises(self, tmp_path):
        trainer_in(tmp_path).train()
        with pytest.raises(ValueError, match="`anchor_target_error=None`, found `anchor_target_error=0.1`"):
            trainer_in(tmp_path, anchor_target_error=0.1, max_steps=3).train(resume_from_checkpoint=True)

    def test_record_of_an_earlier_release(self, tmp_path):
        trainer_in(tmp_path).train()
        path = tmp_path / "checkpoint-2" / RECORD_NAME
        record = json.loads(path.read_text())
        for name in ("anchor_target_error", "anchor_coef"):
            del record["sbr"][name]
        path.write_text(json.dumps(record))
        trainer = trainer_in(tmp_path, max_steps=3)
        trainer.train(resume_from_checkpoint=True)
        assert trainer.state.global_step == 3


def test_card_says_what_became_of_it(tmp_path):
    trainer = build(
        "Trainer", tmp_path, build_model("llama"), capture(build_model("llama")), target_error=1e-4, max_steps=4
    )
    trainer.train()
    trainer.save_model()
    last = history(trainer, "anchor_coef")[-1]
    card = (tmp_path / "README.md").read_text()
    assert (
        f"| 50.0, more while the anchors' states were further off than 0.0001 of their norm (`anchor_target_error`), {last:.4g} at the end |"
        in card
    )
