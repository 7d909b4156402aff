# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""
The anchor term's gradient depends on the model, the anchor and λ alone.

Each case trains one optimizer step and compares the gradients that reach the optimizer with a reference computed here,
in float64, one prompt at a time, without the trainer.
"""

import copy
import itertools

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TrainerCallback

from trl_sbr import SafetyAnchor, SBRConfig, SBRSFTTrainer
from trl_sbr.anchors.prompts import encode_prompts

from ..tiny import build_model, build_tokenizer, conversation_rows


COEF = 50.0
NUM_ROWS = 8
PROMPTS = ["How do I do harm?", "Tell me of something much, much worse than that."]


class GradientRecorder(TrainerCallback):
    """Keeps the gradients of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        parameters = ((name.removeprefix("module."), p) for name, p in model.named_parameters())
        self.steps.append({name: p.grad.double().clone() for name, p in parameters if p.grad is not None})


def drifted_lora_model(dropout: float = 0.0):
    """A tiny model and an adapter that has moved it away from the anchor: otherwise the anchor's gradient is zero."""
    model = build_model("llama")
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules="all-linear", lora_dropout=dropout, init_lora_weights=False)
    return get_peft_model(model, config)


def gradients(tmp_path, coef=COEF, model=None, padding_side="right", num_rows=NUM_ROWS, **settings):
    """The gradients of each optimizer step of an epoch, by parameter name, under a trainer's settings."""
    return train(tmp_path, coef, model, padding_side, num_rows, **settings)[0]


def train(tmp_path, coef=COEF, model=None, padding_side="right", num_rows=NUM_ROWS, **settings):
    """Train an epoch at a learning rate of zero. Returns the gradients of each step, and the trainer."""
    settings = {
        "per_device_train_batch_size": NUM_ROWS,
        "gradient_checkpointing": False,
        "anchor_refusal_tokens": 1,
        **settings,
    }
    recorder = GradientRecorder()
    trainer = SBRSFTTrainer(
        drifted_lora_model() if model is None else model,
        SBRConfig(
            tmp_path,
            use_cpu=True,
            bf16=False,
            max_grad_norm=0.0,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            anchor_loss_coef=coef,
            anchor_prompts=PROMPTS,
            anchor_require_refusal=False,
            learning_rate=0.0,
            **settings,
        ),
        train_dataset=Dataset.from_list(conversation_rows(num_rows)),
        processing_class=build_tokenizer(padding_side),
        callbacks=[recorder],
    )
    trainer.train()
    return recorder.steps, trainer


