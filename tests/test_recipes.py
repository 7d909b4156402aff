# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import dataclasses
import importlib

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from trl_sbr import HardeningConfig, SBRConfig
from trl_sbr.recipes import find_recipe, recipe_names, resolve_config
from trl_sbr.scripts.common import parse_strictly
from trl_sbr.scripts.harden import HardenArguments
from trl_sbr.trainers.anchor_arguments import AnchorArguments
from trl_sbr.trainers.loading import get_model_init_kwargs


NAMES = recipe_names()
ACCELERATE_CONFIGS = [name for name in NAMES if name.startswith("accelerate_configs/")]
GRIDS = [name for name in NAMES if name.startswith("stress/")]  # tested in tests/stress/
RECIPES = [name for name in NAMES if name not in ACCELERATE_CONFIGS + GRIDS]
OTHERS = {"dpo": "SBRDPOConfig", "grpo": "SBRGRPOConfig"}
SFT = [name for name in RECIPES if "/sbr_" in name and not any(f"_{method}_" in name for method in OTHERS)]
HARDEN = [name for name in RECIPES if "/harden_" in name]
# What the paper sets; SmolLM2 is not one of its models
PAPER = [name for name in SFT if not name.startswith("smollm2")]
MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def parse(config, *flags):
    return parse_strictly(
        (ScriptArguments, SBRConfig, ModelConfig, DatasetMixtureConfig), "sft", "", ["--config", str(config), *flags]
    )


def parse_recipe(name):
    # The recipes for GPUs train in bfloat16, which is refused on a CPU that is not made for it unless it is asked for
    return parse(name, "--use_cpu", "true")


def test_every_recipe_is_there():
    assert RECIPES == [
        "gemma-1.1-7b-it/harden_lora",
        "gemma-1.1-7b-it/sbr_lora",
        "llama-3.1-8b-instruct/harden_lora",
        "llama-3.1-8b-instruct/sbr_full",
        "llama-3.1-8b-instruct/sbr_lora",
        "llama-3.1-8b-instruct/sbr_qlora",
        "qwen2.5-7b-instruct/harden_lora",
        "qwen2.5-7b-instruct/sbr_lora",
        "smollm2-135m-instruct/harden_lora",
        "smollm2-135m-instruct/sbr_dpo_lora",
        "smollm2-135m-instruct/sbr_grpo_lora",
        "smollm2-135m-instruct/sbr_lora",
    ]
    kinds = ["cpu_2_processes", "ddp", "fsdp2", "single_gpu", "zero2", "zero3"]
    assert ACCELERATE_CONFIGS == [f"accelerate_configs/{kind}" for kind in kinds]


