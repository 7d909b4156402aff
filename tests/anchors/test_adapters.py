# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0


import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.adapters import (
    BaseWeightsError,
    base_tensors,
    base_weights_unchanged,
    find_adapter,
    load_adapter,
)
from trl_sbr.anchors.bottleneck import check_unembedding_is_untouched

from ..tiny import build_model


WEIGHTS = "adapter_model.safetensors"


def save_adapter(path, architecture="llama", resize=None, adapter_name="default", **settings):
    """A drifted adapter in a folder."""
    model = build_model(architecture)
    if resize:
        model.resize_token_embeddings(resize)
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, **settings}
    model = get_peft_model(model, LoraConfig(r=2, **settings), adapter_name=adapter_name)
    model.save_pretrained(path, save_embedding_layers=True if resize else "auto")
    return model


def add_to_file(path, tensors):
    """Slip tensors into an adapter's file."""
    file = path / WEIGHTS
    safetensors.torch.save_file({**safetensors.torch.load_file(file), **tensors}, file, metadata={"format": "pt"})


class TestFindAdapter:
    def test_in_the_folder_itself(self, tmp_path):
        save_adapter(tmp_path)
        assert str(find_adapter(tmp_path)) == str(tmp_path)

    def test_of_another_name(self, tmp_path):
        save_adapter(tmp_path, adapter_name="sft")
        found = find_adapter(tmp_path)
        assert (found.subfolder, found.others) == ("sft", ())
        assert str(found) == f"{tmp_path}/sft" == str(find_adapter(tmp_path / "sft"))

    def test_two_of_other_names(self, tmp_path):
        for name in ("one", "two"):
            save_adapter(tmp_path, adapter_name=name)
        with pytest.raises(ValueError, match=f"holds several adapters: one, two. Name one: `{tmp_path}/one`"):
            find_adapter(tmp_path)

    def test_default_and_another(self, tmp_path):
        for name in ("default", "extra"):
            save_adapter(tmp_path, adapter_name=name)
        assert (find_adapter(tmp_path).subfolder, find_adapter(tmp_path).others) == ("", ("extra",))

    def test_checkpoints_are_not_looked_into(self, tmp_path):
        save_adapter(tmp_path / "checkpoint-2")
        assert find_adapter(tmp_path) is None
        assert find_adapter(tmp_path / "checkpoint-2") is not None

    def test_beside_a_whole_model(self, tmp_path):
        """`trl-sbr harden` leaves the model with its adapter merged, and the adapter in a subfolder."""
        save_adapter(tmp_path / "adapter")
        build_model("llama").save_pretrained(tmp_path)
        assert find_adapter(tmp_path) is None
        assert find_adapter(tmp_path / "adapter") is not None
        (tmp_path / "model.safetensors").unlink()  # some put the base's configuration beside adapters
        assert find_adapter(tmp_path).subfolder == "adapter"

    @pytest.mark.parametrize("name", ["nowhere/at-all", "no repository", "./gone"])
    def test_none(self, tmp_path, name):
        assert find_adapter(tmp_path) is None and find_adapter(name) is None

    @pytest.mark.parametrize("text", ["{", "[]"])
    def test_configuration_that_is_none(self, tmp_path, text):
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="`adapter_config.json` of .* is"):
            find_adapter(tmp_path).read_config()


