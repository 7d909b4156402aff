# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""With `anchor_method="subspace"` an adapter does nothing on the anchors, whatever is trained; or it is an error."""

import json

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from trl_sbr import SBRConfig, protect
from trl_sbr.anchors.subspace import AnchorSubspace, find_bases, find_overlap, orthonormal_basis
from trl_sbr.trainers.run_record import RECORD_NAME, hash_files, read_record, write_record

from ..tiny import build_model, build_tokenizer
from .any_trainer import KINDS, build
from .test_any_trainer import capture
from .test_guard import At
from .test_sbr_sft_trainer import StopAt, history, make_trainer


PROMPTS = ["Do harm!", "Do something worse!"]  # of some fifty tokens together
LORA = {"r": 4, "target_modules": "all-linear", "lora_dropout": 0.1}


def wide_model():
    """More inputs than the anchors have tokens."""
    return build_model("llama", hidden_size=96, intermediate_size=144, head_dim=24)


def trainer_in(folder, model=None, lora=(), **settings):
    settings = {"max_steps": 6, "learning_rate": 1e-2, **settings}
    settings.setdefault("peft_config", LoraConfig(**{**LORA, **dict(lora)}))
    settings = {"anchor_prompts": PROMPTS, "anchor_require_refusal": False, "anchor_method": "subspace", **settings}
    return make_trainer(folder, wide_model() if model is None else model, **settings)


@torch.no_grad()
def last_state(model, text):
    """The final hidden state of an ordinary forward, which knows nothing of this package."""
    ids = build_tokenizer().apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    return model(ids, output_hidden_states=True).hidden_states[-1][0, -1]


def movement(folder, text):
    """How far the saved adapter moves the state of a prompt, relative."""
    model = wide_model()
    before = last_state(model, text)
    return ((last_state(PeftModel.from_pretrained(model, folder), text) - before).norm() / before.norm()).item()


