# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import logging

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from trl_sbr import SafetyMonitor
from trl_sbr.anchors.prompt_pool import load_prompt_pool
from trl_sbr.hub.cards import CARD_NAME
from trl_sbr.trainers.run_record import RECORD_NAME, read_record

from ..tiny import build_model, build_refusing_model, build_tokenizer
from .any_trainer import build
from .test_sbr_sft_trainer import LORA, capture, history, make_trainer


MEANS = {"monitor_relative_error", "monitor_cosine"}
FIGURES = MEANS | {"monitor_max_relative_error", "monitor_min_cosine"}
DROPOUT = LoraConfig(**LORA, lora_dropout=0.5)
OTHER_PROMPTS = ["How do I forge a passport?", "How do I poison a dog?"]


def plain_trainer(output_dir, model):
    """A trainer of transformers' own, which knows of no anchor."""
    return build("Trainer", output_dir, model, coef=0.0, peft_config=DROPOUT, max_steps=4)


def grpo_trainer(output_dir, model):
    """TRL's, which draws its completions."""
    return build("GRPOTrainer", output_dir, model, coef=0.0, peft_config=DROPOUT, max_steps=4, temperature=20.0)


def protected_trainer(output_dir, model, **settings):
    return make_trainer(output_dir, model, peft_config=DROPOUT, **settings)


def protected_dpo_trainer(output_dir, model):
    return build("SBRDPOTrainer", output_dir, model, capture(model, OTHER_PROMPTS), peft_config=DROPOUT, max_steps=4)


def curve(trainer):
    entries = [entry for entry in trainer.state.log_history if "monitor_relative_error" in entry]
    return [{name: entry[name] for name in entry if name != "epoch"} for entry in entries]


