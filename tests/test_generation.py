# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch

from trl_sbr.generation import generate_answers

from .tiny import build_model, build_tokenizer


PROMPTS = [
    "A short one?",
    "Now one that is quite a bit longer than the others?",
    [{"role": "user", "content": "Third?"}],
]


class TestGenerateAnswers:
    @pytest.mark.parametrize("padding_side", ["left", "right"])
    def test_equal_to_one_prompt_at_a_time_without_padding(self, model, padding_side):
        tokenizer = build_tokenizer(padding_side)
        expected = []
        for prompt in PROMPTS:
            question = prompt if isinstance(prompt, str) else prompt[0]["content"]
            text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            output = ids
            for _ in range(12):
                with torch.no_grad():
                    output = torch.cat([output, model(output).logits[:, -1:].argmax(dim=-1)], dim=1)
                if output[0, -1] == model.generation_config.eos_token_id:
                    break
            expected.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip())
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=2) == expected

    def test_sampling_settings_of_the_model_are_left_aside(self, model, tokenizer):
        expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12)
        model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0)
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12) == expected

    def test_mode_is_restored_and_dropout_off(self, tokenizer):
        model = build_model("gpt2")
        expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12)
        model.train()
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12) == expected
        assert model.training

    def test_progress(self, model, tokenizer):
        calls = []
        generate_answers(model, tokenizer, PROMPTS, 2, batch_size=2, progress=lambda *call: calls.append(call))
        assert calls == [(2, 3), (3, 3)]

    def test_no_prompts(self, model, tokenizer):
        assert generate_answers(model, tokenizer, []) == []
