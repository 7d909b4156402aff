# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What `test_gradient.py`, `test_sbr_sft_trainer.py` and `test_guard.py` say of SFT holds for every trainer."""

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig
from torch import nn
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from trl_sbr import SafetyAnchor, protect
from trl_sbr.trainers.run_record import RECORD_NAME

from ..releases import trains_in_a_process_of_its_own
from ..tiny import build_model, build_tokenizer, conversation_rows
from .any_trainer import KINDS, build
from .test_gradient import (
    COEF,
    PROMPTS,
    GradientRecorder,
    anchor_gradient,  # noqa: F401  a fixture
    drifted_lora_model,
    reference_anchor_loss,
    reference_gradient,
    relative_error,
)
from .test_guard import At, replace_module, unfreeze
from .test_sbr_sft_trainer import StopAt, history
from .test_supported import of_class, t5


LORA = {"r": 4, "target_modules": "all-linear"}

any_trainer = pytest.mark.parametrize("kind", KINDS)
by_protect = pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("SBR")])


def capture(model, prompts=PROMPTS, **kwargs):
    return SafetyAnchor.capture(model, build_tokenizer(), prompts, require_refusal=False, refusal_tokens=1, **kwargs)


def build_held(kind, output_dir, model=None, **settings):
    """A trainer that holds an anchor of its model."""
    model = build_model("llama") if model is None else model
    settings = {"max_steps": 4, **settings}
    return build(kind, output_dir, model, settings.pop("anchor", None) or capture(model), **settings)


def train(output_dir, kind, coef=COEF, **settings):
    """Train an epoch at a learning rate of zero. Returns the gradients of each step, and the trainer."""
    model, recorder = drifted_lora_model(), GradientRecorder()
    settings = {"learning_rate": 0.0, "max_grad_norm": 0.0, "num_train_epochs": 1, **settings}
    trainer = build(kind, output_dir, model, capture(build_model("llama")), coef, callbacks=[recorder], **settings)
    trainer.train()
    return recorder.steps, trainer


def anchor_part(kind, folder, **settings):
    """The anchor term's share: a run's gradients less those of the same run without an anchor."""
    with_anchor, without = (train(folder / str(coef), kind, coef, **settings)[0] for coef in (COEF, 0.0))
    assert len(with_anchor) == len(without)
    return [
        {name: (step[name] - plain[name]) / COEF for name in step}
        for step, plain in zip(with_anchor, without, strict=True)
    ]


