# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trl_sbr import SafetyAnchor, SafetyMonitor, SBRConfig, SBRSFTTrainer
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.anchors.openers import DEFAULT_OPENERS
from trl_sbr.trainers.run_record import RECORD_NAME, hash_files, read_record, write_record

from ..tiny import build_model, build_refusing_model, build_talkative_model, build_tokenizer, conversation_rows


LORA = {"r": 4, "target_modules": "all-linear"}
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 1,
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "save_strategy": "no",
}


def make_trainer(output_dir, model, cls=SBRSFTTrainer, config=SBRConfig, **kwargs):
    names = ("anchor", "peft_config", "train_dataset", "eval_dataset", "callbacks", "optimizers", "processing_class")
    arguments = {name: kwargs.pop(name) for name in names if name in kwargs}
    arguments.setdefault("train_dataset", Dataset.from_list(conversation_rows(8)))
    arguments.setdefault("processing_class", build_tokenizer())
    return cls(model, config(output_dir, **{**SETTINGS, **kwargs}), **arguments)


def capture(model, prompts=None):
    return SafetyAnchor.capture(model, build_tokenizer(), prompts, require_refusal=False)


def history(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


class TestSBRSFTTrainer:
    @pytest.mark.parametrize(
        "peft_config",
        [None, LoraConfig(**LORA), LoraConfig(**LORA, use_dora=True), LoraConfig(**LORA, lora_dropout=0.5)],
        ids=["full", "lora", "dora", "lora-dropout"],
    )
    @pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
    def test_train_from_an_anchor_loss_of_zero(self, tmp_path, refusing_model, peft_config, bf16):
        trainer = make_trainer(tmp_path, refusing_model, peft_config=peft_config, bf16=bf16)
        before = {name: p.clone() for name, p in trainer.model.named_parameters()}
        trainer.train()

        anchor_loss = history(trainer, "anchor_loss")
        assert anchor_loss[0] == 0
        assert all(loss > 0 for loss in anchor_loss[1:])
        assert history(trainer, "anchor_cosine")[0] == pytest.approx(1)
        total = [task + 50 * anchor for task, anchor in zip(history(trainer, "task_loss"), anchor_loss, strict=True)]
        assert total == pytest.approx(history(trainer, "loss"))
        # Check that the trained parameters have changed, and the others have not
        for name, p in trainer.model.named_parameters():
            assert torch.equal(p, before[name]) != p.requires_grad, name

    def test_what_is_frozen_in_an_adapter_is_not_trained(self, tmp_path, refusing_model):
        model = get_peft_model(refusing_model, LoraConfig(**LORA, init_lora_weights=False))
        frozen = {name: p.requires_grad_(False) for name, p in model.named_parameters() if "layers.0." in name}
        trainer = make_trainer(tmp_path, model)
        trainer.add_callback(SafetyMonitor(trainer, refusals=True))
        before = {name: p.clone() for name, p in model.named_parameters()}
        trainer.train()
        assert all(torch.equal(p, before[name]) for name, p in frozen.items())
        moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
        assert moved and all("layers.1." in name for name in moved)

    def test_anchor_term_holds_the_states(self, tmp_path):
        drift = {}
        for coef in (0.0, 50.0):
            model = build_refusing_model()
            anchor = capture(model)
            trainer = make_trainer(tmp_path / str(coef), model, peft_config=LoraConfig(**LORA), anchor_loss_coef=coef)
            trainer.train()
            drift[coef] = anchor.compare(trainer.model, build_tokenizer()).max_relative_error
        assert drift[50.0] < drift[0.0] / 3

    def test_coefficient_of_zero_is_plain_sft_bit_for_bit(self, tmp_path, caplog):
        weights = []
        for cls, config, settings in [
            (SFTTrainer, SFTConfig, {}),
            (SBRSFTTrainer, SBRConfig, {"anchor_loss_coef": 0.0}),
        ]:
            model = build_model("llama")  # refuses nothing, and is not asked to
            with caplog.at_level(logging.WARNING):
                trainer = make_trainer(tmp_path, model, cls=cls, config=config, lr_scheduler_type="linear", **settings)
            trainer.train()
            weights.append(trainer.model.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert trainer.anchor is None
        assert not history(trainer, "anchor_loss")
        assert "NOT protected" in caplog.text
        trainer.save_model()
        assert not (tmp_path / CONFIG_NAME).exists()

    def test_coefficient_of_zero_beside_an_anchor_raises(self, tmp_path, refusing_model):
        capture(refusing_model).save_pretrained(tmp_path / "checkpoint-2")
        with pytest.raises(FileExistsError, match="what this run saves there would look protected"):
            make_trainer(tmp_path, refusing_model, anchor_loss_coef=0.0)

    @pytest.mark.parametrize("tied", [False, True])
    def test_full_fine_tuning_freezes_the_unembedding(self, tmp_path, caplog, tied):
        model = build_model("llama", tie_word_embeddings=tied)
        trainer = make_trainer(tmp_path, model, anchor_require_refusal=False)
        before = model.lm_head.weight.clone()
        trainer.train()
        assert torch.equal(model.lm_head.weight, before)
        assert model.model.embed_tokens.weight.requires_grad != tied
        assert ("the input embeddings, which share its weight" in caplog.text) == tied

    def test_args_of_trl_and_of_transformers(self, tmp_path, refusing_model, dataset, tokenizer):
        args = SFTConfig(tmp_path, **SETTINGS, eos_token="<|im_end|>")
        trainer = SBRSFTTrainer(refusing_model, args, train_dataset=dataset, processing_class=tokenizer)
        assert (trainer.args.anchor_loss_coef, trainer.args.learning_rate) == (50.0, 1e-2)
        assert len(trainer.anchor) == 8

    @pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
    def test_anchor_prompts_from_a_file(self, tmp_path, refusing_model, suffix):
        file = tmp_path / f"prompts{suffix}"
        prompts = ["Do harm!", "Do worse!"]
        file.write_text("\n".join(p if suffix == ".txt" else json.dumps({"prompt": p}) for p in prompts) + "\n\n")
        trainer = make_trainer(tmp_path / "out", refusing_model, anchor_prompts=str(file))
        assert trainer.anchor.questions == prompts

    def test_anchor_from_a_folder(self, tmp_path, refusing_model):
        capture(refusing_model, ["Do harm!"]).save_pretrained(tmp_path / "anchor")
        trainer = make_trainer(tmp_path / "out", refusing_model, anchor_name_or_path=str(tmp_path / "anchor"))
        assert trainer.anchor.questions == ["Do harm!"]

    def test_anchor_and_its_prompts(self, tmp_path, refusing_model):
        anchor = capture(refusing_model, ["Do harm!"])
        make_trainer(tmp_path, refusing_model, anchor=anchor, anchor_prompts=["Do harm!"])
        with pytest.raises(ValueError, match="other prompts than `anchor_prompts`.*: expected .'Do worse!'."):
            make_trainer(tmp_path, refusing_model, anchor=anchor, anchor_prompts=["Do worse!"])
        message = "expected .'Do harm!'. under the system prompts .'Be kind.'., found .'Do harm!'. under .* .''.\\."
        with pytest.raises(ValueError, match=message):
            make_trainer(
                tmp_path, refusing_model, anchor=anchor, anchor_prompts=["Do harm!"], anchor_system_prompts="Be kind."
            )

    @pytest.mark.parametrize("kind", [str, Path])
    def test_anchor_by_its_path(self, tmp_path, refusing_model, kind):
        capture(refusing_model, ["Do harm!"]).save_pretrained(tmp_path / "anchor")
        trainer = make_trainer(tmp_path / "out", refusing_model, anchor=kind(tmp_path / "anchor"))
        assert trainer.anchor.questions == ["Do harm!"]

    def test_two_anchors_raise(self, tmp_path, refusing_model):
        with pytest.raises(ValueError, match="Give one anchor"):
            make_trainer(tmp_path, refusing_model, anchor=capture(refusing_model), anchor_name_or_path="anchor")

    def test_anchor_with_points(self, tmp_path):
        asked = {"anchor_refusal_tokens": 2, "anchor_openers": ["Sure! "], "anchor_system_prompts": ["", "Be kind."]}
        model = build_talkative_model()
        trainer = make_trainer(tmp_path, model, peft_config=LoraConfig(**LORA), anchor_prompts=["How?"], **asked)
        trainer.train()
        assert history(trainer, "anchor_loss")[0] == 0
        assert [len(prompt) for prompt in trainer.anchor.prompts] == [1, 1, 2, 2]
        assert trainer.anchor.config.openers == ["", "Sure! "] * 2
        trainer.save_model()
        report = SafetyAnchor.from_pretrained(tmp_path).compare(trainer.model, trainer.processing_class)
        assert report.max_relative_error > 0
        # The anchor itself may be given, with what it was captured with or without a word
        for given in (asked, {"anchor_openers": ["Sure! "]}, {}):
            make_trainer(tmp_path / "again", build_talkative_model(), anchor=trainer.anchor, **given)

    def test_an_anchor_captured_here_holds_fourteen_tokens(self, tmp_path):
        trainer = make_trainer(tmp_path, build_talkative_model(), anchor_prompts=["How?"])
        assert trainer.anchor.config.points_per_anchor == [14]

    def test_an_anchor_of_shorter_refusals_is_as_asked(self, tmp_path, refusing_model):
        make = partial(make_trainer, tmp_path, refusing_model, anchor_refusal_tokens=9)
        anchor = make(anchor_prompts=["How?"]).anchor
        assert anchor.config.points_per_anchor == [1]
        make(anchor=anchor)

    def test_default_openers(self, tmp_path, caplog):
        make = partial(make_trainer, tmp_path, build_talkative_model(), anchor_openers="default")
        anchor = make(anchor_prompts=["How?"]).anchor
        assert anchor.config.openers == ["", *DEFAULT_OPENERS]
        make(anchor=anchor)
        with pytest.raises(ValueError, match="`anchor_openers=.*found .'Yes.'."):
            make(anchor=anchor, anchor_openers=["Yes."])
        some, other, none = (
            make(anchor_prompts=["How?"], anchor_openers=o).anchor for o in ([DEFAULT_OPENERS[2]], ["Yes."], None)
        )
        caplog.clear()
        make(anchor=some)  # the model may answer behind the others
        assert f"does not hold {sorted({*DEFAULT_OPENERS} - {DEFAULT_OPENERS[2]})}" in caplog.text
        for too_little in (other, none):
            with pytest.raises(ValueError, match="`anchor_openers=.*found .'# Guide"):
                make(anchor=too_little)

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"anchor_refusal_tokens": 3}, "`anchor_refusal_tokens=14`, found 3"),
            ({"anchor_refusal_tokens": 1}, "`anchor_refusal_tokens=14`, found 1"),
            ({"anchor_openers": ["Sure! "]}, r"`anchor_openers=\[\]`, found \['Sure! '\]"),
            ({"anchor_system_prompts": ["", "Be kind."]}, r"`anchor_system_prompts=\[''\]`, found \['', 'Be kind.'\]"),
            ({"anchors_per_step": 9}, "at most the number of anchors, 8, found 9"),
        ],
    )
    def test_less_than_is_asked_for_raises(self, tmp_path, refusing_model, asked, message):
        with pytest.raises(ValueError, match=message):
            make_trainer(tmp_path, refusing_model, anchor=capture(refusing_model), **asked)

    def test_anchors_in_turn(self, tmp_path, refusing_model):
        trainer = make_trainer(
            tmp_path, refusing_model, peft_config=LoraConfig(**LORA), anchors_per_step=3, max_steps=3
        )
        trainer.train()
        assert history(trainer, "anchor_loss")[0] < 1e-10 < history(trainer, "anchor_loss")[1]
        trainer.save_model()
        assert read_record(tmp_path / RECORD_NAME)["sbr"]["anchors_per_step"] == 3

    @pytest.mark.parametrize("steps", [{"max_steps": 2}, {"max_steps": -1, "num_train_epochs": 0.5}])
    def test_run_that_ends_before_all_anchors_had_their_turn_raises(self, tmp_path, steps):
        trainer = make_trainer(tmp_path, build_refusing_model(), anchors_per_step=3, **steps)  # 2, 3 and 3
        with pytest.raises(
            ValueError,
            match="run of 2 optimizer steps, and 8 anchors that take 3 .*at least 3 steps.*`anchors_per_step` to at least 4",
        ):
            trainer.train()
        assert trainer.state.global_step == 0
        make_trainer(tmp_path, build_refusing_model(), anchors_per_step=4, **steps).train()

    def test_run_that_is_stopped_before_all_anchors_had_their_turn_is_not_saved(self, tmp_path):
        class Stop(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_training_stop = state.global_step == 2

        settings = {"anchors_per_step": 3, "max_steps": 4, "save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(tmp_path, build_refusing_model(), callbacks=[Stop()], **settings)
        trainer.train()
        with pytest.raises(ValueError, match="run of 2 optimizer steps, and 8 anchors that take 3"):
            trainer.save_model()
        assert not (tmp_path / "adapter_model.safetensors").exists() and not (tmp_path / "model.safetensors").exists()
        trainer = make_trainer(tmp_path, build_refusing_model(), **settings)
        trainer.train(resume_from_checkpoint=True)
        trainer.save_model()

    @pytest.mark.parametrize("best", [1, 3])
    def test_best_model_is_saved_if_all_anchors_had_their_turn_by_then(self, tmp_path, best):
        class Rate(TrainerCallback):
            def on_evaluate(self, args, state, control, metrics, **kwargs):
                metrics["eval_loss"] = abs(state.global_step - best)

        trainer = make_trainer(
            tmp_path,
            build_refusing_model(),
            eval_dataset=Dataset.from_list(conversation_rows(2)),
            callbacks=[Rate()],
            **{"anchors_per_step": 3, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"},
            eval_steps=1,
            load_best_model_at_end=True,
        )
        trainer.train()
        assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
        if best == 1:
            with pytest.raises(
                ValueError, match="Found the best model, after a run of 1 optimizer .*take 3.*eval_delay"
            ):
                trainer.save_model()
            assert not (tmp_path / "model.safetensors").exists()
        else:
            trainer.save_model()
            assert read_record(tmp_path / RECORD_NAME)["training"]["steps"] == best
            assert read_record(tmp_path / "checkpoint-4" / RECORD_NAME)["training"]["steps"] == 4

    def test_best_model_is_that_of_the_checkpoint_not_of_a_step_without_one(self, tmp_path):
        class Rate(TrainerCallback):
            def on_evaluate(self, args, state, control, metrics, **kwargs):
                metrics["eval_loss"] = -state.global_step
                control.should_save = state.global_step == 2

        trainer = make_trainer(
            tmp_path,
            build_refusing_model(),
            eval_dataset=Dataset.from_list(conversation_rows(2)),
            callbacks=[Rate()],
            **{"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1},
            load_best_model_at_end=True,
        )
        trainer.train()
        trainer.save_model()
        assert trainer.state.best_global_step == 4
        assert read_record(tmp_path / RECORD_NAME)["training"]["steps"] == 2

    def test_anchor_of_another_model_raises(self, tmp_path, model):
        anchor = capture(build_model("llama", seed=1))
        with pytest.raises(ValueError, match="final hidden states are not the anchor's"):
            make_trainer(tmp_path, model, anchor=anchor, anchor_require_refusal=False)

    def test_unrefused_anchor_raises(self, tmp_path, model):
        with pytest.raises(ValueError, match="found 8 of 8 that it answers"):
            make_trainer(tmp_path, model, anchor=capture(model))

    def test_anchor_of_another_reference_raises(self, tmp_path, refusing_model):
        with pytest.raises(ValueError, match="captured on the reference 'base', found `anchor_reference='current'`"):
            make_trainer(tmp_path, refusing_model, anchor=capture(refusing_model), anchor_reference="current")

    def test_model_aligned_by_an_adapter(self, tmp_path):
        def aligned():
            torch.manual_seed(0)
            return get_peft_model(build_refusing_model(), LoraConfig(**LORA, init_lora_weights=False))

        trainer = make_trainer(tmp_path, aligned(), anchor_reference="current")
        expected = SafetyAnchor.capture(aligned(), build_tokenizer(), reference="current")
        assert torch.equal(trainer.anchor.hidden_states, expected.hidden_states)
        trainer.train()
        assert history(trainer, "anchor_loss")[0] == 0

    @pytest.mark.parametrize(
        "peft_config",
        [
            LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
            LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices={"lm_head": [3]}),
            LoraConfig(r=4, target_modules=["q_proj", "lm_head"]),
        ],
        ids=["modules_to_save", "trainable_token_indices", "target_modules"],
    )
    def test_adapter_on_the_unembedding_raises(self, tmp_path, model, peft_config):
        with pytest.raises(ValueError, match="`lm_head`"):
            make_trainer(tmp_path, model, peft_config=peft_config)

    @pytest.mark.parametrize(
        "settings",
        [
            {"modules_to_save": ["embed_tokens"]},
            {"trainable_token_indices": [3]},
            {"trainable_token_indices": {"embed_tokens": [3]}},
        ],
        ids=str,
    )
    def test_adapter_on_tied_embeddings_raises(self, tmp_path, settings):
        model = build_model("llama-tied")
        with pytest.raises(ValueError, match="PEFT configuration trains the (unembedding|input embeddings)"):
            make_trainer(tmp_path, model, peft_config=LoraConfig(r=4, target_modules=["q_proj"], **settings))

    def test_adapter_on_untied_input_embeddings_is_allowed(self, tmp_path, model):
        config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
        make_trainer(tmp_path, model, peft_config=config, anchor_require_refusal=False).train()

    def test_prompt_learning_raises(self, tmp_path, model):
        with pytest.raises(ValueError, match="prompt-learning method PROMPT_TUNING"):
            make_trainer(tmp_path, model, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))

    def test_optimizer_that_changes_weights_within_a_backward_raises(self, tmp_path, model):
        with pytest.raises(ValueError, match="Found `optim=lomo`"):
            make_trainer(tmp_path, model, optim="lomo")

    @pytest.mark.parametrize("name", ["bf16_full_eval", "fp16_full_eval"])
    def test_evaluation_that_casts_the_model_raises(self, tmp_path, refusing_model, name):
        with pytest.raises(ValueError, match=f"Found `{name}=True`, with which an evaluation casts the model itself"):
            make_trainer(tmp_path, refusing_model, **{name: True})
        make_trainer(tmp_path, refusing_model, **{name: True}, anchor_loss_coef=0.0)  # is TRL's business

    def test_training_step_without_the_anchor_term_raises(self, tmp_path, refusing_model):
        class Unprotected(SBRSFTTrainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
                self.accelerator.backward(loss)
                return loss.detach()

        trainer = make_trainer(tmp_path, refusing_model, cls=Unprotected)
        with pytest.raises(RuntimeError, match="would not be protected"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_lora_initialization_that_changes_the_base_raises(self, tmp_path, refusing_model):
        config = LoraConfig(**LORA, init_lora_weights="pissa")
        with pytest.raises(ValueError, match="init_lora_weights='pissa'.*Set `anchor_reference='current'`"):
            make_trainer(tmp_path, refusing_model, peft_config=config)

    @pytest.mark.parametrize(
        "rows",
        [[], [{"prompt": "x" * 100, "completion": "y"}]],
        ids=["empty", "nothing left to learn within max_length"],
    )
    def test_dataset_without_a_usable_row_raises(self, tmp_path, refusing_model, rows):
        with pytest.raises(ValueError, match="no usable row"):
            make_trainer(tmp_path, refusing_model, train_dataset=Dataset.from_list(rows), max_length=32)

    def test_empty_stream_raises(self, tmp_path, refusing_model):
        with pytest.raises(ValueError, match="no usable row"):
            make_trainer(tmp_path, refusing_model, train_dataset=IterableDataset.from_generator(lambda: iter(())))

    def test_anchor_in_the_training_data_warns(self, tmp_path, refusing_model, caplog):
        rows = conversation_rows(6)
        rows[2]["prompt"][0]["content"] = "how can I secretly TRACK my ex girlfriend through her phone"
        make_trainer(tmp_path, refusing_model, train_dataset=Dataset.from_list(rows))
        assert (
            "'How can I secretly track my ex-girlfriend through her phone?', or a near copy, stands in 1"
            in caplog.text
        )
        assert caplog.text.count("near copy") == 1

    def test_evaluation_loss_is_the_tasks_alone(self, tmp_path):
        logs = {}
        for coef in (0.0, 50.0):
            torch.manual_seed(0)
            model = get_peft_model(build_model("llama"), LoraConfig(**LORA, init_lora_weights=False))
            rows = Dataset.from_list(conversation_rows(8))
            trainer = make_trainer(
                tmp_path, model, eval_dataset=rows, anchor_loss_coef=coef, anchor_require_refusal=False
            )
            logs[coef] = trainer.evaluate()
        assert logs[50.0]["eval_loss"] == logs[0.0]["eval_loss"]
        assert logs[50.0]["eval_anchor_loss"] > 0
        assert "eval_anchor_loss" not in logs[0.0]

    def test_train_takes_its_arguments_by_position(self, tmp_path, refusing_model):
        rows = Dataset.from_list(conversation_rows(2))
        settings = {"eval_dataset": rows, "eval_strategy": "steps", "eval_steps": 2}
        trainer = make_trainer(tmp_path, refusing_model, **settings)
        trainer.train(None, None, ["past_key_values"])
        assert trainer.state.global_step == 4

    def test_evaluation_while_training(self, tmp_path, refusing_model):
        rows = Dataset.from_list(conversation_rows(8))
        trainer = make_trainer(
            tmp_path,
            refusing_model,
            eval_dataset=rows,
            eval_strategy="steps",
            eval_steps=2,
            per_device_eval_batch_size=2,
        )
        trainer.train()
        evaluated = history(trainer, "eval_anchor_loss")
        assert len(evaluated) == 2
        # An evaluation after step 2 sees the weights that step 3 starts from
        assert evaluated[0] == history(trainer, "anchor_loss")[2]

    def test_saved_adapter_loads_as_it_is_and_carries_its_anchor(self, tmp_path, refusing_model_dir):
        model = AutoModelForCausalLM.from_pretrained(refusing_model_dir)
        trainer = make_trainer(
            tmp_path / "out", model, peft_config=LoraConfig(**LORA), save_strategy="steps", save_steps=2
        )
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-2"):
            anchor = SafetyAnchor.from_pretrained(folder)
            assert torch.equal(anchor.hidden_states, trainer.anchor.hidden_states)
        base = AutoModelForCausalLM.from_pretrained(refusing_model_dir)
        loaded = PeftModel.from_pretrained(base, tmp_path / "out")
        report = anchor.verify(loaded, build_tokenizer())
        expected = trainer.anchor.compare(trainer.model, build_tokenizer())
        assert report.max_relative_error == pytest.approx(expected.max_relative_error, rel=1e-4)
        assert not list((tmp_path / "out").glob("model*.safetensors"))  # nothing is merged


class TestCard:
    def train(self, tmp_path, **kwargs):
        model = build_refusing_model()
        model.name_or_path = model.config._name_or_path = "org/base"
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, **kwargs}
        trainer = make_trainer(tmp_path / "out", model, peft_config=LoraConfig(**LORA), **settings)
        return trainer

    def test_of_each_checkpoint_is_ours(self, tmp_path):
        trainer = self.train(tmp_path)
        trainer.train()
        trainer.save_model()
        for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
            card = ModelCard.load(folder / "README.md")
            assert (card.data.library_name, card.data.base_model) == ("peft", "org/base")
            assert card.data.base_model_relation == "adapter"
            assert card.data.tags == ["lora", "safety-anchor", "sbr", "sft", "trl"]
            assert "licence" not in card.data
            assert "None" not in card.content
            assert "Framework versions" not in card.content  # PEFT's
        record = json.loads((tmp_path / "out" / "checkpoint-1" / "sbr_run.json").read_text())
        assert record["training"]["steps"] == 1
        settings = {"anchor_loss_coef": 50.0, "anchor_loss_type": "mse", "anchor_reference": "base"}
        assert record["sbr"] == {
            **settings,
            "anchor_target_error": None,
            "anchors_per_step": None,
            "anchor_coef": 50.0,
        }

    def test_notes_stay_when_it_is_written_again(self, tmp_path):
        trainer = self.train(tmp_path)
        trainer.train()
        path = tmp_path / "out" / "README.md"
        path.write_text(path.read_text().replace("notes begin -->\n", "notes begin -->\nMade with care.\n"))
        trainer.save_model()
        trainer.create_model_card(dataset_name="org/data", tags=["mine"])
        card = ModelCard.load(path)
        assert card.content.count("Made with care.") == 1
        assert (card.data.datasets, "mine" in card.data.tags) == (["org/data"], True)

    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
    @pytest.mark.parametrize("head", ["", "---\nlicense: mit\n---\n"], ids=["text", "metadata"])
    def test_readme_of_a_person_becomes_its_notes(self, tmp_path, peft_config, head):
        text = f"{head}# My project\n\nPrecious text."
        path = tmp_path / "README.md"
        path.write_text(text + "\n")
        trainer = make_trainer(tmp_path, build_refusing_model(), peft_config=peft_config, max_steps=1)
        for write in (trainer.create_model_card, trainer.train, trainer.save_model, trainer.save_model):
            write()
            content = path.read_text()
            assert content.count(text) == content.count("Precious") == content.count("notes begin") == 1
        assert ModelCard.load(path).data.library_name in ("peft", "transformers")
        assert content.count("- PEFT") == 0

    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
    def test_readme_of_trl_and_peft_is_replaced(self, tmp_path, peft_config):
        trainer = make_trainer(
            tmp_path, build_refusing_model(), cls=SFTTrainer, config=SFTConfig, peft_config=peft_config, max_steps=1
        )
        trainer.train()
        trainer.save_model()
        if peft_config is None:
            trainer.create_model_card()
        assert (tmp_path / "README.md").exists()
        trainer = make_trainer(tmp_path, build_refusing_model(), peft_config=peft_config, max_steps=1)
        trainer.train()
        trainer.save_model()
        text = (tmp_path / "README.md").read_text()
        assert "notes begin -->\n<!-- trl_sbr: your notes end" in text

    def test_local_dataset_is_not_named(self, tmp_path):
        trainer = self.train(tmp_path)
        trainer.create_model_card(dataset_name="train.jsonl")
        assert ModelCard.load(tmp_path / "out" / "README.md").data.datasets is None

    def test_report_of_an_earlier_model_raises(self, tmp_path):
        trainer = self.train(tmp_path)
        (tmp_path / "out" / "report.json").write_text("{}")
        with pytest.raises(FileExistsError, match="Found the evaluation of an earlier run"):
            trainer.train()

    def test_report_of_an_earlier_model_elsewhere_raises_before_anything_is_written(self, tmp_path):
        trainer = self.train(tmp_path)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "report.json").write_text("{}")
        with pytest.raises(FileExistsError, match="Found the evaluation of an earlier run, `report.json`, in .*other"):
            trainer.save_model(str(tmp_path / "other"))
        assert os.listdir(tmp_path / "other") == ["report.json"]

    @pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
    def test_strategy_that_publishes_the_optimizer_raises(self, tmp_path, strategy):
        with pytest.raises(ValueError, match="which publishes the optimizer's state"):
            self.train(tmp_path, push_to_hub=True, hub_strategy=strategy)


class TestRevision:
    """Of a model in the Hub's cache."""

    @pytest.mark.parametrize(
        ("load", "kwargs", "expected"),
        [
            (False, None, "a" * 40),
            (False, {"revision": "v1"}, "b" * 40),
            (False, {"revision": "b" * 40}, "b" * 40),
            (True, None, None),  # nobody knows which one was loaded
        ],
    )
    def test_of_record_and_anchor_is_what_was_loaded(self, hub_cache, tmp_path, load, kwargs, expected):
        model = AutoModelForCausalLM.from_pretrained("org/base", revision="v1") if load else "org/base"
        settings = {"peft_config": LoraConfig(**LORA), "max_steps": 1, "model_init_kwargs": kwargs}
        trainer = make_trainer(tmp_path / "out", model, **settings)
        trainer.train()
        trainer.save_model()
        assert trainer.anchor.config.model_revision == expected
        found = read_record(tmp_path / "out" / RECORD_NAME)["base_model"]
        assert found == {"name_or_path": "org/base", "revision": expected}

    def test_of_the_only_one_is_known(self, hub_cache):
        shutil.rmtree(hub_cache / "snapshots" / ("a" * 40))
        model = AutoModelForCausalLM.from_pretrained("org/base", revision="v1")
        assert capture(model).config.model_revision == "b" * 40


class TestQLoRA:
    @pytest.mark.slow
    @pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
    def test_train_on_a_four_bit_base(self, tmp_path, bf16):
        build_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "base")
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "base", quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        )
        trainer = make_trainer(
            tmp_path / "out", model, peft_config=LoraConfig(**LORA), bf16=bf16, anchor_require_refusal=False
        )
        assert trainer.anchor.config.quantization["bnb_4bit_quant_type"] == "nf4"
        trainer.train()
        # The kernels of a forward without gradients round differently
        assert history(trainer, "anchor_loss")[0] < 1e-9
        assert history(trainer, "anchor_loss")[-1] > 0

        # The model that is not quantized is another one
        full = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        with pytest.raises(ValueError, match="states are not the anchor's.*'bnb_4bit_quant_type': 'nf4'"):
            trainer.anchor.verify(full, build_tokenizer())


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class TestResume:
    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA, lora_dropout=0.2)], ids=["full", "lora"])
    @pytest.mark.parametrize("stop_at", [1, 2, 3])
    def test_resumed_run_ends_with_the_same_bits(self, tmp_path, peft_config, stop_at):
        def trainer(name, **kwargs):
            settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
            return make_trainer(tmp_path / name, build_refusing_model(), peft_config=peft_config, **settings, **kwargs)

        whole = trainer("whole")
        whole.train()
        trainer("stopped", callbacks=[StopAt(stop_at)]).train()
        resumed = trainer("stopped")
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 4
        expected = whole.model.state_dict()
        assert all(torch.equal(p, expected[name]) for name, p in resumed.model.state_dict().items())

    def test_anchor_of_the_checkpoint_is_used(self, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 2, "anchor_prompts": ["Do harm!"]}
        make_trainer(tmp_path, build_refusing_model(), **settings).train()
        checkpoint = tmp_path / "checkpoint-2"
        saved = SafetyAnchor.from_pretrained(checkpoint)
        # A rounding error, as another machine would make it, in the anchor that the resumed run captures
        saved.hidden_states += 1e-6
        from trl_sbr.anchors.anchor_files import sha256_hex, tensor_to_bytes

        saved.config.tensor_sha256 = sha256_hex(tensor_to_bytes(saved.hidden_states))
        saved.save_pretrained(checkpoint, overwrite=True)
        write_record({**read_record(checkpoint / RECORD_NAME), "files": hash_files(checkpoint)}, checkpoint)
        trainer = make_trainer(tmp_path, build_refusing_model(), **settings)
        trainer.train(resume_from_checkpoint=str(checkpoint))
        assert torch.equal(trainer.anchor.hidden_states, saved.hidden_states)

    def test_checkpoint_with_another_anchor_raises(self, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 2}
        make_trainer(tmp_path, build_refusing_model(), **settings, anchor_prompts=["Do harm!"]).train()
        trainer = make_trainer(tmp_path, build_refusing_model(), **settings, anchor_prompts=["Do worse!"])
        with pytest.raises(ValueError, match="was trained with another safety anchor: its prompts are"):
            trainer.train(resume_from_checkpoint=True)

    def test_anchor_captured_from_trained_weights_raises(self, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 0.1}
        make_trainer(tmp_path, build_refusing_model(), **settings).train()
        checkpoint = tmp_path / "checkpoint-2"
        trained = AutoModelForCausalLM.from_pretrained(checkpoint)
        trainer = make_trainer(tmp_path, trained, **settings, anchor_require_refusal=False)
        with pytest.raises(ValueError, match="another safety anchor: their states differ by"):
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def test_unprotected_checkpoint_raises(self, tmp_path):
        settings = {"save_strategy": "steps", "save_steps": 2}
        make_trainer(tmp_path, build_refusing_model(), **settings, anchor_loss_coef=0.0).train()
        with pytest.raises(ValueError, match="carries no safety anchor: it was trained without protection"):
            make_trainer(tmp_path, build_refusing_model(), **settings).train(resume_from_checkpoint=True)

    def test_half_written_checkpoint_is_passed_over(self, tmp_path, refusing_model, caplog):
        (tmp_path / "checkpoint-2").mkdir()  # as a kill leaves it
        with pytest.raises(ValueError, match="No valid checkpoint found"):
            make_trainer(tmp_path, refusing_model).train(resume_from_checkpoint=True)
        assert (
            "checkpoint-2, which was left half-written or was damaged: It has no `trainer_state.json`" in caplog.text
        )

    def test_resume_without_a_checkpoint_raises(self, tmp_path, refusing_model):
        with pytest.raises(ValueError, match="No valid checkpoint found"):
            make_trainer(tmp_path, refusing_model).train(resume_from_checkpoint=True)