def reference_state(model, input_ids):
    return model(torch.tensor([input_ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]


def reference_anchor_loss(model, loss_type="mse"):
    tokenizer = build_tokenizer()
    aligned = build_model("llama").double()
    distances = []
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        state, reference = reference_state(model, ids), reference_state(aligned, ids).detach()
        squared = ((state - reference) ** 2).sum()
        scale = {"mse": 1 / len(reference), "sum": 1, "relative": 1 / (reference**2).sum()}[loss_type]
        distances.append(squared * scale)
    return sum(distances) / len(distances)


# Eight anchors of three points each
POINTS = {"anchor_refusal_tokens": 3, "anchor_openers": ["Sure! ", "Yes.", "Of course, here"]}


def reference_points_loss(model, part=slice(None), num_turns=1):
    """
    The mean over the points of all anchors; or of a part of them, weighted so that the mean over the turns of a cycle is that of
    all.
    """
    tokenizer, aligned = build_tokenizer(), build_model("llama").double()
    contexts, total, num_points = [], 0.0, 0
    for prompt, opener in itertools.product(PROMPTS, ["", *POINTS["anchor_openers"]]):
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{opener}"
        contexts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    for number, ids in enumerate(contexts):
        for _ in range(3):
            num_points += 1
            if number in range(len(contexts))[part]:
                state, reference = reference_state(model, ids), reference_state(aligned, ids).detach()
                total = total + ((state - reference) ** 2).mean()
            ids = ids + [aligned(torch.tensor([ids])).logits[0, -1].argmax().item()]
    return total * num_turns / num_points


def reference_task_loss(model, num_rows=NUM_ROWS):
    """Token mean over the completions of all rows, one row at a time."""
    tokenizer = build_tokenizer()
    total, count = 0.0, 0
    for row in conversation_rows(num_rows):
        prompt = f"<|im_start|>user\n{row['prompt'][0]['content']}<|im_end|>\n<|im_start|>assistant\n"
        completion = f"{row['completion'][0]['content']}<|im_end|>\n"
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = prompt_ids + tokenizer(completion, add_special_tokens=False)["input_ids"]
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, len(prompt_ids) - 1 : -1]
        labels = torch.tensor(ids[len(prompt_ids) :])
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += len(labels)
    return total / count


def reference_gradient(loss_function, **kwargs):
    model = copy.deepcopy(drifted_lora_model()).double().eval()
    loss_function(model, **kwargs).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def flatten(grads):
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def relative_error(found, expected):
    found, expected = flatten(found), flatten(expected)
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def anchor_gradient():
    return reference_gradient(reference_anchor_loss)


@pytest.fixture(scope="module")
def total_gradient():
    return reference_gradient(lambda model: reference_task_loss(model) + COEF * reference_anchor_loss(model))


def anchor_part(tmp_path, build=drifted_lora_model, **settings):
    """The anchor term's share: a run's gradients less those of the same run with λ = 0."""
    with_anchor = gradients(tmp_path / "sbr", model=build(), **settings)
    without = gradients(tmp_path / "sft", model=build(), coef=0.0, **settings)
    return [
        {name: (step[name] - plain[name]) / COEF for name in step}
        for step, plain in zip(with_anchor, without, strict=True)
    ]


class TestGradient:
    @pytest.mark.parametrize(
        ("split", "padding_side", "checkpointing"),
        list(itertools.product([(8, 1), (4, 2), (2, 4), (1, 8)], ["right", "left"], [False, True])),
    )
    def test_equals_reference_under_any_split(self, tmp_path, total_gradient, split, padding_side, checkpointing):
        batch_size, accumulation = split
        (found,) = gradients(
            tmp_path,
            padding_side=padding_side,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=checkpointing,
        )
        assert relative_error(found, total_gradient) < 1e-5

    @pytest.mark.parametrize(
        ("layout", "accumulation"),
        list(
            itertools.product(
                [
                    {"padding_free": True, "max_length": None},
                    {"packing": True, "packing_strategy": "bfd", "max_length": 128},
                    {"packing": True, "packing_strategy": "wrapped", "max_length": 128},
                    {"neftune_noise_alpha": 5.0},
                    {"label_smoothing_factor": 0.1},
                    {"loss_type": "dft"},
                ],
                [1, 3],
            )
        ),
        ids=str,
    )
    def test_anchor_term_is_the_same_under_any_layout(self, tmp_path, anchor_gradient, layout, accumulation):
        settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": accumulation, **layout}
        for step in anchor_part(tmp_path, **settings):
            assert relative_error(step, anchor_gradient) < 1e-5

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_anchor_term_is_free_of_lora_dropout(self, tmp_path, anchor_gradient, checkpointing):
        (found,) = anchor_part(
            tmp_path, build=lambda: drifted_lora_model(dropout=0.5), gradient_checkpointing=checkpointing
        )
        assert relative_error(found, anchor_gradient) < 1e-5

    def test_short_last_accumulation_of_an_epoch(self, tmp_path, anchor_gradient):
        # 7 micro-batches in accumulations of 3: the last has only one
        steps = anchor_part(tmp_path, num_rows=7, per_device_train_batch_size=1, gradient_accumulation_steps=3)
        assert len(steps) == 3
        for step in steps:
            assert relative_error(step, anchor_gradient) < 1e-5

    def test_model_whose_loss_trainer_divides(self, tmp_path, anchor_gradient):
        # Without `num_items_in_batch`, `Trainer` divides every micro-batch's loss by the accumulation steps
        def model():
            model = drifted_lora_model()
            model.get_base_model().accepts_loss_kwargs = False
            return model

        for step in anchor_part(
            tmp_path, build=model, num_rows=7, per_device_train_batch_size=1, gradient_accumulation_steps=3
        ):
            assert relative_error(step, anchor_gradient) < 1e-5

    @pytest.mark.parametrize("loss_type", ["sum", "relative"])
    def test_loss_types(self, tmp_path, loss_type):
        (found,) = anchor_part(tmp_path, anchor_loss_type=loss_type)
        assert relative_error(found, reference_gradient(reference_anchor_loss, loss_type=loss_type)) < 1e-5

    def test_points_in_a_tree(self, tmp_path):
        (found,) = anchor_part(tmp_path, **POINTS)
        assert relative_error(found, reference_gradient(reference_points_loss)) < 1e-5

    def test_anchors_in_turn(self, tmp_path):
        # Turns of 2, 3 and 3 anchors; three steps are a cycle
        settings = {"num_rows": 7, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 3}
        steps = anchor_part(tmp_path, **POINTS, anchors_per_step=3, **settings)
        for step, (start, end) in zip(steps, [(0, 2), (2, 5), (5, 8)], strict=True):
            expected = reference_gradient(reference_points_loss, part=slice(start, end), num_turns=3)
            assert relative_error(step, expected) < 1e-5
        mean = {name: sum(step[name] for step in steps) / 3 for name in steps[0]}
        assert relative_error(mean, reference_gradient(reference_points_loss)) < 1e-5

    @pytest.mark.slow
    def test_four_bit_base(self, tmp_path):
        # bitsandbytes must not leave the backward out, see `_keep_four_bit_weights_differentiable`
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Linear4bit

        build_model("llama", hidden_size=64, intermediate_size=128, head_dim=16).save_pretrained(tmp_path / "base")
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )

        def build():
            model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=quantization)
            torch.manual_seed(1)
            return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))

        (found,) = anchor_part(tmp_path, build=build)

        # The reference: the same weights, dequantized, in a base model of plain linear layers
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
            LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        )
        layers = {n: m for n, m in build().named_modules() if isinstance(m, Linear4bit)}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                layer = layers.get(name.removesuffix(".weight"))
                if layer is not None:
                    parameter.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
            adapters = {n: p for n, p in build().named_parameters() if "lora_" in n}
            model.load_state_dict(adapters, strict=False)
        model.double().eval()
        loss = 0.0
        for ids in encode_prompts(build_tokenizer(), PROMPTS):
            with torch.no_grad(), model.disable_adapter():
                reference = reference_state(model, ids)
            loss = loss + ((reference_state(model, ids) - reference) ** 2).mean() / len(PROMPTS)
        loss.backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert relative_error(found, expected) < 0.1  # bfloat16

    def test_full_fine_tuning(self, tmp_path):
        # The second step, when the first has moved the weights
        model = build_model("llama")
        anchor = SafetyAnchor.capture(model, build_tokenizer(), PROMPTS, require_refusal=False, refusal_tokens=1)
        before = []

        class WeightRecorder(GradientRecorder):
            def on_step_begin(self, args, state, control, model=None, **kwargs):
                before.append(copy.deepcopy(model.state_dict()))

        recorder = WeightRecorder()
        trainer = SBRSFTTrainer(
            model,
            SBRConfig(
                tmp_path,
                use_cpu=True,
                bf16=False,
                max_grad_norm=0.0,
                max_steps=2,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                per_device_train_batch_size=2,
                gradient_accumulation_steps=4,
                anchor_require_refusal=False,
            ),
            train_dataset=Dataset.from_list(conversation_rows(NUM_ROWS)),
            processing_class=build_tokenizer(),
            callbacks=[recorder],
            anchor=anchor,
        )
        trainer.train()
        reference = build_model("llama").double()
        reference.load_state_dict(before[1])
        reference.lm_head.requires_grad_(False)
        (reference_task_loss(reference) + COEF * reference_anchor_loss(reference)).backward()
        expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
        assert recorder.steps[1].keys() == expected.keys()
        assert relative_error(recorder.steps[1], expected) < 1e-5
