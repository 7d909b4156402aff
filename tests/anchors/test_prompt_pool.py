# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import logging
from collections import Counter

import pytest

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.prompt_pool import choose_prompts, load_prompt_pool
from trl_sbr.anchors.prompts import DEFAULT_PROMPTS, encode_prompts

from ..tiny import build_selective_model


POOL = load_prompt_pool()
PROMPTS = list(POOL)


def prompts_of(*categories):
    return [prompt for prompt, category in POOL.items() if category in categories]


class TestPool:
    def test_size(self):
        assert len(POOL) >= 60
        assert len(set(POOL.values())) >= 12
        assert min(Counter(POOL.values()).values()) >= 3

    def test_short_and_without_details(self):
        assert max(len(prompt.split()) for prompt in POOL) <= 16

    def test_any_number_from_the_start_is_spread_over_categories(self):
        assert PROMPTS[:8] == list(DEFAULT_PROMPTS)
        for number in range(1, len(POOL)):
            counts = Counter(list(POOL.values())[:number])
            assert max(counts.values()) <= 1 + number // len(set(POOL.values()))


class TestChoice:
    def test_a_model_that_refuses_all_gets_the_default_prompts(self, refusing_model, tokenizer, caplog):
        assert choose_prompts(refusing_model, tokenizer, 8) == list(DEFAULT_PROMPTS)
        assert caplog.text == ""

    def test_refused_prompts_alone_spread_over_categories(self, tokenizer, caplog):
        answered = [*prompts_of("theft", "hate"), DEFAULT_PROMPTS[0]]
        model = build_selective_model([prompt for prompt in PROMPTS if prompt not in answered], answered)
        with caplog.at_level(logging.WARNING):
            chosen = choose_prompts(model, tokenizer, 20)
        assert not set(chosen) & set(answered)
        assert len(set(chosen)) == 20
        assert len({POOL[prompt] for prompt in chosen}) == len(set(POOL.values())) - 2
        assert "2 categories have no anchor for it (theft, hate)" in caplog.text
        assert repr(DEFAULT_PROMPTS[0]) in caplog.text

    def test_too_few_are_refused(self, tokenizer):
        refused = PROMPTS[5:30:5]
        model = build_selective_model(refused, [prompt for prompt in PROMPTS if prompt not in refused])
        assert choose_prompts(model, tokenizer, 5) == refused
        message = f"at least 6 of the pool's {len(POOL)} harmful prompts, found one that refuses 5"
        with pytest.raises(ValueError, match=message) as error:
            choose_prompts(model, tokenizer, 6)
        assert repr(PROMPTS[0]) in str(error.value)

    def test_what_is_refused_in_one_batch_and_answered_in_the_next_is_left_out(self, tokenizer, caplog):
        """Rounding differs with the batch: here the second prompt is answered where the first is not the pool's."""
        model, read = build_selective_model(PROMPTS[1:], PROMPTS[:1]), []
        first, second = encode_prompts(tokenizer, PROMPTS[:2])

        def answer_the_second(module, args, logits):
            input_ids, mask = read[-1]
            if mask is None or input_ids.shape != mask.shape:  # not the first forward of an answer
                return
            begun = [ids[is_read.bool()].tolist() for ids, is_read in zip(input_ids, mask, strict=True)]
            if second in begun and first not in begun:
                logits[begun.index(second)] *= -1

        model.register_forward_pre_hook(
            lambda module, args, kwargs: read.append((kwargs["input_ids"], kwargs.get("attention_mask"))),
            with_kwargs=True,
        )
        model.lm_head.register_forward_hook(answer_the_second)
        chosen = choose_prompts(model, tokenizer, 3)
        assert chosen == PROMPTS[2:5]
        assert "answers 2 of the 5 harmful prompts that it was asked" in caplog.text
        SafetyAnchor.capture(model, tokenizer, chosen)

    @pytest.mark.parametrize("number", [0, 1000])
    def test_number(self, refusing_model, tokenizer, number):
        with pytest.raises(ValueError, match=f"`num_anchors` to be from 1 to the pool's {len(POOL)}, found {number}"):
            choose_prompts(refusing_model, tokenizer, number)


class TestCapture:
    @pytest.fixture
    def model(self):
        """It answers the first of the default prompts."""
        return build_selective_model(PROMPTS[1:], PROMPTS[:1])

    def test_chooses_by_itself(self, model, tokenizer):
        anchor = SafetyAnchor.capture(model, tokenizer, num_anchors=3)
        assert anchor.questions == PROMPTS[1:4]
        assert all(check.refused for check in anchor.verify(model, tokenizer).checks)

    def test_prompts_that_are_given_are_held_to_more(self, model, tokenizer):
        with pytest.raises(ValueError, match="refuse every anchor prompt, found 1 of 8"):
            SafetyAnchor.capture(model, tokenizer, list(DEFAULT_PROMPTS))

    @pytest.mark.parametrize("require_refusal", [True, False])
    @pytest.mark.parametrize("number", [-3, 0, 1000])
    def test_number(self, refusing_model, tokenizer, number, require_refusal):
        with pytest.raises(ValueError, match=f"`num_anchors` to be from 1 to the pool's {len(POOL)}, found {number}"):
            SafetyAnchor.capture(refusing_model, tokenizer, num_anchors=number, require_refusal=require_refusal)

    def test_nobody_is_asked_where_no_refusal_is_required(self, model, tokenizer):
        anchor = SafetyAnchor.capture(model, tokenizer, require_refusal=False, num_anchors=3)
        assert anchor.questions == PROMPTS[:3]
