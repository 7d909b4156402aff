# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import pytest
from transformers import TrainingArguments
from trl import SFTConfig

from trl_sbr import SBRConfig


class TestSBRConfig:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"anchors_per_step": 0}, "`anchors_per_step` to be at least 1, found 0"),
            ({"anchor_loss_coef": -1.0}, "at least 0, found -1.0"),
            ({"anchor_loss_coef": float("nan")}, "finite `anchor_loss_coef`"),
            ({"anchor_loss_coef": float("inf")}, "finite `anchor_loss_coef`"),
            ({"anchor_loss_coef": 1e-300}, "`anchor_loss_coef=1e-300`, which does nothing in float32"),
            ({"anchor_loss_coef": 1e-20}, "which does nothing in float32. Expected 0, .* or at least 1e-14"),
            ({"anchor_target_error": 0.0}, "`anchor_target_error` between 0 and 1, found 0.0"),
            ({"anchor_target_error": float("nan")}, "`anchor_target_error` between 0 and 1, found nan"),
            (
                {"anchor_target_error": 0.1, "anchor_loss_coef": 0.0},
                "`anchor_target_error=0.1` and `anchor_loss_coef=0`",
            ),
            ({"anchor_loss_type": "l1"}, "`anchor_loss_type` to be one of .*, found 'l1'"),
            ({"anchor_reference": "adapter"}, "`anchor_reference` to be one of .*, found 'adapter'"),
            ({"chat_template_kwargs": "calm"}, "Expected `chat_template_kwargs` to be variables .*, found 'calm'"),
            ({"chat_template_kwargs": ["calm"]}, "Expected `chat_template_kwargs` to be variables"),
            ({"anchor_revision": "main"}, "`anchor_revision` without `anchor_name_or_path`"),
        ],
    )
    def test_bad_settings_raise(self, tmp_path, settings, message):
        with pytest.raises(ValueError, match=message):
            SBRConfig(tmp_path, use_cpu=True, bf16=False, **settings)

    @pytest.mark.parametrize("name", ["anchor_prompts", "anchor_openers", "anchor_system_prompts"])
    def test_one_text_is_a_list_of_it(self, tmp_path, name):
        args = SBRConfig(tmp_path, use_cpu=True, bf16=False, **{name: "Be kind."})
        assert getattr(args, name) == ["Be kind."]

    @pytest.mark.parametrize("cls", [SFTConfig, TrainingArguments])
    def test_other_arguments_are_converted(self, tmp_path, cls):
        args = cls(
            str(tmp_path), use_cpu=True, bf16=False, learning_rate=3e-3, hub_token="secret", lr_scheduler_type="cosine"
        )
        converted = SBRConfig.from_training_arguments(args)
        assert isinstance(converted, SBRConfig)
        assert converted.anchor_loss_coef == 50.0
        assert (converted.learning_rate, converted.hub_token) == (3e-3, "secret")
        assert converted.lr_scheduler_type == "cosine"

    def test_tokens_survive_conversion(self, tmp_path):
        args = SFTConfig(tmp_path, use_cpu=True, bf16=False, eos_token="<|im_end|>", pad_token="<pad>")
        converted = SBRConfig.from_training_arguments(args)
        assert (converted.eos_token, converted.pad_token) == ("<|im_end|>", "<pad>")