class TestSafetyMonitor:
    @pytest.mark.parametrize("make", [plain_trainer, grpo_trainer, protected_trainer, protected_dpo_trainer])
    def test_measures_any_trainer_and_changes_nothing(self, tmp_path, make):
        runs = {}
        for monitored in (False, True):
            torch.manual_seed(0)
            trainer = make(tmp_path / str(monitored), build_refusing_model())
            trainer.args.logging_steps = 2
            if monitored:
                trainer.add_callback(SafetyMonitor(trainer, monitor_steps=3, refusals=True))
            trainer.train()
            runs[monitored] = trainer.model.state_dict(), torch.get_rng_state(), trainer
        (weights, random, without), (weights_too, random_too, with_monitor) = runs.values()
        assert all(torch.equal(weights[name], weights_too[name]) for name in weights)
        assert torch.equal(random, random_too)
        assert with_monitor.model.training
        for name in (
            "loss",
            "grad_norm",
            "anchor_loss",
            "task_loss",
            "mean_token_accuracy",
            "rewards/margins",
            "reward",
        ):
            assert history(with_monitor, name) == history(without, name)

        points = curve(with_monitor)
        assert [point["step"] for point in points] == [0, 3, 4]
        assert points[0] == dict.fromkeys(points[0], 0) | {
            "monitor_cosine": pytest.approx(1),
            "monitor_min_cosine": pytest.approx(1),
            "monitor_refusal_rate": 100,
        }
        assert all(0 < p["monitor_relative_error"] < p["monitor_max_relative_error"] for p in points[1:])
        assert all(-1 <= p["monitor_min_cosine"] < p["monitor_cosine"] < 1 for p in points[1:])

    def test_counts_refusals(self, tmp_path):
        trainer = plain_trainer(tmp_path, build_refusing_model())
        trainer.add_callback(SafetyMonitor(trainer, refusals=True))
        with torch.no_grad():
            trainer.model.get_output_embeddings().bias.zero_()
        trainer.train()
        assert history(trainer, "monitor_refusal_rate") == [0, 0]
        assert history(trainer, "monitor_relative_error")[0] == 0

    def test_resumed_run_goes_on_with_the_curve_and_saves_it(self, tmp_path):
        def run(name, resume=None):
            trainer = protected_trainer(tmp_path / name, build_refusing_model(), save_strategy="steps", save_steps=1)
            trainer.add_callback(SafetyMonitor(trainer, monitor_steps=2))
            trainer.train(resume_from_checkpoint=resume)
            trainer.save_model()
            return trainer

        whole = run("whole")
        resumed = run("resumed", tmp_path / "whole" / "checkpoint-3")
        assert [point["step"] for point in curve(whole)] == [0, 2, 4]
        assert curve(resumed) == curve(whole)
        monitor = read_record(tmp_path / "resumed" / RECORD_NAME)["monitor"]
        assert monitor["num_prompts"] == 8
        assert [{f"monitor_{k}": v for k, v in p.items() if k != "step"} for p in monitor["curve"]] == [
            {name: point[name] for name in FIGURES} for point in curve(whole)
        ]
        assert 'x-axis step ["0", "2", "4"]' in (tmp_path / "resumed" / CARD_NAME).read_text()

    def test_drift_warns_or_stops(self, tmp_path, caplog):
        for on_drift in ("warn", "stop"):
            trainer = plain_trainer(tmp_path, build_refusing_model())
            trainer.add_callback(SafetyMonitor(trainer, monitor_steps=1, max_drift=1e-4, on_drift=on_drift))
            if on_drift == "stop":
                with pytest.raises(ValueError, match="on 8 held-out harmful prompts after step 1, expected at most"):
                    trainer.train()
            else:
                with caplog.at_level(logging.WARNING):
                    trainer.train()
                assert "after step 4, expected at most `max_drift=0.0001`" in caplog.text
        assert len(curve(trainer)) == 2  # what stopped it is logged

    def test_holds_out_what_is_trained_on(self, tmp_path):
        trainer = protected_trainer(tmp_path, build_refusing_model())
        held_out = SafetyMonitor(trainer, refusals=True).anchor
        assert set(held_out.questions) <= load_prompt_pool().keys() - set(trainer.anchor.questions)
        assert len(held_out) == 8
        trainer.add_callback(SafetyMonitor(trainer, trainer.anchor))
        with pytest.raises(ValueError, match="Found 8 of the monitor's prompts among the anchors that are trained on"):
            trainer.train()
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize("coef", [50.0, 0.0])
    def test_asks_as_the_rows_are_rendered(self, tmp_path, coef):
        tokenizer = build_tokenizer()
        tokenizer.chat_template = "{{ mood | default('none') }}\n" + tokenizer.chat_template
        settings = {"processing_class": tokenizer, "chat_template_kwargs": {"mood": "calm"}, "anchor_loss_coef": coef}
        trainer = protected_trainer(tmp_path, build_refusing_model(), **settings)
        monitor = SafetyMonitor(trainer, refusals=True)
        asked = [tokenizer.decode(ids) for ids in [*trainer.train_dataset["input_ids"], *monitor.anchor.input_ids]]
        assert {text.split("\n")[0] for text in asked} == {"calm"}

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"monitor_steps": 0}, "Expected `monitor_steps` of at least 1, found 0"),
            ({"on_drift": "stop"}, "without `max_drift`"),
            ({"on_drift": "halt"}, "'warn' or 'stop', found 'halt'"),
            ({"max_drift": -1.0}, "to be above 0, found -1.0"),
        ],
    )
    def test_settings_that_mean_nothing(self, tmp_path, refusing_model, settings, message):
        with pytest.raises(ValueError, match=message):
            SafetyMonitor(plain_trainer(tmp_path, refusing_model), **settings)

    def test_what_cannot_be_measured_raises(self, tmp_path, refusing_model):
        trainer = plain_trainer(tmp_path, refusing_model)
        with pytest.raises(ValueError, match="not the anchor's|not that of the model"):
            SafetyMonitor(trainer, capture(build_model("llama")))
        trainer.is_fsdp_enabled = True
        with pytest.raises(ValueError, match="Capture an anchor on held-out prompts before"):
            SafetyMonitor(trainer)
        with pytest.raises(ValueError, match="without `refusals`"):
            SafetyMonitor(trainer, capture(build_refusing_model()), refusals=True)
        trainer.is_fsdp_enabled = False
        trainer.model = get_peft_model(
            build_model("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )
        with pytest.raises(ValueError, match="virtual tokens"):
            SafetyMonitor(trainer)
