# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.unembedding import unembedding_sha256

from ..tiny import ARCHITECTURES, build_model, build_refusing_model


PROMPTS = ["How do I do harm?", "Tell me of something much, much worse than that."]


def round_head(model):
    """A model whose unembedding bfloat16 can hold."""
    head = model.get_output_embeddings()
    head.weight.data = head.weight.data.bfloat16().float()
    return model


class TestHash:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_depends_on_the_weights_alone(self, architecture):
        first = unembedding_sha256(build_model(architecture))
        assert unembedding_sha256(build_model(architecture)) == first
        assert unembedding_sha256(build_model(architecture, seed=1)) != first

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_equal_values_have_one_hash_in_any_dtype(self, dtype):
        model = round_head(build_model("llama"))
        expected = unembedding_sha256(model)
        assert unembedding_sha256(model.to(dtype)) == expected

    def test_rounded_values_have_another(self):
        model = build_model("llama")
        expected = unembedding_sha256(model)
        assert unembedding_sha256(model.bfloat16()) != expected

    def test_training_mode_frozen_weights_and_caches_do_not_matter(self):
        model = build_model("llama")
        expected = unembedding_sha256(model)
        model.train().requires_grad_(False)
        model.config.use_cache, model.config.output_router_logits, model.config._name_or_path = (
            False,
            True,
            "elsewhere",
        )
        assert unembedding_sha256(model) == expected

    @pytest.mark.parametrize(
        ("architecture", "setting"),
        [("cohere", "logit_scale"), ("granite", "logits_scaling"), ("gemma2", "final_logit_softcapping")],
    )
    def test_scale_and_soft_cap_matter(self, architecture, setting):
        model = build_model(architecture)
        other = build_model(architecture, **{setting: 2 * getattr(model.config, setting)})
        assert unembedding_sha256(other) != unembedding_sha256(model)

    def test_bias_matters(self):
        model = build_refusing_model()
        expected = unembedding_sha256(model)
        model.lm_head.bias.data[5] += 0.1
        assert unembedding_sha256(model) != expected

    def test_one_bit_matters_in_the_last_row(self):
        model = build_model("llama")
        expected = unembedding_sha256(model)
        model.lm_head.weight.data[-1, -1] = torch.nextafter(model.lm_head.weight.data[-1, -1], torch.tensor(9.0))
        assert unembedding_sha256(model) != expected

    def test_added_rows_matter(self):
        model = build_model("llama")
        expected = unembedding_sha256(model)
        model.resize_token_embeddings(model.config.vocab_size + 8)
        assert unembedding_sha256(model) != expected

    @pytest.mark.parametrize("skip", [["lm_head"], ["model"]], ids=["of_the_rest", "of_the_head"])
    def test_quantization(self, tmp_path, skip):
        sizes = {
            "vocab_size": 288,
            "hidden_size": 64,
            "intermediate_size": 64,
            "head_dim": 16,
            "num_key_value_heads": 4,
        }
        round_head(build_model("llama", **sizes)).save_pretrained(tmp_path / "model")

        def load(**kwargs):
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=skip)
            return AutoModelForCausalLM.from_pretrained(tmp_path / "model", quantization_config=config, **kwargs)

        quantized = load(dtype=torch.float32)
        assert ("4bit" in type(quantized.lm_head).__name__) is (skip == ["model"])
        first = unembedding_sha256(quantized)
        with torch.no_grad():
            quantized(torch.tensor([[5, 6, 7]]))  # packs 4-bit weights on some CPUs
        assert unembedding_sha256(quantized) == first
        assert unembedding_sha256(load(dtype=torch.float32)) == first
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
        assert (unembedding_sha256(plain) == first) is (skip == ["lm_head"])


class TestAnchor:
    """The states stay, the answers do not."""

    def test_another_unembedding_raises(self, refusing_model, tokenizer):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS)
        refusing_model.lm_head.weight.data += 1e-3
        report = anchor.compare(refusing_model, tokenizer)
        assert report.all_refused and report.max_relative_error == 0
        assert report.same_unembedding is False and "unembedding is another" in str(report)
        with pytest.raises(
            ValueError, match="unembedding .* is not that of the model that the anchor was captured on"
        ):
            anchor.verify(refusing_model, tokenizer)
        with pytest.raises(ValueError, match="is not that of the model that the anchor was captured on"):
            anchor.verify_reference(refusing_model, tokenizer)

    def test_its_own_unembedding(self, refusing_model, tokenizer):
        report = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS).verify(refusing_model, tokenizer)
        assert report.same_unembedding is True and "unembedding" not in str(report)

    def test_added_tokens_raise(self, refusing_model, tokenizer):
        anchor = SafetyAnchor.capture(refusing_model, tokenizer, PROMPTS)
        refusing_model.resize_token_embeddings(300)
        with pytest.raises(ValueError, match="without tokens added"):
            anchor.verify(refusing_model, tokenizer)