class TestRecipes:
    @pytest.mark.parametrize("name", SFT)
    def test_parses_and_sets_the_papers_anchor_loss(self, name):
        _, training_args, _, _ = parse_recipe(name)
        assert (training_args.anchor_loss_coef, training_args.anchor_loss_type) == (50.0, "mse")
        assert training_args.anchor_prompts is None
        assert training_args.anchor_name_or_path is None
        assert training_args.anchor_require_refusal
        assert training_args.output_dir == f"data/{name.replace('/sbr_', '-sbr-')}"

    @pytest.mark.parametrize("name", RECIPES)
    def test_names_itself_in_its_usage(self, name):
        assert f"--config {name} " in find_recipe(name).read_text()

    @pytest.mark.parametrize("name", PAPER)
    def test_papers_training(self, name):
        _, training_args, model_args, _ = parse_recipe(name)
        assert training_args.learning_rate == 1e-5
        assert training_args.per_device_train_batch_size * training_args.gradient_accumulation_steps == 32
        assert training_args.num_train_epochs == 20
        assert training_args.optim == "adamw_torch"
        assert training_args.bf16 and not training_args.fp16

    @pytest.mark.parametrize("name", [name for name in SFT if "full" not in name])
    def test_papers_adapter(self, name):
        _, _, model_args, _ = parse_recipe(name)
        config = get_peft_config(model_args)
        assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 16, 0.0)
        assert set(config.target_modules) == MODULES
        assert config.modules_to_save is None

    def test_full_fine_tuning_has_no_adapter(self):
        _, _, model_args, _ = parse_recipe("llama-3.1-8b-instruct/sbr_full")
        assert get_peft_config(model_args) is None
        assert model_args.dtype == "float32"

    @pytest.mark.parametrize("name", [name for name in SFT if "qlora" not in name])
    def test_not_quantized(self, name):
        _, training_args, model_args, _ = parse_recipe(name)
        assert get_quantization_config(model_args) is None
        assert get_model_init_kwargs(training_args, model_args)["dtype"] in ("float32", "bfloat16")

    def test_qlora(self):
        _, _, model_args, _ = parse_recipe("llama-3.1-8b-instruct/sbr_qlora")
        config = get_quantization_config(model_args)
        assert config.load_in_4bit
        assert config.bnb_4bit_quant_type == "nf4"
        assert config.bnb_4bit_use_double_quant
        assert config.bnb_4bit_compute_dtype == torch.bfloat16

    def test_smollm2_runs_on_a_cpu_as_it_is(self):
        _, training_args, model_args, _ = parse("smollm2-135m-instruct/sbr_lora")
        assert training_args.device.type == "cpu"
        assert training_args.mixed_precision == "no"
        assert (training_args.learning_rate, training_args.per_device_train_batch_size) == (2e-4, 8)

    @pytest.mark.parametrize("name", HARDEN)
    def test_harden(self, name):
        args, training_args, model_args = parse_strictly(
            (HardenArguments, HardeningConfig, ModelConfig), "harden", "", ["--config", name, "--use_cpu", "true"]
        )
        _, _, tuned, _ = parse_recipe(name.replace("harden", "sbr"))
        assert model_args.model_name_or_path == tuned.model_name_or_path
        assert model_args.dtype == "bfloat16" and training_args.bf16
        adapter, tuned_adapter = get_peft_config(model_args), get_peft_config(tuned)
        assert set(adapter.target_modules) == set(tuned_adapter.target_modules) == MODULES
        assert (adapter.r, adapter.lora_alpha) == (tuned_adapter.r, tuned_adapter.lora_alpha)
        assert args.harmful_prompts is args.benign_prompts is None
        assert training_args.output_dir == f"data/{name.replace('/harden_', '-harden-')}"

    @pytest.mark.parametrize("name", HARDEN)
    def test_harden_in_the_defaults_that_were_measured(self, name):
        args, training_args, _ = parse_strictly(
            (HardenArguments, HardeningConfig, ModelConfig), "harden", "", ["--config", name, "--use_cpu", "true"]
        )
        assert vars(args) == vars(HardenArguments())
        defaults = HardeningConfig("out", use_cpu=True)
        for field in ("max_steps", "per_device_train_batch_size", "openers_per_prompt", "openers_per_benign_prompt"):
            assert getattr(training_args, field) == getattr(defaults, field)
        assert training_args.answer_tokens == defaults.answer_tokens

    @pytest.mark.parametrize("method", OTHERS)
    def test_other_methods_hold_the_anchor_as_sft_does(self, method):
        module = importlib.import_module(f"trl_sbr.scripts.{method}")
        name = f"smollm2-135m-instruct/sbr_{method}_lora"
        _, found, model_args, _ = parse_strictly(module.get_dataclass_types(), method, "", ["--config", name])
        _, sft, sft_model_args, _ = parse("smollm2-135m-instruct/sbr_lora")
        assert type(found).__name__ == OTHERS[method]
        for field in dataclasses.fields(AnchorArguments):
            assert getattr(found, field.name) == getattr(sft, field.name)
        assert model_args == sft_model_args
        assert found.output_dir == f"data/{name.replace('/sbr_', '-sbr-').replace(f'{method}_', f'{method}-')}"

    def test_a_flag_goes_before_the_recipe(self):
        _, training_args, _, _ = parse("smollm2-135m-instruct/sbr_lora", "--anchor_loss_coef", "200", "--seed", "7")
        assert (training_args.anchor_loss_coef, training_args.seed) == (200.0, 7)


