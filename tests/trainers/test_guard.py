# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A run whose anchor term is there, and whose model is not held, ends with an error."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

from trl_sbr import SafetyAnchor, SBRSFTTrainer
from trl_sbr.trainers.run_record import RECORD_NAME, hash_files, read_record, write_record

from ..tiny import build_model, build_refusing_model, build_tokenizer
from .test_sbr_sft_trainer import LORA, history, make_trainer


def trainer_of(tmp_path, model=None, **settings):
    settings = {"anchor_prompts": ["Do harm!", "Do something worse!"], "anchor_require_refusal": False, **settings}
    return make_trainer(tmp_path, build_model("llama") if model is None else model, **settings)


class At(TrainerCallback):
    """Does something once, when an event of a step comes."""

    def __init__(self, event, action, step=1):
        self.step = step
        self.action = action
        setattr(self, event, self._act)

    def _act(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.action(model)


def unfreeze(model):
    model.get_output_embeddings().requires_grad_(True)


def replace_weight(model):
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 1.5, requires_grad=False)


def replace_memory(model):
    head = model.get_output_embeddings()
    head.weight.data = head.weight.data * 1.5


def replace_module(model):
    head = model.get_output_embeddings()
    other = nn.Linear(head.in_features, head.out_features, bias=False)
    model.set_output_embeddings(other.requires_grad_(False))


def put_lora_on(model):
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["lm_head"]), model)


class LogitBias(nn.Module):
    """A causal LM with a bias on the logits, behind the unembedding."""

    def __init__(self, model):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(model.config.vocab_size))
        self.forward_of_model = model.forward

    def __call__(self, *args, **kwargs):
        output = self.forward_of_model(*args, **kwargs)
        if output.get("logits") is not None:
            output.logits = output.logits + self.bias
        return output