class TestGradient:
    @any_trainer
    def test_anchor_term_equals_the_reference(self, tmp_path, anchor_gradient, kind):  # noqa: F811
        steps = anchor_part(kind, tmp_path, gradient_accumulation_steps=3)  # leaves a short last one
        assert len(steps) >= 2
        for step in steps:
            assert relative_error(step, anchor_gradient) < 1e-5

    @trains_in_a_process_of_its_own  # and here: it fails before the loss
    @pytest.mark.parametrize("kind", ["GRPOTrainer", "SBRGRPOTrainer"])
    def test_generations_that_are_used_again(self, tmp_path, anchor_gradient, kind):  # noqa: F811
        settings = {"num_iterations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2}
        steps = anchor_part(kind, tmp_path, **settings)
        assert len(steps) == 8  # of 8 batches, each used twice
        for step in steps:
            assert relative_error(step, anchor_gradient) < 1e-5

    def test_loss_type(self, tmp_path):
        step = anchor_part("Trainer", tmp_path, loss_type="relative")[0]
        assert relative_error(step, reference_gradient(reference_anchor_loss, loss_type="relative")) < 1e-5


class TestTraining:
    @any_trainer
    def test_anchor_by_its_path(self, tmp_path, kind):
        capture(build_model("llama")).save_pretrained(tmp_path / "anchor")
        trainer = build(kind, tmp_path / "out", build_model("llama"), str(tmp_path / "anchor"))
        assert trainer.anchor.questions == PROMPTS

    @any_trainer
    @pytest.mark.parametrize("peft_config", [None, LoraConfig(**LORA, lora_dropout=0.5)], ids=["full", "lora"])
    def test_from_an_anchor_loss_of_zero(self, tmp_path, kind, peft_config):
        trainer = build_held(kind, tmp_path, peft_config=peft_config)
        head = trainer.model.get_output_embeddings().weight.clone()
        trainer.train()
        losses = history(trainer, "anchor_loss")
        assert losses[0] == 0
        assert all(loss > 0 for loss in losses[1:])
        assert history(trainer, "anchor_cosine")[0] == pytest.approx(1)
        total = [task + 50 * loss for task, loss in zip(history(trainer, "task_loss"), losses, strict=True)]
        assert total == pytest.approx(history(trainer, "loss"), abs=1e-5)
        assert torch.equal(trainer.model.get_output_embeddings().weight, head)

        trainer.save_model()
        anchor = SafetyAnchor.from_pretrained(tmp_path)
        assert torch.equal(anchor.hidden_states, trainer.anchor.hidden_states)
        record = json.loads((tmp_path / RECORD_NAME).read_text())
        assert record["sbr"] == {
            "anchor_loss_coef": 50.0,
            "anchor_loss_type": "mse",
            "anchor_reference": "base",
            "anchor_target_error": None,
            "anchors_per_step": None,
            "anchor_coef": 50.0,
        }
        method = kind.removeprefix("SBR").removesuffix("Trainer").lower()
        assert record["method"] == (["trl", method] if method else [])

    @any_trainer
    def test_evaluation_names_the_anchor_loss(self, tmp_path, kind):
        trainer = build_held(kind, tmp_path, drifted_lora_model(), anchor=capture(build_model("llama")))
        found = trainer.evaluate(trainer.train_dataset)
        assert found["eval_anchor_loss"] > 0
        assert history(trainer, "eval_anchor_loss") == [found["eval_anchor_loss"]]

    @any_trainer
    def test_resumed_run_ends_with_the_same_bits(self, tmp_path, kind):
        def trainer(name, **kwargs):
            settings = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "max_steps": 2}
            peft_config = LoraConfig(**LORA, lora_dropout=0.2)
            return build_held(kind, tmp_path / name, peft_config=peft_config, **settings, **kwargs)

        whole = trainer("whole")
        whole.train()
        trainer("stopped", callbacks=[StopAt(1)]).train()
        resumed = trainer("stopped")
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 2
        expected = whole.model.state_dict()
        assert all(torch.equal(p, expected[name]) for name, p in resumed.model.state_dict().items())

    @any_trainer
    def test_anchor_in_the_training_data_warns(self, tmp_path, kind, caplog):
        prompt = conversation_rows(4)[3]["prompt"][0]["content"]
        build_held(kind, tmp_path, anchor=capture(build_model("llama"), [prompt, *PROMPTS]))
        (warning,) = (record.getMessage() for record in caplog.records if "near copy" in record.getMessage())
        assert f"{prompt!r}, or a near copy, stands in 1 training rows" in warning


def peft(**settings):
    return {"peft_config": LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings})}


