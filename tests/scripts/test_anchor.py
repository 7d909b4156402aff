# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import shlex
from pathlib import Path

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from trl_sbr import SafetyAnchor
from trl_sbr.anchors.adapters import base_tensors
from trl_sbr.anchors.openers import DEFAULT_OPENERS
from trl_sbr.anchors.prompt_pool import load_prompt_pool
from trl_sbr.cli import main
from trl_sbr.recipes import find_recipe
from trl_sbr.trainers.hardening_record import IN_TURN_FLAGS

from ..anchors.test_adapters import add_to_file
from ..anchors.test_safety_anchor import make_version_1
from ..tiny import build_selective_model


RECIPE = "smollm2-135m-instruct/sbr_lora"


@pytest.fixture
def model_flags(refusing_model_dir):
    return ["--config", RECIPE, "--model_name_or_path", str(refusing_model_dir)]


@pytest.fixture
def anchor_dir(model_flags, tmp_path, capsys):
    assert main(["anchor", *model_flags, "--output_dir", str(tmp_path / "anchor")]) == 0
    capsys.readouterr()
    return tmp_path / "anchor"


@pytest.fixture
def trained_dir(model_flags, tmp_path):
    """Trains an adapter for a step, with further flags."""

    def train(*flags):
        (tmp_path / "train.jsonl").write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        line = [
            "--dataset_name",
            str(tmp_path / "train.jsonl"),
            "--max_steps",
            "1",
            "--output_dir",
            str(tmp_path / "out"),
        ]
        assert main(["sft", *model_flags, *line, *flags]) == 0
        return str(tmp_path / "out")

    return train


@pytest.fixture
def adapter_dir(refusing_model, tmp_path):
    """Builds an adapter that moves the refusing model's states by a given amount."""

    def build(scale):
        torch.manual_seed(0)
        adapter = get_peft_model(refusing_model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=scale)
        adapter.save_pretrained(tmp_path / "adapter")
        return str(tmp_path / "adapter")

    return build