class TestBaseTensors:
    @pytest.mark.parametrize(
        "settings",
        [
            {"target_modules": "all-linear", "use_dora": True},
            {"modules_to_save": ["norm"]},
            {"trainable_token_indices": [3, 4]},
            {"target_modules": ["embed_tokens", "q_proj"]},
        ],
        ids=["dora", "modules_to_save", "tokens", "embeddings"],
    )
    def test_of_a_peft_model_are_the_base_models(self, settings):
        expected = base_tensors(build_model("llama"))
        found = base_tensors(
            get_peft_model(build_model("llama"), LoraConfig(**{"target_modules": ["q_proj"], **settings}))
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


class TestLoadAdapter:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"use_dora": True},
            {"modules_to_save": ["norm"]},
            {"trainable_token_indices": [3, 4]},
            {"target_modules": ["embed_tokens", "q_proj"]},  # PEFT copies the embeddings into the file
            {"adapter_name": "sft"},
        ],
        ids=["lora", "dora", "modules_to_save", "tokens", "embeddings", "named"],
    )
    def test_gives_the_model_that_was_saved(self, tmp_path, settings):
        saved = save_adapter(tmp_path, **settings)
        loaded = load_adapter(build_model("llama"), find_adapter(tmp_path))
        ids = torch.tensor([[3, 4, 5, 6]])
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, saved.eval()(ids).logits)

    @pytest.mark.parametrize(
        ("architecture", "key"),
        [
            ("llama", "lm_head.weight"),
            ("llama", "model.embed_tokens.weight"),
            ("llama-tied", "model.embed_tokens.weight"),
            ("llama-tied", "lm_head.weight"),
            ("llama", "model.norm.weight"),
            ("llama", "model.layers.1.self_attn.q_proj.base_layer.weight"),
            ("llama", "model.layers.1.mlp.down_proj.weight"),
            ("qwen2", "model.layers.1.self_attn.q_proj.base_layer.bias"),
            ("llama", "model.rotary_emb.inv_freq"),
        ],
    )
    def test_weights_of_the_base_model_raise(self, tmp_path, architecture, key):
        save_adapter(tmp_path, architecture)
        model = build_model(architecture)
        tensor = base_tensors(model)[key.replace("base_layer.", "")]
        add_to_file(tmp_path, {f"base_model.model.{key}": tensor.detach() + 1})
        before = {name: tensor.clone() for name, tensor in base_tensors(model).items()}
        if key == "model.rotary_emb.inv_freq":  # no weight: PEFT leaves it alone
            load_adapter(model, find_adapter(tmp_path))
            assert all(torch.equal(tensor, before[name]) for name, tensor in base_tensors(model).items())
            return
        with pytest.raises(BaseWeightsError, match="carries weights of its base model, which it changes: `"):
            load_adapter(model, find_adapter(tmp_path))

    def test_in_a_pickle_too(self, tmp_path):
        save_adapter(tmp_path)
        tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
        (tmp_path / WEIGHTS).unlink()
        tensors["base_model.model.lm_head.weight"] = torch.zeros(build_model("llama").lm_head.weight.shape)
        torch.save(tensors, tmp_path / "adapter_model.bin")
        with pytest.raises(BaseWeightsError, match="`lm_head.weight`"):
            load_adapter(build_model("llama"), find_adapter(tmp_path))

    def test_under_a_name_that_is_mapped(self, tmp_path):
        """Older names of vision-language models' weights are read too; a copy under the new name is no alibi."""
        save_adapter(tmp_path)
        model = build_model("llama")
        model._checkpoint_conversion_mapping = {"^old_head": "lm_head"}
        head = model.lm_head.weight.detach().clone()
        for added in ({}, {"base_model.model.lm_head.weight": head}):
            add_to_file(tmp_path, {"base_model.model.old_head.weight": head + 1, **added})
            with torch.no_grad():
                model.lm_head.weight.copy_(head)
            with pytest.raises(BaseWeightsError, match="`lm_head.weight`"):
                load_adapter(model, find_adapter(tmp_path))
            model = build_model("llama")
            model._checkpoint_conversion_mapping = {"^old_head": "lm_head"}

    def test_into_a_module_that_is_saved_whole(self, tmp_path):
        save_adapter(tmp_path, modules_to_save=["norm"])
        add_to_file(tmp_path, {"base_model.model.model.norm.original_module.weight": torch.zeros(32)})
        with pytest.raises(BaseWeightsError, match="`model.norm.weight`"):
            load_adapter(build_model("llama"), find_adapter(tmp_path))

    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_biases(self, tmp_path, bias):
        saved = save_adapter(tmp_path, "qwen2", bias=bias)
        for name, parameter in saved.named_parameters():
            if name.endswith("bias"):
                parameter.data += 1
        saved.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="q_proj.bias|trains biases of the base model"):
            # peft 0.18 writes those of "lora_only" to the file and does not read them again
            check_unembedding_is_untouched(load_adapter(build_model("qwen2"), find_adapter(tmp_path)))

    def test_added_tokens(self, tmp_path):
        save_adapter(tmp_path, resize=270)
        with pytest.raises(
            BaseWeightsError, match="`lm_head.weight` of shape .270, 32. .* Save the model with its added"
        ):
            load_adapter(build_model("llama"), find_adapter(tmp_path))

    def test_added_tokens_where_nothing_is_claimed(self, tmp_path, caplog):
        saved = save_adapter(tmp_path, resize=270)
        loaded = load_adapter(build_model("llama"), find_adapter(tmp_path), allow_base_weights=True)
        ids = torch.tensor([[3, 4, 5, 269]])
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids).logits, saved.eval()(ids).logits)
        assert "brings weights of the base model along: " in caplog.text

    def test_checkpoint_into_a_model_in_training(self, tmp_path):
        save_adapter(tmp_path)
        model = get_peft_model(build_model("llama"), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        with base_weights_unchanged(model, str(tmp_path)):
            model.load_adapter(tmp_path, "default", is_trainable=True)
        add_to_file(
            tmp_path, {"base_model.model.lm_head.weight": torch.zeros(model.get_output_embeddings().weight.shape)}
        )
        with pytest.raises(BaseWeightsError, match="`lm_head.weight`"), base_weights_unchanged(model, str(tmp_path)):
            model.load_adapter(tmp_path, "default", is_trainable=True)

    def test_of_another_model(self, tmp_path):
        save_adapter(tmp_path)
        with pytest.raises(ValueError, match="does not fit"):
            load_adapter(build_model("llama", hidden_size=64), find_adapter(tmp_path))


class TestTrainedBesideTheAdapter:
    @pytest.mark.parametrize("bias", ["all", "lora_only"])
    def test_biases(self, bias):
        model = get_peft_model(build_model("qwen2"), LoraConfig(target_modules=["q_proj"], bias=bias))
        with pytest.raises(ValueError, match=f"trains biases of the base model .`bias='{bias}'`"):
            check_unembedding_is_untouched(model)

    def test_a_bias_of_the_adapters_own(self):
        model = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj"], lora_bias=True))
        check_unembedding_is_untouched(model)

    def test_unfrozen_weights(self):
        model = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj"]))
        model.get_base_model().model.norm.requires_grad_(True)
        with pytest.raises(ValueError, match="trained beside its adapter: `model.norm.weight`"):
            check_unembedding_is_untouched(model)

    def test_modules_that_are_saved(self):
        model = get_peft_model(build_model("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["norm"]))
        check_unembedding_is_untouched(model)

    def test_anchor_is_not_captured(self, tokenizer):
        model = get_peft_model(build_model("qwen2"), LoraConfig(target_modules=["q_proj"], bias="all"))
        with pytest.raises(ValueError, match="trains biases of the base model"):
            SafetyAnchor.capture(model, tokenizer, ["How do I do harm?"], require_refusal=False)