class TestUnembedding:
    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
    @pytest.mark.parametrize("change", [unfreeze, lambda model: model.requires_grad_(True)], ids=["head", "all"])
    def test_unfrozen_before_training_raises(self, tmp_path, peft_config, change):
        trainer = trainer_of(tmp_path, peft_config=peft_config)
        change(trainer.model)
        with pytest.raises(RuntimeError, match="Found the unembedding unfrozen"):
            trainer.train()
        assert trainer.state.global_step == 0

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (unfreeze, "unembedding unfrozen"),
            (replace_weight, "other weights in the unembedding"),
            (replace_memory, "other weights in the unembedding"),
            (replace_module, "Found another unembedding .`Linear`."),
            (put_lora_on, "Found another unembedding .`Linear`."),
        ],
    )
    @pytest.mark.parametrize("event", ["on_step_begin", "on_step_end", "on_optimizer_step"])
    def test_changed_while_training_raises(self, tmp_path, change, message, event):
        trainer = trainer_of(tmp_path, callbacks=[At(event, change)])
        with pytest.raises(RuntimeError, match=message):
            trainer.train()
        assert trainer.state.global_step <= 2

    def test_own_optimizer_and_a_callback_that_unfreezes_raise(self, tmp_path):
        model = build_model("llama")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)  # the unembedding's are among them
        trainer_of(tmp_path / "frozen", model, optimizers=(optimizer, None)).train()
        trainer = trainer_of(tmp_path, model, optimizers=(optimizer, None), callbacks=[At("on_step_begin", unfreeze)])
        with pytest.raises(RuntimeError, match="unembedding unfrozen"):
            trainer.train()

    def test_adapter_put_on_the_unembedding_later_raises(self, tmp_path):
        # Under label smoothing TRL calls the unembedding as a module
        trainer = trainer_of(tmp_path, peft_config=LoraConfig(**LORA), label_smoothing_factor=0.1)
        trainer.model.add_adapter("more", LoraConfig(r=4, target_modules=["lm_head"]))
        trainer.model.set_adapter("more")
        with pytest.raises(RuntimeError, match="Found another unembedding"):
            trainer.train()

    @pytest.mark.parametrize("train", [False, True])
    def test_another_model_raises(self, tmp_path, train):
        trainer = trainer_of(tmp_path, peft_config=LoraConfig(**LORA))
        trainer.train()
        trainer.model = trainer.model_wrapped = trainer.model.merge_and_unload()
        with pytest.raises(RuntimeError, match="another model .`LlamaForCausalLM`."):
            trainer.train() if train else trainer.save_model()
        assert not list(tmp_path.glob("*.safetensors"))

    @pytest.mark.parametrize("unfrozen", [False, True])
    def test_trained_bias_on_the_logits_raises(self, tmp_path, unfrozen):
        model = build_model("llama")
        model.logit_bias = LogitBias(model)
        model.forward = model.logit_bias.__call__
        trainer = trainer_of(tmp_path, model, label_smoothing_factor=0.1)
        model.logit_bias.bias.requires_grad_(unfrozen)
        if not unfrozen:
            trainer.train()
            return
        with pytest.raises(ValueError, match="are trained: `logit_bias.bias`. They open a way round"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_way_round_the_states_raises(self, tmp_path):
        # It opens only in training: at capture, its gate is 0
        model = build_model("llama")
        model.gate = nn.Parameter(torch.zeros(()))
        early = {}
        model.model.layers[0].register_forward_hook(lambda module, args, output: early.update(state=output))

        def add(module, args, output):
            state = early["state"][..., : output.shape[-1]].mean(dim=1, keepdim=True)
            return output + model.gate * state.new_ones(output.shape[-1]) * state.mean()

        model.lm_head.register_forward_hook(add)
        with pytest.raises(ValueError, match="They open a way round the anchors"):
            trainer_of(tmp_path, model).train()

    @pytest.mark.parametrize("whole", [True, False])
    def test_memory_shared_with_the_embeddings_raises(self, tmp_path, whole):
        model = build_model("llama")
        weight = model.model.embed_tokens.weight
        if not whole:  # the embedding holds a part of a larger memory
            memory = torch.cat([weight.detach(), weight.detach()])
            model.model.embed_tokens.weight = nn.Parameter(memory[: len(weight)])
            weight = memory[len(weight) :]
        model.lm_head.weight = nn.Parameter(weight.detach())
        with pytest.raises(RuntimeError, match="`model.embed_tokens.weight`, which is trained, lies in the memory"):
            trainer_of(tmp_path, model)

    @pytest.mark.parametrize("edit", ["lm_head.weight", "lm_head.bias"])
    def test_checkpoint_whose_unembedding_was_edited_raises(self, tmp_path, edit):
        settings = {"save_strategy": "steps", "save_steps": 2}
        trainer_of(tmp_path, build_refusing_model(), **settings).train()
        file = tmp_path / "checkpoint-2" / "model.safetensors"
        tensors = load_file(file)
        tensors[edit][3] += 1e-3
        save_file(tensors, file, metadata={"format": "pt"})
        record = read_record(file.with_name(RECORD_NAME))  # which would tell, were it not edited too
        write_record({**record, "files": hash_files(file.parent)}, file.parent)
        with pytest.raises(RuntimeError, match="Found another unembedding, of sha256"):
            trainer_of(tmp_path, build_refusing_model(), **settings).train(
                resume_from_checkpoint=str(tmp_path / "checkpoint-2")
            )

    @pytest.mark.parametrize("strategy", ["no", "steps"])
    def test_edited_in_place_is_not_saved(self, tmp_path, strategy):
        def edit(model):
            with torch.no_grad():
                model.get_output_embeddings().weight[3] += 1e-3

        trainer = trainer_of(
            tmp_path, callbacks=[At("on_step_end", edit)], save_strategy=strategy, save_steps=3, save_total_limit=2
        )
        with pytest.raises(RuntimeError, match="Found another unembedding, of sha256"):
            trainer.train()
            trainer.save_model()
        assert not list(tmp_path.rglob("*.safetensors"))


class InBackward(torch.optim.SGD):
    """Steps as soon as a gradient is there, and lets it go, as layer-wise optimizers do."""

    def __init__(self, params, through_data, lr=1e-2):
        params = list(params)
        super().__init__(params, lr=lr)

        def step(parameter):
            with torch.no_grad():
                target = parameter.data if through_data else parameter
                target.add_(parameter.grad, alpha=-lr)
            parameter.grad = None

        for parameter in params:
            parameter.register_post_accumulate_grad_hook(step)


class TestOptimizer:
    @pytest.mark.parametrize("peft", [False, True], ids=["full", "lora"])
    @pytest.mark.parametrize("through_data", [False, True])
    def test_step_within_a_backward_raises(self, tmp_path, peft, through_data):
        model = build_model("llama")
        anchor = SafetyAnchor.capture(model, build_tokenizer(), require_refusal=False)
        if peft:
            model = get_peft_model(model, LoraConfig(**LORA))
        model.get_output_embeddings().requires_grad_(False)
        optimizer = InBackward([p for p in model.parameters() if p.requires_grad], through_data)
        trainer = make_trainer(
            tmp_path,
            model,
            anchor=anchor,
            anchor_require_refusal=False,
            optimizers=(optimizer, None),
            max_grad_norm=0.0,
        )
        with pytest.raises(RuntimeError, match="changed within the backward of the anchor term"):
            trainer.train()
        assert trainer.state.global_step <= 2

    @pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd"])
    def test_others_do_not(self, tmp_path, optim):
        trainer_of(tmp_path, optim=optim).train()


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("anchor_loss_coef", 0.0),
            ("anchor_loss_coef", -1.0),
            ("anchor_target_error", 0.5),
            ("anchor_loss_type", "sum"),
            ("anchor_reference", "current"),
        ],
    )
    @pytest.mark.parametrize("when", ["before", "while", "after"])
    def test_changed_after_construction_raise(self, tmp_path, name, value, when):
        change = At("on_step_end", lambda model: setattr(trainer.args, name, value), step={"while": 1}.get(when, -1))
        trainer = trainer_of(tmp_path, callbacks=[change])
        if when == "before":
            setattr(trainer.args, name, value)
        with pytest.raises(RuntimeError, match=f"Found .*'{name}': '?{value}"):
            trainer.train()
            setattr(trainer.args, name, value)
            trainer.save_model()

    @pytest.mark.parametrize("edit", ["states", "token ids", "another", "none"])
    @pytest.mark.parametrize("when", ["before", "while", "after"])
    def test_edited_anchor_raises(self, tmp_path, edit, when):
        def change(model=None):
            if edit == "states":
                trainer.anchor.hidden_states[0] *= 1.001
            elif edit == "token ids":
                trainer.anchor.input_ids[0][-1] += 1
            elif edit == "another":
                trainer.anchor = SafetyAnchor.capture(
                    build_model("llama"), build_tokenizer(), ["Be nice!"], require_refusal=False
                )
            else:
                trainer.anchor = None

        trainer = trainer_of(tmp_path, callbacks=[At("on_step_end", change, step={"while": 1}.get(when, -1))])
        if when == "before":
            change()
        with pytest.raises(RuntimeError, match="another safety anchor, or an edited one|without the anchor term"):
            trainer.train()
            change()
            trainer.save_model()
        assert not list(tmp_path.glob("model.safetensors"))

    def test_training_step_that_calls_the_model_itself_raises(self, tmp_path):
        class Unprotected(SBRSFTTrainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                model.train()
                loss = model(**self._prepare_inputs(inputs)).loss
                self.accelerator.backward(loss)
                return loss.detach()

        trainer = make_trainer(tmp_path, build_model("llama"), cls=Unprotected, anchor_require_refusal=False)
        with pytest.raises(RuntimeError, match="an optimizer step without the anchor term"):
            trainer.train()
        assert trainer.state.global_step == 0

    def test_every_other_step_without_the_term_raises(self, tmp_path):
        class Unprotected(SBRSFTTrainer):
            def training_step(self, model, inputs, num_items_in_batch=None):
                if self.state.global_step % 2 == 0:
                    return super().training_step(model, inputs, num_items_in_batch)
                model.train()
                loss = model(**self._prepare_inputs(inputs)).loss
                self.accelerator.backward(loss)
                return loss.detach()

        trainer = make_trainer(tmp_path, build_model("llama"), cls=Unprotected, anchor_require_refusal=False)
        with pytest.raises(RuntimeError, match="an optimizer step without the anchor term"):
            trainer.train()
        assert trainer.state.global_step == 1


class TestFinite:
    @pytest.mark.parametrize("coef", [1e38, 3e38])
    def test_coefficient_that_blows_up_raises(self, tmp_path, coef):
        trainer = trainer_of(tmp_path, anchor_loss_coef=coef, save_strategy="steps", save_steps=1)
        with pytest.raises(FloatingPointError, match="the training has blown up"):
            trainer.train()
        for file in tmp_path.rglob("model.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())

    @pytest.mark.parametrize(
        "settings", [{"learning_rate": 1e30}, {"learning_rate": 1e20, "max_grad_norm": 0.0}], ids=str
    )
    @pytest.mark.parametrize("max_steps", [1, 6])
    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA)], ids=["full", "lora"])
    def test_learning_rate_that_blows_up_raises(self, tmp_path, settings, max_steps, peft_config):
        trainer = trainer_of(tmp_path, peft_config=peft_config, max_steps=max_steps, **settings)
        if peft_config is not None and max_steps == 1:
            # One step of `B` alone may leave finite states
            settings = {**settings, "learning_rate": 1e38}
            trainer = trainer_of(tmp_path, peft_config=peft_config, max_steps=max_steps, **settings)
        with pytest.raises(FloatingPointError, match="the training has blown up"):
            trainer.train()
            trainer.save_model()
        assert not list(tmp_path.glob("*model.safetensors"))

    def test_weight_that_no_anchor_reaches_is_not_saved_as_nan(self, tmp_path):
        trainer = trainer_of(tmp_path)
        trainer.train()
        with torch.no_grad():
            trainer.model.model.embed_tokens.weight[7] = math.nan  # of a token that no anchor has
        with pytest.raises(FloatingPointError, match="`model.embed_tokens.weight` among them"):
            trainer.save_model()
        assert not (tmp_path / "model.safetensors").exists()

    def test_loss_that_is_nan_raises_before_it_reaches_the_weights(self, tmp_path):
        class Broken(SBRSFTTrainer):
            def compute_loss(self, *args, **kwargs):
                loss = super().compute_loss(*args, **kwargs)
                return loss * (math.nan if self.state.global_step == 1 else 1)

        trainer = make_trainer(tmp_path, build_model("llama"), cls=Broken, anchor_require_refusal=False)
        with pytest.raises(FloatingPointError, match="Found a gradient norm of nan"):
            trainer.train()
        assert trainer.state.global_step == 1
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())

    def test_term_that_underflows_raises(self, tmp_path):
        class Tiny(SBRSFTTrainer):
            def anchor_distances(self, states, reference):
                return super().anchor_distances(states, reference) * 1e-35

        trainer = make_trainer(
            tmp_path, build_model("llama"), cls=Tiny, anchor_require_refusal=False, anchor_loss_coef=1e-13
        )
        with pytest.raises(FloatingPointError, match="Found an anchor term of 0 at an anchor loss of"):
            trainer.train()
        assert trainer.state.global_step == 1


class TestHeld:
    """What the guard lets pass."""

    def test_two_trainings_of_one_trainer(self, tmp_path):
        trainer = trainer_of(tmp_path, peft_config=LoraConfig(**LORA))
        trainer.train()
        trainer.train()
        trainer.save_model()
        assert len(history(trainer, "anchor_loss")) == 4

    def test_a_second_training_in_another_thread(self, tmp_path):
        trainer = trainer_of(tmp_path, peft_config=LoraConfig(**LORA))
        trainer.train()
        with ThreadPoolExecutor() as threads:
            threads.submit(trainer.train).result()

    def test_best_model_at_the_end(self, tmp_path, dataset):
        trainer = trainer_of(
            tmp_path,
            eval_dataset=dataset,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
        )
        trainer.train()
        trainer.save_model()
        assert AutoModelForCausalLM.from_pretrained(tmp_path).config.model_type == "llama"