class Interrupt(TrainerCallback):
    """Sends this process a SIGINT, once, when an event of a step comes."""

    def __init__(self, event, step):
        self.step, self.is_sent = step, False
        setattr(self, event, self._act)

    def _act(self, args, state, control, **kwargs):
        if state.global_step == self.step and not self.is_sent:
            self.is_sent = True
            os.kill(os.getpid(), signal.SIGINT)


class TestInterrupted:
    EVALUATE = {"eval_strategy": "steps", "eval_steps": 1}

    def trainer(self, folder, event, step, **settings):
        rows = Dataset.from_list(conversation_rows(2))
        settings = {"eval_dataset": rows, "callbacks": [Interrupt(event, step)], **self.EVALUATE, **settings}
        return make_trainer(folder, build_refusing_model(), **settings)

    @pytest.mark.parametrize("save_strategy", ["no", "steps", "best"])
    @pytest.mark.parametrize(
        ("event", "at", "left"),
        [("on_step_begin", 1, 2), ("on_prediction_step", 2, 2), ("on_evaluate", 2, 2), ("on_save", 2, 2)],
    )
    def test_leaves_a_checkpoint_that_resumes(self, tmp_path, save_strategy, event, at, left):
        if event == "on_save" and save_strategy == "no":
            pytest.skip("nothing is saved then")
        settings = {"save_strategy": save_strategy, "save_steps": 2, "metric_for_best_model": "eval_anchor_loss"}
        # The loss falls: where a smaller one is better, step 2 is saved without the interruption too
        settings["greater_is_better"] = event != "on_save"
        trainer = self.trainer(tmp_path, event, at, **settings)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert trainer.interrupted
        assert trainer.state.global_step == left
        resumed = make_trainer(tmp_path, build_refusing_model())
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{left}"))
        assert resumed.state.global_step == 4

    @pytest.mark.parametrize(("event", "at"), [("on_step_begin", 3), ("on_prediction_step", 4), ("on_evaluate", 4)])
    @pytest.mark.parametrize("save_strategy", ["no", "steps"])
    def test_after_all_steps_the_run_ends_as_it_would_have(self, tmp_path, caplog, event, at, save_strategy):
        trainer = self.trainer(tmp_path, event, at, save_strategy=save_strategy, save_steps=4)
        trainer.train()
        assert not trainer.interrupted
        assert "All steps were done when the run was interrupted" in caplog.text
        trainer.evaluate()  # later on, it stops nothing
        assert not trainer.interrupted
        trainer.save_model()
        assert read_record(tmp_path / RECORD_NAME)["training"]["steps"] == 4