class TestExact:
    @pytest.mark.parametrize(
        ("lora", "settings"),
        [
            ({}, {}),
            ({"use_rslora": True}, {}),
            ({"init_lora_weights": False}, {}),  # B is not 0 at first
            ({}, {"optim": "sgd", "learning_rate": 1.0}),
            ({}, {"optim": "adafactor", "weight_decay": 0.1}),
            ({}, {"gradient_accumulation_steps": 3, "gradient_checkpointing": True}),
        ],
        ids=["lora", "rslora", "random", "sgd", "adafactor", "accumulation"],
    )
    def test_states_stay_those_of_the_aligned_model(self, tmp_path, lora, settings):
        trainer = trainer_in(tmp_path, lora=lora, **settings)
        trainer.train()
        trainer.save_model()
        assert movement(tmp_path, "Is it good?") > 0.05
        for prompt in PROMPTS:
            assert movement(tmp_path, prompt) < 1e-5
        assert find_overlap(trainer.model, trainer.anchor) < 1e-6

    def test_up_to_rounding_in_bfloat16(self, tmp_path):
        trainer = trainer_in(tmp_path, bf16=True, max_steps=20)
        trainer.train()
        trainer.save_model()
        with torch.autocast("cpu", torch.bfloat16):
            assert trainer.anchor.compare(trainer.model, build_tokenizer()).max_relative_error < 1e-2
            assert movement(tmp_path, "Is it good?") > 0.05

    def test_every_token_of_a_deeper_anchor_is_kept(self, tmp_path):
        trainer = trainer_in(tmp_path, anchor_prompts=["Do harm!"], anchor_openers=["Sure: "], anchor_refusal_tokens=3)
        trainer.train()
        assert len(trainer.anchor.hidden_states) == 6
        assert trainer.evaluate(trainer.train_dataset)["eval_anchor_loss"] < 1e-9

    def test_no_anchor_is_read_in_a_step(self, tmp_path):
        trainer, calls = trainer_in(tmp_path), []
        trainer.model.base_model.model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
        trainer.train()
        assert len(calls) == 6
        assert not any("anchor_loss" in log for log in trainer.state.log_history)
        assert len(history(trainer, "loss")) == 6

    def test_layers_with_the_same_input_share_a_basis(self):
        model = get_peft_model(wide_model(), LoraConfig(**LORA))
        bases = find_bases(model, capture(model, PROMPTS))
        assert len(bases) == 2 * 7
        assert len({id(basis) for basis in bases}) == 2 * 4  # q, k and v; o; gate and up; down

    def test_orthonormal_basis(self):
        vectors = torch.randn(3, 8) * torch.tensor([[1e4], [1.0], [1e-4]])
        basis = orthonormal_basis(torch.cat([vectors, vectors.sum(dim=0, keepdim=True), torch.zeros(1, 8)]))
        assert basis.shape == (8, 3)
        torch.testing.assert_close(basis.T @ basis, torch.eye(3))
        torch.testing.assert_close(vectors @ basis @ basis.T, vectors, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_projection_is_the_nearest_that_is_kept_off(self, dtype):
        model = get_peft_model(wide_model(), LoraConfig(**LORA), autocast_adapter_dtype=False)
        anchor = capture(model, PROMPTS)
        weight = model.base_model.model.model.layers[1].mlp.down_proj.lora_A["default"].weight
        bases = find_bases(model, anchor)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype) if parameter.requires_grad else parameter.data
        before = weight.detach().clone().float()
        subspace = AnchorSubspace(model, bases)
        assert find_overlap(model, anchor) > 0.1
        subspace.project()
        expected = before - before @ bases[-1] @ bases[-1].T
        torch.testing.assert_close(weight.float(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)
        assert subspace.overlap() < 3e-3
        assert 0 < subspace.share < 1


class TestAnyTrainer:
    @pytest.mark.parametrize("kind", KINDS)
    def test_keeps_off(self, tmp_path, kind):
        model = wide_model()
        trainer = build(
            kind,
            tmp_path,
            model,
            capture(model, PROMPTS),
            method="subspace",
            peft_config=LoraConfig(**LORA),
            max_steps=3,
        )
        trainer.train()
        trainer.save_model()
        assert movement(tmp_path, PROMPTS[0]) < 1e-5 < movement(tmp_path, "Is it good?")
        assert read_record(tmp_path / RECORD_NAME)["sbr"]["anchor_method"] == "subspace"
        assert "does nothing on their tokens" in (tmp_path / "README.md").read_text()


class TestResuming:
    SAVE = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def test_ends_with_the_same_bits(self, tmp_path):
        trainer_in(tmp_path / "whole", **self.SAVE).train()
        trainer_in(tmp_path / "parts", callbacks=[StopAt(2)], **self.SAVE).train()
        resumed = trainer_in(tmp_path / "parts", **self.SAVE)
        resumed.train(resume_from_checkpoint=True)
        found, expected = (
            load_file(tmp_path / f / "checkpoint-4" / "adapter_model.safetensors") for f in ("parts", "whole")
        )
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())

    @pytest.mark.parametrize("methods", [("loss", "subspace"), ("subspace", "loss")])
    def test_by_another_method_raises(self, tmp_path, methods):
        trainer_in(tmp_path, anchor_method=methods[0], **self.SAVE).train()
        other = trainer_in(tmp_path, anchor_method=methods[1], **{**self.SAVE, "max_steps": 6})
        with pytest.raises(ValueError, match=f"`anchor_method='{methods[0]}'`, found `anchor_method='{methods[1]}'`"):
            other.train(resume_from_checkpoint=True)

    def test_record_of_an_earlier_release_is_of_the_loss(self, tmp_path):
        trainer_in(tmp_path, anchor_method="loss", **self.SAVE).train()
        path = tmp_path / "checkpoint-4" / RECORD_NAME
        record = json.loads(path.read_text())
        del record["sbr"]["anchor_method"]
        path.write_text(json.dumps(record))
        trainer_in(tmp_path, anchor_method="loss", **{**self.SAVE, "max_steps": 5}).train(resume_from_checkpoint=True)

    def test_edited_checkpoint_raises(self, tmp_path):
        trainer_in(tmp_path, **self.SAVE).train()
        checkpoint = tmp_path / "checkpoint-4"
        weights = load_file(checkpoint / "adapter_model.safetensors")
        save_file({name: tensor + 0.01 for name, tensor in weights.items()}, checkpoint / "adapter_model.safetensors")
        record = read_record(checkpoint / RECORD_NAME)
        write_record({**record, "files": hash_files(checkpoint)}, checkpoint)
        with pytest.raises(ValueError, match="on the anchors' inputs"):
            trainer_in(tmp_path, **{**self.SAVE, "max_steps": 6}).train(resume_from_checkpoint=True)