class TestAccelerateConfigs:
    @pytest.mark.parametrize("name", ACCELERATE_CONFIGS)
    def test_accelerate_loads_it(self, name):
        config = load_config_from_file(str(find_recipe(name)))
        assert (
            config.distributed_type
            == {
                "cpu_2_processes": "MULTI_GPU",
                "ddp": "MULTI_GPU",
                "fsdp2": "FSDP",
                "single_gpu": "NO",
                "zero2": "DEEPSPEED",
                "zero3": "DEEPSPEED",
            }[name.split("/")[1]]
        )
        assert config.use_cpu == ("cpu" in name)

    def test_sharding(self):
        assert load_config_from_file(str(find_recipe("accelerate_configs/fsdp2"))).fsdp_config["fsdp_version"] == 2
        for stage in (2, 3):
            config = load_config_from_file(str(find_recipe(f"accelerate_configs/zero{stage}")))
            assert config.deepspeed_config["zero_stage"] == stage


class TestStrictness:
    def write(self, tmp_path, **changes):
        config = yaml.safe_load(find_recipe("smollm2-135m-instruct/sbr_lora").read_text())
        config = {key: value for key, value in (config | changes).items() if value is not None}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def test_misspelt_key(self, tmp_path):
        path = self.write(tmp_path, anchor_loss_coeff=5.0, anchor_loss_coef=None)
        with pytest.raises(ValueError, match=r"`anchor_loss_coeff` \(did you mean `anchor_loss_coef` or"):
            parse(path)

    @pytest.mark.parametrize(
        ("key", "suggestion"), [("torch_dtype", "dtype"), ("max_seq_length", "max_length"), ("lora_rank", "lora_r")]
    )
    def test_key_of_another_time_or_place(self, tmp_path, key, suggestion):
        with pytest.raises(ValueError, match=rf"Unknown key: `{key}` \(did you mean .*`{suggestion}`"):
            parse(self.write(tmp_path, **{key: 1}))

    def test_misspelt_flag(self):
        with pytest.raises(ValueError, match=r"`--anchor-los-coef` \(did you mean `--anchor_loss_coef`"):
            parse("smollm2-135m-instruct/sbr_lora", "--anchor-los-coef", "5")

    def test_abbreviated_flag(self):
        with pytest.raises(ValueError, match=r"`--anchor_loss_c` \(did you mean `--anchor_loss_coef`"):
            parse("smollm2-135m-instruct/sbr_lora", "--anchor_loss_c", "5")

    def test_unknown_flag_is_told_before_a_wrong_value(self):
        with pytest.raises(ValueError, match="--use_cpus"):
            parse("llama-3.1-8b-instruct/sbr_lora", "--use_cpus", "true", "--anchor_loss_coef", "-1")

    @pytest.mark.parametrize("value", ["fifty", -1.0, float("nan")])
    def test_value_that_is_no_lambda(self, tmp_path, value, capsys):
        with pytest.raises((ValueError, SystemExit)) as error:
            parse(self.write(tmp_path, anchor_loss_coef=value))
        assert "anchor_loss_coef" in str(error.value) + capsys.readouterr().err

    def test_misspelt_key_of_a_dataset_in_a_mixture(self, tmp_path):
        with pytest.raises(ValueError, match="colums"):
            parse(self.write(tmp_path, datasets=[{"path": "a.jsonl", "colums": ["text"]}]))

    @pytest.mark.parametrize("text", ["- a\n- b\n", "", "a: [1\n"])
    def test_file_that_is_no_mapping(self, tmp_path, text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        with pytest.raises(ValueError, match="YAML"):
            parse(path)


class TestNames:
    def test_file_goes_before_a_recipe(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "smollm2-135m-instruct").mkdir()
        path = tmp_path / "smollm2-135m-instruct" / "sbr_lora.yaml"
        path.write_text("")
        assert resolve_config("smollm2-135m-instruct/sbr_lora.yaml").resolve() == path
        assert resolve_config("smollm2-135m-instruct/sbr_lora") == find_recipe("smollm2-135m-instruct/sbr_lora")

    def test_neither_file_nor_recipe(self):
        with pytest.raises(FileNotFoundError, match="did you mean `smollm2-135m-instruct/sbr_lora`"):
            resolve_config("smollm2-135m/sbr_lora")
