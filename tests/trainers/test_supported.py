# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Models, adapters and ways to run that work in TRL work here, or are refused in one clear line."""

import contextlib
import dataclasses
import re

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from trl import SFTConfig

from trl_sbr import SafetyAnchor, SBRSFTTrainer

from ..releases import takes_peft_by_itself
from ..tiny import _SMALL, build_model, build_refusing_model, build_tokenizer
from .test_sbr_sft_trainer import LORA, SETTINGS, history, make_trainer


def of_class(cls, model_type="llama", **settings):
    torch.manual_seed(0)
    return cls.from_config(AutoConfig.for_model(model_type, **{**_SMALL, **settings}))


def t5():
    settings = {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8, "decoder_start_token_id": 0}
    return of_class(AutoModelForSeq2SeqLM, "t5", **settings)


def bart():
    settings = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 4}
    return of_class(AutoModelForSeq2SeqLM, "bart", **settings, encoder_attention_heads=4)


KINDS = {
    "encoder-decoder": (t5, "encoder-decoder model `T5ForConditionalGeneration`"),
    "another encoder-decoder": (bart, "encoder-decoder model `BartForConditionalGeneration`"),
    "sequence classification": (
        lambda: of_class(AutoModelForSequenceClassification),
        "`LlamaForSequenceClassification`, which generates no text",
    ),
    "token classification": (
        lambda: of_class(AutoModelForTokenClassification),
        "`LlamaForTokenClassification`, which generates no text",
    ),
    "masked": (lambda: of_class(AutoModelForMaskedLM, "bert"), "`BertForMaskedLM`, which generates no text"),
}


def native(**settings):
    model = build_model("llama")
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, **settings))
    return model


def mixed(peft_type=LoraConfig):
    return get_peft_model(build_model("llama"), peft_type(target_modules=["q_proj"]), mixed=True)


class TestKinds:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("given", ["model", "folder", "wrapped"])
    def test_that_cannot_be_held_raise(self, tmp_path, kind, given):
        build, message = KINDS[kind]
        model = build()
        if given == "folder":
            model.save_pretrained(tmp_path / "model")
            build_tokenizer().save_pretrained(tmp_path / "model")
            model = str(tmp_path / "model")
        elif given == "wrapped":
            modules = ["q", "v"] if kind == "encoder-decoder" else ["q_proj", "query"]
            model = get_peft_model(model, LoraConfig(r=4, target_modules=modules))
        with pytest.raises(ValueError, match=f"Found (the )?{message}"):
            make_trainer(tmp_path / "out", model)

    @pytest.mark.parametrize("kind", KINDS)
    def test_that_cannot_be_held_cannot_be_captured(self, kind):
        build, message = KINDS[kind]
        with pytest.raises(ValueError, match=message):
            SafetyAnchor.capture(build(), build_tokenizer(), require_refusal=False)

    def test_of_no_anchor_is_left_to_trl(self, tmp_path):
        with contextlib.suppress(AttributeError):  # which some releases of TRL raise
            make_trainer(tmp_path, of_class(AutoModelForSequenceClassification), anchor_loss_coef=0.0)


START = (
    "The adapter moves the anchors' states before its first step: found a relative error of .*, expected at most 2e-03"
)


class TestStart:
    """With the adapter off the model is the aligned one; as it is trained, it starts there or somewhere else."""

    def train(self, folder, config, **settings):
        trainer = make_trainer(folder, build_refusing_model(), peft_config=config, **settings)
        trainer.train()
        return history(trainer, "anchor_loss")[0]

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(**LORA, init_lora_weights=False),
            peft.FourierFTConfig(target_modules=["q_proj", "v_proj", "fc1"], n_frequency=8),
        ],
        ids=["lora", "fourierft"],
    )
    def test_elsewhere_warns_once(self, tmp_path, caplog, config):
        assert self.train(tmp_path, config) > 0.1
        assert len(re.findall(START, caplog.text)) == 1
        assert "`init_lora_weights=True`, FourierFT's `init_weights=True`" in caplog.text

    @pytest.mark.parametrize(
        ("config", "reference"),
        [
            (LoraConfig(**LORA), "base"),
            (peft.FourierFTConfig(target_modules=["q_proj"], n_frequency=8, init_weights=True), "base"),
            (LoraConfig(**LORA, init_lora_weights=False), "current"),
        ],
        ids=["lora", "fourierft", "current"],
    )
    def test_at_the_aligned_model_does_not(self, tmp_path, caplog, config, reference):
        assert self.train(tmp_path, config, anchor_reference=reference) < 1e-10
        assert not re.search(START, caplog.text)

    def test_of_a_resumed_run_is_not_looked_at(self, tmp_path, caplog):
        settings = {"peft_config": LoraConfig(**LORA), "save_strategy": "steps", "save_steps": 3}
        make_trainer(tmp_path, build_refusing_model(), max_steps=3, **settings).train()
        trainer = make_trainer(tmp_path, build_refusing_model(), **settings)
        trainer.train(resume_from_checkpoint=True)
        assert history(trainer, "anchor_loss")[-1] > 1e-3  # and off by more than the tolerance
        assert not re.search(START, caplog.text)


