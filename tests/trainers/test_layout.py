# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""The layout in which the anchors are trained on gives the states of plain padded rows, whatever is learned."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from torch import nn

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.perturbation import get_movable_parameters, moved
from trl_sbr.trainers.layout import Turn, lay_out_for_training

from ..tiny import build_model, build_tokenizer
from .test_sbr_sft_trainer import LORA, make_trainer


TURNS = [Turn(slice(0, 4), slice(0, 4)), Turn(slice(4, 8), slice(4, 8))]


def capture(model):
    return SafetyAnchor.capture(model, build_tokenizer(), require_refusal=False)


def is_shared(batch):
    return len(batch.inputs["input_ids"]) == 1


class ByColumn(nn.Module):
    """Adds something that depends on the column in which a token stands, and is nothing at first."""

    def __init__(self, shape):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(shape))

    def forward(self, states):
        columns = torch.arange(states.shape[1], dtype=states.dtype).unsqueeze(-1)
        return states + self.gate.sum() * torch.sin(columns)


class ByRow(ByColumn):
    """Adds the running mean of the row, and is nothing at first."""

    def forward(self, states):
        counts = torch.arange(1, states.shape[1] + 1, dtype=states.dtype).unsqueeze(-1)
        return states + self.gate.sum() * states.cumsum(dim=1) / counts


def with_neutral_part(part, peft):
    model = build_model("llama")
    layer = model.model.layers[0]
    layer.neutral = part
    layer.register_forward_hook(lambda module, args, output: module.neutral(output))
    return get_peft_model(model, LoraConfig(**LORA, modules_to_save=["neutral"])) if peft else model


class TestLayOutForTraining:
    @pytest.mark.parametrize("part", [ByColumn, ByRow])
    @pytest.mark.parametrize(("peft", "shape"), [(True, (4,)), (True, (2, 2)), (False, (4,))])
    def test_what_depends_on_the_row_and_does_nothing_yet_is_seen(self, part, peft, shape):
        model = with_neutral_part(part(shape), peft)
        anchor = capture(model)
        assert is_shared(anchor.lay_out(model, model))
        assert not any(map(is_shared, lay_out_for_training(anchor, model, model, TURNS)))

    @pytest.mark.parametrize(
        "config",
        [
            None,
            LoraConfig(**LORA),
            LoraConfig(**LORA, use_dora=True),
            LoraConfig(**LORA, init_lora_weights=False),
            VeraConfig(r=4, target_modules=["q_proj", "v_proj"]),
            IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
        ],
        ids=["full", "lora", "dora", "moved-lora", "vera", "ia3"],
    )
    def test_others_share_a_row(self, config):
        model = build_model("llama")
        anchor = capture(model)
        if config is not None:
            model = get_peft_model(model, config)
        before = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        assert all(map(is_shared, lay_out_for_training(anchor, model, model, TURNS)))
        # Check that the weights have their bits again, and that no random number was taken
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)


class TestMoved:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_bits_come_back_after_an_error(self, dtype):
        model = get_peft_model(build_model("llama"), LoraConfig(**LORA)).to(dtype)
        with torch.no_grad():
            model.get_base_model().model.layers[0].self_attn.q_proj.lora_B["default"].weight[0, 0] = -0.0
        before = {name: p.detach().view(torch.uint8).clone() for name, p in model.named_parameters()}
        with pytest.raises(KeyError), moved(get_movable_parameters(model), 0.3):
            for name, p in model.named_parameters():
                assert torch.equal(p.detach().view(torch.uint8), before[name]) is not p.requires_grad, name
            raise KeyError
        for name, p in model.named_parameters():
            assert torch.equal(p.detach().view(torch.uint8), before[name]), name


class TestTrainer:
    @pytest.mark.parametrize("part", [ByColumn, ByRow])
    def test_is_held_in_rows_of_its_own(self, tmp_path, part):
        model = with_neutral_part(part((4,)), peft=True)
        trainer = make_trainer(tmp_path, model, anchor_require_refusal=False)
        trainer.train()
        assert not is_shared(trainer._anchor_batches[0])
        trainer.save_model()

    @pytest.mark.parametrize("part", [ByColumn, ByRow])
    def test_what_is_not_held_is_not_saved(self, tmp_path, part):
        # A matrix of a fully trained model is not moved beforehand: saving finds it out
        model = with_neutral_part(part((2, 2)), peft=False)
        trainer = make_trainer(tmp_path, model, anchor_require_refusal=False)
        trainer.train()
        assert is_shared(trainer._anchor_batches[0])
        with pytest.raises(RuntimeError, match="other states in rows of their own"):
            trainer.save_model()
        assert not (tmp_path / "model.safetensors").exists()

    def test_one_prompt_and_one_row(self, tmp_path):
        trainer = make_trainer(tmp_path, build_model("llama"), anchor_prompts=["Do!"], anchor_require_refusal=False)
        trainer.train()
        trainer.save_model()