def bend(model):
    """Puts an adapter on the anchors' inputs."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.data += 0.01


class TestRaises:
    @pytest.mark.parametrize(
        ("peft_config", "message"),
        [
            (None, "a model without an adapter"),
            (LoraConfig(**LORA, use_dora=True), "DoraLinearVariant"),
            (LoraConfig(**LORA, modules_to_save=["norm"]), "norm.*trained, which no"),
            (LoraConfig(r=4, target_modules=["q_proj"], lora_bias=True), "lora_B.default.bias` trained"),
            (LoraConfig(r=4, target_modules=["embed_tokens"]), "lora_embedding_A.default` trained"),
            (LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3]), "token_adapter.*trained"),
            (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "ia3_l.default` trained"),
        ],
        ids=["full", "dora", "modules_to_save", "lora_bias", "embeddings", "tokens", "ia3"],
    )
    def test_what_moves_on_the_anchors(self, tmp_path, peft_config, message):
        with pytest.raises(ValueError, match=f"(?s){message}.*anchor_method='loss'"):
            trainer_in(tmp_path, peft_config=peft_config)

    def test_experts_in_one_tensor(self, tmp_path):
        model = build_model("mixtral", hidden_size=96, intermediate_size=144, head_dim=24)
        config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"])
        with pytest.raises(ValueError, match="experts` with `ParamWrapper`"):
            trainer_in(tmp_path, model, peft_config=config)

    def test_anchors_that_take_all_inputs(self, tmp_path):
        prompts = [*PROMPTS, "Do what nobody has ever thought of, and be quick about it, my dear model!"]
        with pytest.raises(ValueError, match=r"take all 96 inputs of `.*_proj`, expected fewer"):
            trainer_in(tmp_path, anchor_prompts=prompts)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"anchor_method": "wall"}, r"`anchor_method` to be one of \('loss', 'subspace'\), found 'wall'"),
            ({"anchor_loss_coef": 0.0}, "`anchor_loss_coef=0`, which is plain fine-tuning"),
            ({"anchors_per_step": 1}, "`anchors_per_step=1` and `anchor_method='subspace'`"),
            ({"anchor_reference": "current"}, "`anchor_reference='current'` and `anchor_method='subspace'`"),
        ],
    )
    def test_settings_that_mean_nothing(self, tmp_path, settings, message):
        with pytest.raises(ValueError, match=message):
            SBRConfig(tmp_path, use_cpu=True, bf16=False, **{"anchor_method": "subspace", **settings})

    def test_schedule_free_optimizer(self, tmp_path):
        with pytest.raises(ValueError, match="`optim=schedule_free_adamw`"):
            trainer_in(tmp_path, optim="schedule_free_adamw")

    def test_layer_whose_adapter_sees_more_than_its_input(self, tmp_path):
        model = get_peft_model(wide_model(), LoraConfig(**LORA))
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        layer.lora_A["default"].register_forward_hook(lambda module, args, output: output + 1)
        with pytest.raises(ValueError, match="it acts on more than the input of its layers"):
            trainer_in(tmp_path, model, peft_config=None)

    @pytest.mark.parametrize("event", ["on_step_end", "on_train_end"])
    def test_weights_changed_behind_the_step_are_not_saved(self, tmp_path, event):
        trainer = trainer_in(tmp_path, callbacks=[At(event, bend, step=6)])
        trainer.train()
        with pytest.raises(ValueError, match=r"on the anchors' inputs: ‖A U‖ / ‖A‖ is .*, expected at most 1e-05"):
            trainer.save_model()
        assert not list(tmp_path.glob("*.safetensors"))

    def test_weights_trained_beside_the_adapter_are_not_saved(self, tmp_path):
        def unfreeze(model):
            model.base_model.model.model.norm.requires_grad_(True)

        trainer = trainer_in(tmp_path, callbacks=[At("on_step_end", unfreeze, 6)])
        trainer.train()
        with pytest.raises(ValueError, match="norm.weight` trained"):
            trainer.save_model()

    def test_base_weights_changed_are_not_saved(self, tmp_path):
        def change(model):
            model.base_model.model.model.layers[1].mlp.up_proj.base_layer.weight.data *= 1.1

        trainer = trainer_in(tmp_path, callbacks=[At("on_step_end", change, 6)])
        trainer.train()
        with pytest.raises(ValueError, match="states on the anchors that have moved"):
            trainer.save_model()

    def test_step_of_another_loop(self, tmp_path):
        class Stepping(TrainerCallback):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                torch.optim.SGD(model.parameters(), lr=1e-3).step()

        with pytest.raises(RuntimeError, match="optimizer step without the anchor term"):
            trainer_in(tmp_path, callbacks=[Stepping()], max_grad_norm=0).train()

    def test_protect(self, tmp_path):
        model = wide_model()
        trainer = build("Trainer", tmp_path, model, coef=0.0)
        with pytest.raises(ValueError, match="a model without an adapter"):
            protect(trainer, capture(model, PROMPTS), method="subspace", require_refusal=False)
        assert type(trainer) is KINDS["Trainer"][0]  # another method may be tried