class TestAdapters:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (LoraConfig(**LORA, alora_invocation_tokens=[5, 6]), "an activated LoRA .`alora_invocation_tokens`."),
            (peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=1, task_type="CAUSAL_LM"), "an adaption prompt"),
            (peft.XLoraConfig(hidden_size=32, adapters={"a": "somewhere"}, task_type="CAUSAL_LM"), "X-LoRA"),
            (LoraConfig(**LORA, layer_replication=[(0, 2), (1, 2)]), "`layer_replication=..0, 2., .1, 2..`, whose layers stay"),
        ],
        ids=["alora", "adaption-prompt", "xlora", "layer-replication"],
    )  # fmt: skip
    def test_that_cannot_be_held_raise(self, tmp_path, config, message):
        with pytest.raises(ValueError, match=f"Found {message}"):
            make_trainer(tmp_path, build_model("llama"), peft_config=config, anchor_require_refusal=False)

    @pytest.mark.skipif(not hasattr(peft, "KasaConfig"), reason="this release of PEFT has no KaSA")
    @pytest.mark.parametrize("reference", ["base", "current"])
    def test_that_truncates_the_base_weights_raises(self, tmp_path, reference):
        model = build_refusing_model()
        before = {name: p.clone() for name, p in model.state_dict().items()}
        config = LoraConfig(**LORA, kasa_config=peft.KasaConfig())
        with pytest.raises(ValueError, match="Found KaSA .* truncates the base weights for good.*without it"):
            make_trainer(tmp_path, model, peft_config=config, anchor_reference=reference)
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
        with pytest.raises(ValueError, match="Found KaSA"):
            SafetyAnchor.capture(get_peft_model(model, config), build_tokenizer(), reference=reference)

    @pytest.mark.parametrize("second", [False, True])
    def test_already_on_the_model_raise(self, tmp_path, second):
        alora = LoraConfig(**LORA, alora_invocation_tokens=[5])
        model = get_peft_model(build_model("llama"), LoraConfig(**LORA) if second else alora)
        if second:
            model.add_adapter("second", alora)
        with pytest.raises(ValueError, match="an activated LoRA"):
            make_trainer(tmp_path, model, anchor_require_refusal=False)
        with pytest.raises(ValueError, match="an activated LoRA"):
            SafetyAnchor.capture(model, build_tokenizer(), require_refusal=False)

    def test_layers_replicated_in_the_aligned_model_too_are_allowed(self, tmp_path):
        config = LoraConfig(**LORA, layer_replication=[(0, 2), (1, 2)])
        trainer = make_trainer(
            tmp_path,
            build_model("llama"),
            peft_config=config,
            anchor_require_refusal=False,
            anchor_reference="current",
        )
        trainer.train()
        assert history(trainer, "anchor_loss")[0] == 0

    @takes_peft_by_itself
    @pytest.mark.parametrize("reference", ["base", "current"])
    @pytest.mark.parametrize("build", [native, lambda: native(use_dora=True)], ids=["lora", "dora"])
    def test_without_peft_model_raise(self, tmp_path, reference, build):
        with pytest.raises(ValueError, match="put on with `model.add_adapter` or `load_adapter`"):
            make_trainer(tmp_path, build(), anchor_reference=reference, anchor_require_refusal=False)
        with pytest.raises(ValueError, match="put on with `model.add_adapter` or `load_adapter`"):
            SafetyAnchor.capture(build(), build_tokenizer(), require_refusal=False, reference=reference)

    @pytest.mark.parametrize("peft_type", [LoraConfig, peft.LoHaConfig])
    def test_mixed_raise(self, tmp_path, peft_type):
        with pytest.raises(ValueError, match="Found a `PeftMixedModel`"):
            make_trainer(tmp_path, mixed(peft_type))
        with pytest.raises(ValueError, match="Found a `PeftMixedModel`"):
            SafetyAnchor.capture(mixed(peft_type), build_tokenizer(), require_refusal=False)