# What is given, and what the error says
REFUSED = {
    "anchor of another model": ({"anchor": lambda: capture(build_model("llama", seed=1))}, "are not the anchor's"),
    "anchor that is answered": ({"require_refusal": True}, "found 2 of 2 that it answers"),
    "anchor of another reference": ({"reference": "current"}, "captured on the reference 'base', found .*'current'"),
    "lm_head in modules_to_save": (peft(modules_to_save=["lm_head"]), "`lm_head`"),
    "lm_head in target_modules": (peft(target_modules=["q_proj", "lm_head"]), "`'?lm_head'?`"),
    "tokens of lm_head": (peft(trainable_token_indices={"lm_head": [3]}), "`lm_head`"),
    "tied embeddings": (
        {"model": lambda: build_model("llama-tied"), **peft(modules_to_save=["embed_tokens"])},
        "PEFT configuration trains the (unembedding|input embeddings)",
    ),
    "biases": (peft(bias="all"), "trains biases of the base model"),
    "pissa": (peft(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
    "activated LoRA": (peft(alora_invocation_tokens=[5]), "an activated LoRA"),
    "prompt learning": (
        {"peft_config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)},
        "prompt-learning method PROMPT_TUNING",
    ),
    "lomo": ({"optim": "lomo"}, "Found `optim=lomo`"),
    "static graph": ({"ddp_static_graph": True}, "Found `ddp_static_graph=True`"),
    "publishing the optimizer": ({"push_to_hub": True, "hub_strategy": "checkpoint"}, "which publishes the optimizer"),
}


class TestRefused:
    @any_trainer
    @pytest.mark.parametrize("case", REFUSED)
    def test_before_training(self, tmp_path, monkeypatch, kind, case):
        given, message = REFUSED[case]
        monkeypatch.setattr(Trainer, "init_hf_repo", lambda self: None)  # of who pushes to the Hub
        model, anchor = given.get("model", lambda: build_model("llama"))(), given.get("anchor")
        settings = {name: value for name, value in given.items() if name not in ("model", "anchor")}
        with pytest.raises(ValueError, match=message):
            build_held(kind, tmp_path, model, anchor=anchor and anchor(), **settings)

    @pytest.mark.parametrize(
        "kind", ["Trainer", "SBRDPOTrainer", "SBRGRPOTrainer"]
    )  # the others stumble by themselves
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (t5, "the encoder-decoder model"),
            (lambda: of_class(AutoModelForSequenceClassification), "which generates no text"),
        ],
        ids=["t5", "classifier"],
    )
    def test_model_without_an_unembedding(self, tmp_path, kind, model, message):
        with pytest.raises(ValueError, match=message):
            build_held(kind, tmp_path, model(), anchor=capture(build_model("llama")))

    @any_trainer
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (unfreeze, "unembedding unfrozen"),
            (replace_module, "Found another unembedding"),
        ],
    )
    def test_unembedding_changed_while_training(self, tmp_path, kind, change, message):
        trainer = build_held(kind, tmp_path, callbacks=[At("on_step_end", change)])
        with pytest.raises(RuntimeError, match=message):
            trainer.train()
        assert trainer.state.global_step == 1

    @any_trainer
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda trainer: setattr(trainer.anchor_args, "anchor_loss_coef", 0.0), "Found .*'anchor_loss_coef': 0.0"),
            (lambda trainer: trainer.anchor.hidden_states.mul_(1.001), "another safety anchor, or an edited one"),
            (lambda trainer: setattr(trainer, "anchor", None), "an optimizer step without the anchor term"),
        ],
        ids=["coef", "states", "none"],
    )
    def test_anchor_changed(self, tmp_path, kind, change, message):
        trainer = build_held(kind, tmp_path)
        change(trainer)
        with pytest.raises(RuntimeError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0

    @any_trainer
    def test_training_step_of_its_own(self, tmp_path, kind):
        class Unprotected(KINDS[kind][0]):
            def training_step(self, model, inputs, num_items_in_batch=None):
                loss = self.compute_loss(model, self._prepare_inputs(inputs))
                self.accelerator.backward(loss)
                return loss.detach()

        trainer = build_held(kind, tmp_path, cls=Unprotected)
        with pytest.raises(RuntimeError, match="would not be protected|does not come to that of `Trainer`"):
            trainer.train()
        assert trainer.state.global_step == 0

    @any_trainer
    def test_resuming_what_another_anchor_or_none_was_held_in(self, tmp_path, kind):
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
        build(kind, tmp_path / "plain", build_model("llama"), coef=0.0, **settings).train()
        settings.pop("max_steps")
        trainer = build_held(kind, tmp_path / "held", **settings)
        with pytest.raises(ValueError, match="carries no safety anchor"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
        trainer.train()
        for others, message in [
            ({"anchor": capture(build_model("llama"), ["Do worse!"])}, "another safety anchor: its prompts are"),
            ({"coef": 49.0}, "`anchor_loss_coef=50.0`, found `anchor_loss_coef=49.0`"),
        ]:
            trainer = build_held(kind, tmp_path / "held", **settings, **others)
            with pytest.raises(ValueError, match=message):
                trainer.train(resume_from_checkpoint=True)


class TestProtect:
    def build(self, tmp_path, **kwargs):
        return build("Trainer", tmp_path, build_model("llama"), coef=0.0, **kwargs)

    def test_returns_the_trainer(self, tmp_path):
        trainer = self.build(tmp_path)
        capture(build_model("llama")).save_pretrained(tmp_path / "anchor")
        assert protect(trainer, tmp_path / "anchor", require_refusal=False) is trainer
        assert (trainer.anchor.questions, type(trainer).__name__) == (PROMPTS, "ProtectedTrainer")

    def test_after_an_anchor_that_was_refused(self, tmp_path):
        trainer = self.build(tmp_path, max_steps=1)
        with pytest.raises(ValueError, match="are not the anchor's"):
            protect(trainer, capture(build_model("llama", seed=1)), require_refusal=False)
        assert type(trainer) is Trainer
        protect(trainer, capture(build_model("llama")), require_refusal=False).train()
        assert history(trainer, "anchor_loss") == [0]

    @pytest.mark.parametrize("frozen", [False, True])
    def test_optimizer_that_holds_the_unembedding(self, tmp_path, frozen):
        model = build_model("llama")
        model.lm_head.requires_grad_(not frozen)
        trainer = build("Trainer", tmp_path, model, coef=0.0)
        trainer.create_optimizer()  # of what is trained
        anchor = capture(model)
        if frozen:
            protect(trainer, anchor, require_refusal=False)
            return
        with pytest.raises(ValueError, match="Found an optimizer that was made before the unembedding was frozen"):
            protect(trainer, anchor, require_refusal=False)

    def test_own_optimizer_of_all_parameters(self, tmp_path):
        model = build_model("llama")
        model.lm_head.requires_grad_(False)
        trainer = build("Trainer", tmp_path, model, coef=0.0, optimizers=(torch.optim.SGD(model.parameters()), None))
        with pytest.raises(ValueError, match="leave it out of the optimizer"):
            protect(trainer, capture(model), require_refusal=False)

    def test_what_cannot_be_held(self, tmp_path):
        anchor = capture(build_model("llama"))
        with pytest.raises(TypeError, match="Expected a `transformers.Trainer`, found `str`"):
            protect("trainer", anchor)
        with pytest.raises(ValueError, match="`coef=0`, which protects nothing"):
            protect(self.build(tmp_path), anchor, coef=0.0)
        with pytest.raises(ValueError, match="holds an anchor already"):
            protect(build_held("Trainer", tmp_path), anchor)
        trainer = self.build(tmp_path)
        trainer.processing_class = None
        with pytest.raises(ValueError, match="Found no tokenizer in the trainer"):
            protect(trainer, anchor)
        args = TrainingArguments(tmp_path, use_cpu=True)
        with pytest.raises(ValueError, match="Found `model_init`"):
            protect(Trainer(args=args, model_init=lambda: build_model("llama")), anchor)
        with pytest.raises(ValueError, match="causal language model of transformers, .*found `Linear`"):
            protect(Trainer(nn.Linear(2, 2), args, processing_class=build_tokenizer()), anchor)

    def test_training_loop_of_its_own(self, tmp_path):
        class OwnLoop(Trainer):
            def train(self, resume_from_checkpoint=None):
                optimizer = torch.optim.SGD(self.model.parameters())
                self.model(input_ids=torch.tensor([[5, 6, 7]])).logits.mean().backward()
                optimizer.step()

        trainer = build_held("Trainer", tmp_path, cls=OwnLoop)
        before = trainer.model.model.embed_tokens.weight.clone()
        with pytest.raises(RuntimeError, match="an optimizer step without the anchor term"):
            trainer.train()
        assert torch.equal(trainer.model.model.embed_tokens.weight, before)

    def test_method_put_on_the_instance(self, tmp_path):
        trainer = self.build(tmp_path, max_steps=1)
        original, calls = trainer.train, []

        def train(*args, **kwargs):  # as Unsloth does
            calls.append(args)
            return original(*args, **kwargs)

        trainer.train = train
        with pytest.raises(ValueError, match="are not the anchor's"):
            protect(trainer, capture(build_model("llama", seed=1)), require_refusal=False)
        assert trainer.train is train
        protect(trainer, capture(build_model("llama")), require_refusal=False)
        with pytest.raises(ValueError, match="No valid checkpoint found"):
            trainer.train(resume_from_checkpoint=True)
        assert not calls  # the mixin's comes first
        trainer.train()
        assert len(calls) == 1 and history(trainer, "anchor_loss") == [0]

    def test_in_the_middle_of_a_training(self, tmp_path):
        anchor = capture(build_model("llama"))
        late = At("on_step_end", lambda model: protect(trainer, anchor, require_refusal=False))
        trainer = self.build(tmp_path, callbacks=[late])
        with pytest.raises(ValueError, match="Found a trainer that is training"):
            trainer.train()
