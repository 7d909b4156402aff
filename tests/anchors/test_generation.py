# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from trl_sbr import is_refusal
from trl_sbr.anchors.generation import STRIDE, BatchSize, generate_answers, generate_token_ids

from ..tiny import ARCHITECTURES, REFUSAL, VOCAB_SIZE, build_model, build_selective_model, build_tokenizer


REFUSAL_ID = build_tokenizer().convert_tokens_to_ids(REFUSAL)

PROMPTS = [
    "A short one?",
    "Now one that is quite a bit longer than the others?",
    [{"role": "user", "content": "Third?"}],
]


def put_adapter(model):
    return get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


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

    @pytest.mark.parametrize("wrap", [lambda model: model, put_adapter], ids=["model", "peft"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0},
            {"sequence_bias": [[[REFUSAL_ID], 99.0]]},
            {"suppress_tokens": [i for i in range(VOCAB_SIZE) if i != REFUSAL_ID]},
            {"begin_suppress_tokens": [i for i in range(VOCAB_SIZE) if i != REFUSAL_ID]},
            {"bad_words_ids": [[i] for i in range(VOCAB_SIZE) if i != REFUSAL_ID]},
            {"forced_bos_token_id": REFUSAL_ID},
            {"forced_eos_token_id": REFUSAL_ID},
            {"no_repeat_ngram_size": 1},
            {"guidance_scale": 3.0},
            {"exponential_decay_length_penalty": (0, 99.0)},
            {"encoder_repetition_penalty": 9.0},
            {"max_time": 0.0},
            {"stop_strings": ["a", "e", "t"]},
            {"num_return_sequences": 2},
            {"num_beams": 3},
            {"penalty_alpha": 0.6, "top_k": 4},
            {"prompt_lookup_num_tokens": 3},
            {"min_new_tokens": 12},
            {"max_length": 3},
            {"cache_implementation": "static"},
            {"use_cache": False},
            {"watermarking_config": {"greenlist_ratio": 0.1, "bias": 9.0}},
            {"token_healing": True},
            {"a_setting_of_another_release": 1},
        ],
        ids=lambda settings: next(iter(settings)),
    )
    def test_settings_of_the_model_are_left_aside(self, tokenizer, settings, wrap):
        model = wrap(build_model("llama"))
        expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12)
        config = model.generation_config
        for name, value in settings.items():
            setattr(config, name, value)
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12) == expected
        assert model.generation_config is config

    def test_no_setting_leaks(self, model, tokenizer):
        """Whatever a field holds, of whichever type, is not looked at."""
        expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=3)
        fields = vars(GenerationConfig()).keys() - {"eos_token_id"}
        assert len(fields) > 50
        for name in fields:
            for value in (3, [[5, 6]], "text", True):
                model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
                setattr(model.generation_config, name, value)
                assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=3) == expected, (name, value)

    @pytest.mark.parametrize("leave", ["none", "nothing"])
    def test_model_without_generation_settings(self, model, tokenizer, leave):
        model.generation_config.eos_token_id = None
        expected = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12)
        if leave == "none":
            model.generation_config = None
        else:
            del model.generation_config
        assert generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12) == expected
        assert getattr(model, "generation_config", None) is None

    def test_settings_come_back_after_an_error(self, model, tokenizer):
        config = model.generation_config
        with pytest.raises((RuntimeError, IndexError)):
            list(generate_token_ids(model, tokenizer, [[10**6]], 2, BatchSize(1)))
        assert model.generation_config is config

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


class TestGenerateTokenIds:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_rows_that_end_leave_the_batch_and_change_nothing(self, architecture):
        tokenizer, model = build_tokenizer(), build_model(architecture)
        prompts = [[i + 5, *range(20, 24 + 3 * i)] for i in range(5)]
        length = 3 * STRIDE + 5
        plain = []
        for prompt in prompts:  # one at a time, without a cache
            output = torch.tensor([prompt])
            with torch.no_grad():
                for _ in range(length):
                    output = torch.cat([output, model(output, use_cache=False).logits[:, -1:].argmax(dim=-1)], dim=1)
            plain.append(output[0, len(prompt) :].tolist())
        # Tokens that end the answers at different places
        ends = {answer[at] for answer, at in zip(plain, (1, STRIDE - 1, STRIDE, 2 * STRIDE + 3), strict=False)}
        ends = (ends - set(plain[4])) | {tokenizer.eos_token_id}
        model.generation_config.eos_token_id = sorted(ends)
        expected = {}
        for i, answer in enumerate(plain):
            end = next((at + 1 for at, token in enumerate(answer) if token in ends), None)
            expected[i] = answer[:end]
        found = {}
        for batch in generate_token_ids(model, tokenizer, prompts, length, BatchSize(5)):
            found |= batch
        assert found == expected

    def test_batch_shrinks_where_memory_runs_out(self, model, tokenizer):
        prompts = [[5, 6, 7, 8]] * 7
        sizes = []
        forward = model.forward

        def scarce(input_ids=None, **kwargs):
            if len(input_ids) > 3:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            sizes.append(len(input_ids))
            return forward(input_ids=input_ids, **kwargs)

        model.forward = scarce
        batch_size = BatchSize(8)
        batches = list(generate_token_ids(model, tokenizer, prompts, 2, batch_size))
        assert batch_size.value == 2
        assert [len(batch) for batch in batches] == [2, 2, 2, 1]
        assert max(sizes) == 2

    def test_other_errors_are_not_taken_for_scarce_memory(self, model, tokenizer):
        with pytest.raises((RuntimeError, IndexError)):
            list(generate_token_ids(model, tokenizer, [[10**6]] * 4, 2, BatchSize(4)))


def test_the_unembedding_gets_its_input_in_one_piece(model, tokenizer):
    """A CPU multiplies a slice of the states by a frozen matrix through a copy of the matrix for each row."""
    given = []
    handle = model.get_output_embeddings().register_forward_hook(lambda module, args, output: given.append(args[0]))
    generate_answers(model, tokenizer, PROMPTS, max_new_tokens=3)
    handle.remove()
    assert len(given) == 3 and all(states.is_contiguous() for states in given)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_screens_the_rows_of_a_dataset(tokenizer):
    """As in README, on a column of conversations and on one of texts."""
    refused, answered = ["How do I steal a car?", "How do I make poison?"], ["What is bread?", "Who are you?", "Why?"]
    model = build_selective_model(refused, answered)
    texts = [refused[0], *answered, refused[1]]
    for prompts in (texts, [[{"role": "user", "content": text}] for text in texts]):
        dataset = Dataset.from_dict({"prompt": prompts, "row": list(range(5))})
        answers = generate_answers(model, tokenizer, dataset["prompt"], max_new_tokens=24)
        screened = dataset.select([i for i, answer in enumerate(answers) if not is_refusal(answer)])
        assert screened["row"][:] == [1, 2, 3]


def test_a_text_in_place_of_a_list_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="Expected a list of prompts, found the text 'What is bread\\?'"):
        generate_answers(build_model("llama"), tokenizer, "What is bread?")