class TestCapture:
    def test_writes_the_anchor_and_names_the_next_command(self, model_flags, tmp_path, capsys):
        directory = tmp_path / "anchor"
        assert main(["anchor", *model_flags, "--output_dir", str(directory)]) == 0
        output = capsys.readouterr().out
        assert f"Wrote the safety anchor to {directory}." in output
        next_line = next(line for line in output.splitlines() if line.startswith("Next: trl-sbr sft "))
        assert next_line == (
            f"Next: trl-sbr sft {shlex.join(model_flags)} --anchor_name_or_path {directory} --dataset_name DATASET"
        )
        config = SafetyAnchor.from_pretrained(directory).config
        assert (len(config.prompts), config.dtype, config.autocast_dtype) == (8, "float32", None)

    @pytest.mark.parametrize(("flags", "commit"), [([], "a" * 40), (["--model_revision", "v1"], "b" * 40)])
    def test_names_the_commit_that_was_loaded(self, hub_cache, tmp_path, flags, commit):
        command = ["anchor", "--config", RECIPE, "--model_name_or_path", "org/base", *flags]
        assert main([*command, "--output_dir", str(tmp_path / "anchor")]) == 0
        assert SafetyAnchor.from_pretrained(tmp_path / "anchor").config.model_revision == commit

    def test_points(self, model_flags, tmp_path, capsys):
        directory = str(tmp_path / "anchor")
        points = ["--anchor_refusal_tokens", "1", "--anchor_openers", "Sure! ", "Here is"]
        points += ["--anchor_system_prompts", "", "Be kind."]
        assert main(["anchor", *model_flags, *points, "--anchor_prompts", "How?", "--output_dir", directory]) == 0
        output = capsys.readouterr().out
        assert "Captured 6 anchors" in output
        line = (
            f"Next: trl-sbr sft {shlex.join(model_flags)} --anchor_name_or_path {directory} {IN_TURN_FLAGS} --dataset"
        )
        assert line in output
        assert main(["anchor", "--show", directory]) == 0
        assert "| user: How? | behind 'Here is'\n" in capsys.readouterr().out
        assert main(["anchor", *model_flags, "--verify", directory]) == 0
        output = capsys.readouterr().out
        assert "How? behind 'Sure! '" in output and "Verified." in output

    @pytest.mark.parametrize("settings", [["--anchor_loss_coef", "50"], ["--anchors_per_step", "2"]])
    def test_the_next_command_keeps_what_was_asked_for(self, model_flags, tmp_path, capsys, settings):
        flags = [*model_flags, *settings]
        points = ["--anchor_openers", "Sure! ", "--anchor_prompts", "How?", "--output_dir", str(tmp_path / "anchor")]
        assert main(["anchor", *flags, *points]) == 0
        line = f"Next: trl-sbr sft {shlex.join(flags)} --anchor_name_or_path {tmp_path / 'anchor'} --dataset"
        assert line in capsys.readouterr().out

    @pytest.mark.parametrize("dash", ["_", "-"])
    def test_the_next_command_pushes_nothing_to_where_the_anchor_goes(self, model_flags, tmp_path, capsys, dash):
        directory = str(tmp_path / "anchor")
        hub = {"push_to_hub": "false", "hub_model_id": "org/anchor", "hub_private_repo": "true"}
        hub |= {"hub_revision": "dev", "hub_token": "hf_secret"}
        flags = [part for name, value in hub.items() for part in (f"--{name.replace('_', dash)}", value)]
        assert main(["anchor", *model_flags, *flags, f"--output{dash}dir", directory]) == 0
        line = (
            f"Next: trl-sbr sft {shlex.join(model_flags)} --anchor_name_or_path {directory} --dataset_name DATASET\n"
        )
        assert line in capsys.readouterr().out

    @pytest.mark.parametrize("in_file", [False, True])
    def test_default_openers(self, model_flags, tmp_path, in_file):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(find_recipe(RECIPE).read_text() + "\nanchor_openers: default\n" * in_file)
        flags = ["--config", str(recipe), *model_flags[2:], *["--anchor_openers", "default"] * (not in_file)]
        directory = str(tmp_path / "anchor")
        assert main(["anchor", *flags, "--anchor_prompts", "How?", "--output_dir", directory]) == 0
        assert SafetyAnchor.from_pretrained(directory).config.openers == ["", *DEFAULT_OPENERS]

    def test_under_the_autocast_of_training(self, model_flags, tmp_path):
        assert main(["anchor", *model_flags, "--bf16", "true", "--output_dir", str(tmp_path / "anchor")]) == 0
        assert SafetyAnchor.from_pretrained(tmp_path / "anchor").config.autocast_dtype == "bfloat16"

    def test_in_the_dtype_of_training(self, model_flags, tmp_path):
        assert main(["anchor", *model_flags, "--dtype", "bfloat16", "--output_dir", str(tmp_path / "anchor")]) == 0
        assert SafetyAnchor.from_pretrained(tmp_path / "anchor").config.dtype == "bfloat16"

    @pytest.mark.parametrize("numerics", [[], ["--bf16", "true"], ["--dtype", "bfloat16", "--bf16", "true"]])
    def test_the_captured_anchor_is_exactly_the_trainings(self, model_flags, tmp_path, numerics):
        directory, train_file = tmp_path / "anchor", tmp_path / "train.jsonl"
        train_file.write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        assert main(["anchor", *model_flags, *numerics, "--output_dir", str(directory)]) == 0
        train = ["--anchor_name_or_path", str(directory), "--dataset_name", str(train_file), "--max_steps", "1"]
        train += ["--logging_steps", "1", "--output_dir", str(tmp_path / "out")]
        assert main(["sft", *model_flags, *numerics, *train]) == 0
        state = json.loads((tmp_path / "out" / "checkpoint-1" / "trainer_state.json").read_text())
        assert state["log_history"][0]["anchor_loss"] == 0.0

    @pytest.mark.parametrize("as_file", [False, True])
    def test_own_prompts(self, model_flags, tmp_path, as_file, capsys):
        prompts = ["How do I harm?", "How do I harm more?"]
        (tmp_path / "prompts.txt").write_text("\n".join(prompts))
        flags = [str(tmp_path / "prompts.txt")] if as_file else prompts
        directory = str(tmp_path / "anchor")
        assert main(["anchor", *model_flags, "--anchor_prompts", *flags, "--output_dir", directory]) == 0
        assert SafetyAnchor.from_pretrained(directory).prompts == [[{"role": "user", "content": p}] for p in prompts]
        assert "--anchor_prompts" not in capsys.readouterr().out  # the anchor holds them

    def test_chat_template_of_training(self, model_flags, refusing_model_dir, tmp_path, capsys):
        template = tmp_path / "template.jinja"
        template.write_text((refusing_model_dir / "chat_template.jinja").read_text().replace("<|im_start|>", "#"))
        flags = [*model_flags, "--chat_template_path", str(template)]
        directory = str(tmp_path / "anchor")
        assert main(["anchor", *flags, "--output_dir", directory]) == 0
        assert main(["anchor", *flags, "--verify", directory]) == 0
        assert main(["anchor", *model_flags, "--verify", directory]) == 1
        assert "chat template" in capsys.readouterr().out

    def test_of_a_model_aligned_by_its_adapter(self, model_flags, adapter_dir, anchor_dir, tmp_path, capsys):
        adapter, directory = adapter_dir(0.5), tmp_path / "current"
        flags = [*model_flags, "--adapter", adapter, "--anchor_reference", "current"]
        assert main(["anchor", *flags, "--output_dir", str(directory)]) == 0
        assert "Next:" not in capsys.readouterr().out  # `trl-sbr sft` starts from no adapter
        current, base = SafetyAnchor.from_pretrained(directory), SafetyAnchor.from_pretrained(anchor_dir)
        assert current.config.reference == "current"
        assert not torch.allclose(current.hidden_states, base.hidden_states, rtol=1e-2)

    def test_adapter_that_would_be_disabled(self, model_flags, adapter_dir, tmp_path, capsys):
        flags = [*model_flags, "--adapter", adapter_dir(0.5), "--output_dir", str(tmp_path / "anchor")]
        assert main(["anchor", *flags]) == 2
        assert "--anchor_reference current" in capsys.readouterr().err

    def test_needs_an_output_dir_of_its_own(self, model_flags, capsys):
        assert main(["anchor", *model_flags]) == 2
        assert "Give `--output_dir FOLDER`" in capsys.readouterr().err

    def test_another_anchor_is_not_overwritten(self, model_flags, anchor_dir, capsys):
        flags = [*model_flags, "--anchor_prompts", "How do I harm?", "--output_dir", str(anchor_dir)]
        assert main(["anchor", *flags]) == 2
        assert "holds another safety anchor" in capsys.readouterr().err
        assert len(SafetyAnchor.from_pretrained(anchor_dir).prompts) == 8

    @pytest.mark.parametrize("name", ["sbr_run.json", "adapter_model.safetensors", "model-00001-of-00002.safetensors"])
    def test_not_beside_a_model(self, model_flags, tmp_path, name, capsys):
        (tmp_path / name).write_text("mine")
        flags = [*model_flags, "--model_name_or_path", "no/model", "--output_dir", str(tmp_path)]  # none is loaded
        assert main(["anchor", *flags]) == 2
        assert f"holds `{name}`, expected an `output_dir` without a model" in capsys.readouterr().err
        assert not list(tmp_path.glob("safety_anchor*"))

    def test_model_that_does_not_refuse(self, model_flags, model, tokenizer, tmp_path, capsys):
        for part in (model, tokenizer):
            part.save_pretrained(tmp_path / "careless")
        flags = [*model_flags, "--model_name_or_path", str(tmp_path / "careless"), "--output_dir", str(tmp_path / "a")]
        assert main(["anchor", *flags]) == 2
        assert "found one that refuses 0. It answers:" in capsys.readouterr().err
        assert not (tmp_path / "a").exists()
        assert main(["anchor", *flags, "--anchor_require_refusal", "false"]) == 0

    def test_model_that_answers_some_of_the_default_prompts(self, model_flags, tokenizer, tmp_path, capsys, caplog):
        pool = list(load_prompt_pool())
        for part in (build_selective_model(pool[2:], pool[:2]), tokenizer):
            part.save_pretrained(tmp_path / "half-careless")
        flags = [*model_flags, "--model_name_or_path", str(tmp_path / "half-careless")]
        assert main(["anchor", *flags, "--output_dir", str(tmp_path / "anchor")]) == 0
        assert "Captured 8 anchors" in capsys.readouterr().out
        assert "answers 2 of the " in caplog.text
        assert SafetyAnchor.from_pretrained(tmp_path / "anchor").questions == pool[2:10]

    def test_misspelt_flag(self, model_flags, capsys):
        assert main(["anchor", *model_flags, "--verfy", "anchor"]) == 2
        assert "`--verfy` (did you mean `--verify`" in capsys.readouterr().err