MIXTURES = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def mixture(name, **settings):
    config = AutoConfig.for_model(name, **{**_SMALL, **MIXTURES[name]}, output_router_logits=True, **settings)
    config.initializer_range = 0.2
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


class TestMixtureOfExperts:
    """With the router's loss on, which TRL adds to the batch's."""

    @pytest.mark.parametrize(
        "peft_config", [None, LoraConfig(r=4, target_modules=["q_proj", "v_proj"])], ids=["full", "lora"]
    )
    @pytest.mark.parametrize("name", MIXTURES)
    def test_train(self, tmp_path, name, peft_config):
        trainer = make_trainer(
            tmp_path,
            mixture(name),
            peft_config=peft_config,
            anchor_require_refusal=False,
            gradient_checkpointing=False,
        )
        trainer.train()
        trainer.save_model()
        assert len(history(trainer, "aux_loss")) == 4
        losses = history(trainer, "anchor_loss")
        assert losses[0] == 0
        assert all(loss > 0 for loss in losses[1:])

    @pytest.mark.parametrize("name", MIXTURES)
    def test_states_and_gradient_are_those_without_the_routers_loss(self, name):
        from trl_sbr.anchors.bottleneck import final_hidden_states, freeze_unembedding, get_unembedding

        gradients, states = [], []
        for router_loss in (True, False):
            model = mixture(name)
            model.config.output_router_logits = router_loss
            freeze_unembedding(model)
            anchor = SafetyAnchor.capture(model, build_tokenizer(), require_refusal=False)
            batch = anchor.lay_out(model, model)
            final_hidden_states(model, get_unembedding(model), batch).pow(2).mean().backward()
            states.append(anchor.hidden_states)
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
            assert model.config.output_router_logits is router_loss
        assert torch.equal(*states)
        assert gradients[0].keys() == gradients[1].keys()
        assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.slow
class TestCompiled:
    @pytest.mark.parametrize(
        ("peft_config", "settings"),
        [(None, {"label_smoothing_factor": 0.1}), (LoraConfig(**LORA), {"gradient_accumulation_steps": 2})],
        ids=["full", "lora"],
    )
    def test_trains_as_the_model_does_as_written(self, tmp_path, peft_config, settings):
        logs = []
        for compiled in (True, False):
            torch.compiler.reset()
            trainer = make_trainer(
                tmp_path,
                build_model("llama"),
                peft_config=peft_config,
                anchor_require_refusal=False,
                gradient_checkpointing=False,
                torch_compile=compiled,
                torch_compile_backend="aot_eager" if compiled else None,
                **settings,
            )
            trainer.train()
            trainer.save_model()
            assert hasattr(trainer.model_wrapped, "_orig_mod") is compiled
            logs.append({key: history(trainer, key) for key in ("loss", "anchor_loss")})
        assert logs[0]["anchor_loss"][0] == 0
        assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-3)
        assert logs[0]["anchor_loss"][1:] == pytest.approx(logs[1]["anchor_loss"][1:], rel=1e-2)


@dataclasses.dataclass
class TeamConfig(SFTConfig):
    """As a team derives its own."""

    ticket: str = "none"
    learning_rate: float = 3e-3


@dataclasses.dataclass
class NestedConfig(TeamConfig):
    tags: list = dataclasses.field(default_factory=list)


class TestDerivedConfiguration:
    @pytest.mark.parametrize(
        ("cls", "own"), [(TeamConfig, {"ticket": "A-1"}), (NestedConfig, {"ticket": "A-2", "tags": ["x"]})]
    )
    def test_is_converted_with_its_fields(self, tmp_path, dataset, cls, own):
        settings = {name: value for name, value in SETTINGS.items() if name != "learning_rate"}
        trainer = SBRSFTTrainer(
            build_refusing_model(),
            cls(tmp_path, **settings, **own),
            train_dataset=dataset,
            processing_class=build_tokenizer(),
        )
        assert trainer.args.learning_rate == 3e-3
        assert {name: getattr(trainer.args, name) for name in own} == own
        trainer.train()
        trainer.save_model()
        assert len(history(trainer, "anchor_loss")) == 4