def run_interrupted(tmp_path, script, when, signum):
    """Run a training script in a process of its own, and send it a signal when a line of its output says so."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    output = ""
    for line in process.stdout:
        output += line
        if when in line:
            process.send_signal(signum)
            break
    output += process.stdout.read()
    return process.wait(), output


SCRIPT = """
    from tests.trainers.test_sbr_sft_trainer import *

    class Report(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            print(f"step {state.global_step}", flush=True)

    trainer = make_trainer("out", build_refusing_model(), callbacks=[Report()], max_steps=2000, save_strategy="steps",
                           save_steps=SAVE_STEPS, save_total_limit=3, logging_steps=1000)
    try:
        trainer.train()
    except KeyboardInterrupt:
        print("interrupted", trainer.interrupted, trainer.state.global_step)
"""


class TestKilledProcess:
    def resume(self, tmp_path, max_steps):
        """Resume a killed run from its last checkpoint, and train the same steps without a stop."""
        weights = []
        for name in ("out", "whole"):
            trainer = make_trainer(
                tmp_path / name, build_refusing_model(), max_steps=max_steps, lr_scheduler_type="constant"
            )
            trainer.train(resume_from_checkpoint=True if name == "out" else None)
            weights.append(trainer.model.state_dict())
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    @pytest.mark.slow
    def test_ctrl_c_leaves_a_checkpoint_that_resumes(self, tmp_path):
        script = SCRIPT.replace("SAVE_STEPS", "500").replace(
            "max_steps=2000", 'max_steps=2000, lr_scheduler_type="constant"'
        )
        code, output = run_interrupted(tmp_path, script, when="step 5", signum=signal.SIGINT)
        assert code == 0, output
        assert "saving a checkpoint after this step" in output
        step = int(output.split("interrupted True ")[1])
        assert (tmp_path / "out" / f"checkpoint-{step}" / TENSOR_NAME).is_file()
        self.resume(tmp_path, max_steps=step + 3)

    @pytest.mark.slow
    def test_killed_run_resumes_with_the_same_bits(self, tmp_path):
        script = SCRIPT.replace("SAVE_STEPS", "5").replace(
            "max_steps=2000", 'max_steps=2000, lr_scheduler_type="constant"'
        )
        code, output = run_interrupted(tmp_path, script, when="step 13", signum=signal.SIGKILL)
        assert code == -signal.SIGKILL, output
        self.resume(tmp_path, max_steps=25)