class TestVerify:
    def test_the_model_it_was_captured_on(self, model_flags, anchor_dir, capsys):
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir)]) == 0
        output = capsys.readouterr().out
        assert "How can I build a pipe bomb at home?" in output
        assert output.endswith("\nVerified. The states have drifted by at most 0.0e+00 relative.\n")

    def test_hardened_adapter(self, model_flags, adapter_dir, anchor_dir, capsys):
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir), "--adapter", adapter_dir(0.5)]) == 0
        output = capsys.readouterr().out
        assert "0.00e+00" not in output  # the adapter's states, not the base model's
        largest = max(float(line.split()[0]) for line in output.splitlines() if "  yes  " in line)
        drift = output.partition("\nVerified. The states have drifted by at most ")[2].removesuffix(" relative.\n")
        assert float(drift) == pytest.approx(largest, rel=0.05)

    def test_answered_anchor(self, model_flags, refusing_model, refusing_model_dir, tmp_path, capsys):
        with torch.no_grad():
            refusing_model.lm_head.bias.zero_()
        refusing_model.save_pretrained(refusing_model_dir)
        flags = ["--anchor_require_refusal", "false", "--output_dir", str(tmp_path / "answered")]
        assert main(["anchor", *model_flags, *flags]) == 0
        assert main(["anchor", *model_flags, "--verify", str(tmp_path / "answered")]) == 1
        assert "FAILED: 8 of 8 anchors are answered" in capsys.readouterr().out

    def test_another_unembedding(self, model_flags, anchor_dir, refusing_model, refusing_model_dir, capsys):
        with torch.no_grad():
            refusing_model.lm_head.bias[-1] += 1  # the states stay, and so do the refusals of the anchors
        refusing_model.save_pretrained(refusing_model_dir)
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir)]) == 1
        assert "FAILED: The model's unembedding (`Linear`" in capsys.readouterr().out
        assert main(["anchor", *model_flags, "--compare", str(anchor_dir)]) == 0
        output = capsys.readouterr().out
        assert "The unembedding is another than the anchor's" in output and "Verified" not in output

    def test_anchor_of_version_1(self, model_flags, anchor_dir, capsys):
        make_version_1(anchor_dir)
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir)]) == 0
        assert "The unembedding was not checked" in capsys.readouterr().out

    def test_another_model(self, model_flags, anchor_dir, refusing_model, refusing_model_dir, capsys):
        with torch.no_grad():
            refusing_model.model.layers[0].self_attn.v_proj.weight.mul_(3)
        refusing_model.save_pretrained(refusing_model_dir)
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir)]) == 1
        assert "FAILED: The model's final hidden states are not the anchor's" in capsys.readouterr().out
        # A fully fine-tuned model is such a one
        assert main(["anchor", *model_flags, "--compare", str(anchor_dir)]) == 0
        assert "relative error" in capsys.readouterr().out

    @pytest.mark.parametrize("road", ["published", "recipe"])
    @pytest.mark.parametrize("added", ["lm_head.bias", "model.layers.0.self_attn.q_proj.base_layer.weight"])
    def test_adapter_that_carries_base_weights(
        self, model_flags, refusing_model_dir, adapter_dir, anchor_dir, refusing_model, road, added, capsys
    ):
        refusing_model.name_or_path = str(refusing_model_dir)
        adapter = adapter_dir(0.1)
        SafetyAnchor.from_pretrained(anchor_dir).save_pretrained(adapter)
        flags = [*model_flags, "--verify", adapter, "--adapter", adapter]
        if road == "published":
            flags = ["--verify", adapter, "--use_cpu"]
        assert main(["anchor", *flags]) == 0
        add_to_file(
            Path(adapter),
            {f"base_model.model.{added}": base_tensors(refusing_model)[added.replace("base_layer.", "")] + 1e-3},
        )
        capsys.readouterr()
        assert main(["anchor", *flags]) == 1
        output = capsys.readouterr().out
        assert "FAILED: The adapter" in output and "carries weights of its base model" in output
        assert "Verified" not in output

    @pytest.mark.parametrize("road", ["published", "recipe"])
    def test_adapter_of_another_name_is_looked_at(
        self, model_flags, refusing_model_dir, anchor_dir, tmp_path, road, capsys
    ):
        model = AutoModelForCausalLM.from_pretrained(refusing_model_dir)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(model, lora, adapter_name="sft").save_pretrained(tmp_path / "out")
        SafetyAnchor.from_pretrained(anchor_dir).save_pretrained(tmp_path / "out")
        folder = str(tmp_path / "out")
        flags = [*model_flags, "--verify", folder, "--adapter", folder]
        if road == "published":
            flags = ["--verify", folder, "--use_cpu"]
        assert main(["anchor", *flags]) == 0
        output = capsys.readouterr().out
        assert "0.00e+00" not in output  # the adapter's states, not the base model's
        assert road == "recipe" or f"adapter {folder}/sft" in output

    def test_adapter_on_added_tokens(self, model_flags, refusing_model_dir, anchor_dir, tmp_path, capsys):
        model = AutoModelForCausalLM.from_pretrained(refusing_model_dir)
        model.resize_token_embeddings(270)
        folder = str(tmp_path / "out")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
        SafetyAnchor.from_pretrained(anchor_dir).save_pretrained(folder)
        for flags in (["--verify", folder, "--use_cpu"], [*model_flags, "--verify", folder, "--adapter", folder]):
            assert main(["anchor", *flags]) == 1
            assert "Tokens were added to the model before the training" in capsys.readouterr().out

    def test_unprotected_adapter(self, model_flags, trained_dir, anchor_dir, capsys):
        adapter = trained_dir("--anchor_loss_coef", "0")
        assert main(["anchor", *model_flags, "--compare", str(anchor_dir), "--adapter", adapter]) == 0
        SafetyAnchor.from_pretrained(anchor_dir).save_pretrained(adapter)  # as if it had been trained with it
        for anchor in (str(anchor_dir), adapter):
            assert main(["anchor", *model_flags, "--verify", anchor, "--adapter", adapter]) == 2
            output = capsys.readouterr()
            assert "names no anchor and an `anchor_loss_coef` of 0.0, expected an anchor" in output.err
            assert "Verified" not in output.out

    def test_adapter_that_another_anchor_held(self, model_flags, trained_dir, anchor_dir, tmp_path, capsys):
        adapter, other = trained_dir("--anchor_name_or_path", str(anchor_dir)), str(tmp_path / "other")
        for anchor in (str(anchor_dir), adapter):
            assert main(["anchor", *model_flags, "--verify", anchor, "--adapter", adapter]) == 0
        assert main(["anchor", *model_flags, "--anchor_prompts", "How do I harm?", "--output_dir", other]) == 0
        assert main(["anchor", *model_flags, "--verify", other, "--adapter", adapter]) == 2
        assert f"was trained with another anchor than that of `{other}`" in capsys.readouterr().err
        assert main(["anchor", *model_flags, "--compare", other, "--adapter", adapter]) == 0

    def test_adapter_that_is_not_of_its_training(self, model_flags, trained_dir, capsys):
        adapter = trained_dir()
        path = Path(adapter, "adapter_model.safetensors")
        tensors = safetensors.torch.load_file(path)
        safetensors.torch.save_file({name: tensor * 0 for name, tensor in tensors.items()}, path)
        assert main(["anchor", *model_flags, "--verify", adapter, "--adapter", adapter]) == 2
        assert "adapter_model.safetensors is not of the training" in capsys.readouterr().err

    def test_pickled_adapter_of_a_stranger(self, adapter_dir, anchor_dir, capsys):
        folder = Path(adapter_dir(0.1))
        SafetyAnchor.from_pretrained(anchor_dir).save_pretrained(folder)
        torch.save(safetensors.torch.load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
        assert main(["anchor", "--verify", str(folder), "--use_cpu"]) == 2
        assert "has no `adapter_model.safetensors`, and a pickle is not read" in capsys.readouterr().err

    def test_adapter_that_is_none(self, model_flags, anchor_dir, tmp_path, capsys):
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir), "--adapter", str(tmp_path)]) == 2
        assert "There is no adapter in" in capsys.readouterr().err

    def test_no_anchor(self, model_flags, refusing_model_dir, capsys):
        assert main(["anchor", *model_flags, "--verify", str(refusing_model_dir)]) == 2
        assert "holds no `safety_anchor_config.json`" in capsys.readouterr().err

    def test_verify_and_compare(self, model_flags, anchor_dir, capsys):
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir), "--compare", str(anchor_dir)]) == 2
        assert "give one" in capsys.readouterr().err

    def test_json_without_show(self, model_flags, anchor_dir, capsys):
        assert main(["anchor", *model_flags, "--verify", str(anchor_dir), "--json"]) == 2
        assert "`json` goes with `show` alone" in capsys.readouterr().err


class TestShow:
    def test_needs_no_model_and_no_training_arguments(self, anchor_dir, refusing_model_dir, capsys):
        assert main(["anchor", "--show", str(anchor_dir)]) == 0
        output = capsys.readouterr().out
        config = SafetyAnchor.from_pretrained(anchor_dir).config
        for text in (
            str(refusing_model_dir),
            config.tensor_sha256,
            config.chat_template_sha256,
            "float32",
            "transformers ",
            "8 anchors",
            "user: How can I build a pipe bomb at home?",
        ):
            assert text in output

    def test_json(self, anchor_dir, capsys):
        assert main(["anchor", "--show", str(anchor_dir), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == json.loads((anchor_dir / "safety_anchor_config.json").read_text())

    def test_tampered(self, anchor_dir, capsys):
        path = anchor_dir / "safety_anchor.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        assert main(["anchor", "--show", str(anchor_dir)]) == 2
        assert "corrupted, truncated or tampered with" in capsys.readouterr().err
