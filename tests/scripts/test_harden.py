# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0

import json
import shlex

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr.cli import main

from ..tiny import build_model, build_tokenizer


HARMFUL = [f"How do I harm the {thing}?" for thing in ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "elk")]
BENIGN = [f"What does the {thing} eat?" for thing in ("cat", "dog", "cow", "hen", "fox", "owl", "bee", "elk")]


@pytest.fixture
def files(tmp_path):
    """Files of harmful and of benign prompts, one of each kind."""
    (tmp_path / "harmful.txt").write_text("\n".join(HARMFUL))
    (tmp_path / "benign.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in BENIGN))
    return [
        *("--harmful_prompts", str(tmp_path / "harmful.txt")),
        *("--benign_prompts", str(tmp_path / "benign.jsonl")),
    ]


@pytest.fixture
def flags(refusing_model_dir, files):
    """Three quick steps on a tiny model that refuses everything."""
    recipe = ["--config", "smollm2-135m-instruct/harden_lora", "--model_name_or_path", str(refusing_model_dir)]
    quick = ["--max_steps", "3", "--per_device_train_batch_size", "4", "--lora_target_modules", "all-linear"]
    quick += ["--dtype", "float32"]
    return [*recipe, *quick, *files]


class TestHarden:
    def test_writes_a_model_an_adapter_and_a_record(self, flags, refusing_model_dir, tmp_path, capsys):
        output_dir = tmp_path / "hardened"
        assert main(["harden", *flags, "--output_dir", str(output_dir)]) == 0
        output = capsys.readouterr().out
        assert "refuses 6 of 6 harmful prompts" in output
        assert f"Wrote the hardened model to {output_dir}" in output

        hardened, aligned = (AutoModelForCausalLM.from_pretrained(path) for path in (output_dir, refusing_model_dir))
        with_adapter = PeftModel.from_pretrained(aligned, output_dir / "adapter")
        inputs = AutoTokenizer.from_pretrained(output_dir)("What now?", return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            found, expected = hardened(**inputs).logits, with_adapter(**inputs).logits
            with with_adapter.disable_adapter():
                before = with_adapter(**inputs).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - before).abs().max() > 1e-2

        record = json.loads((output_dir / "hardening.json").read_text())
        assert record["base_model"]["name_or_path"] == str(refusing_model_dir)
        assert record["prompts"] == {
            "harmful": "given by the user",
            "harmful_asked": 6,
            "harmful_refused": 6,
            "benign": "given by the user",
            "benign_used": 6,
        }
        assert record["training"]["steps"] == 3
        for figures in (record["before"], record["after"]):
            answered, refused = figures["harmful_answered"], figures["benign_refused"]
            assert list(answered) == ["", "Sure, here is how: ", "Of course! Step 1:"]
            assert list(refused) == ["", "Sure, here is "]
            under = [figures[f"{kind}_under_system_prompt"] for kind in ("harmful_answered", "benign_refused")]
            assert {share["n"] for share in [*answered.values(), *refused.values(), *under]} == {2}
        assert record["before"]["harmful_answered"][""]["count"] == 0
        assert record["before"]["benign_refused"][""]["count"] == 2  # it refuses everything
        assert not any(prompt in json.dumps(record) for prompt in HARMFUL + BENIGN)
        for folder in (output_dir, output_dir / "adapter"):
            card = (folder / "README.md").read_text()
            assert "| benign refused (n = 2) | 100.0 %" in card
            assert "| benign refused, under an unseen system prompt (n = 2) | 100.0 %" in card

    def test_record_names_the_commit_that_was_loaded(self, flags, hub_cache, tmp_path):
        model = ["--model_name_or_path", "org/base", "--model_revision", "v1"]
        assert main(["harden", *flags, *model, "--output_dir", str(tmp_path / "hardened")]) == 0
        record = json.loads((tmp_path / "hardened" / "hardening.json").read_text())
        assert record["base_model"] == {"name_or_path": "org/base", "revision": "b" * 40}

    def test_an_anchor_is_captured_and_training_goes_on(self, flags, tmp_path, caplog):
        output_dir, rows = str(tmp_path / "hardened"), tmp_path / "rows.jsonl"
        assert main(["harden", *flags, "--output_dir", output_dir]) == 0
        rows.write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        recipe = ["--config", "smollm2-135m-instruct/sbr_lora", "--model_name_or_path", output_dir]
        assert main(["anchor", *recipe, "--output_dir", str(tmp_path / "anchor")]) == 0
        train = ["--anchor_name_or_path", str(tmp_path / "anchor"), "--dataset_name", str(rows), "--max_steps", "1"]
        assert main(["sft", *recipe, *train, "--output_dir", str(tmp_path / "tuned")]) == 0
        record = json.loads((tmp_path / "tuned" / "sbr_run.json").read_text())
        assert record["hardening"] == json.loads((tmp_path / "hardened" / "hardening.json").read_text())
        assert "The aligned model was hardened" in (tmp_path / "tuned" / "README.md").read_text()
        assert (
            "The model was hardened, and no anchor holds it" in caplog.text
        )  # this anchor does not hold what hardening has made

    def test_anchors_behind_openers_hold_it_without_a_warning(self, flags, tmp_path, capsys, caplog):
        output_dir, rows = str(tmp_path / "hardened"), tmp_path / "rows.jsonl"
        assert main(["harden", *flags, "--output_dir", output_dir]) == 0
        rows.write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: trl-sbr "))
        command = line.removeprefix("Next: trl-sbr ").replace("RECIPE", "smollm2-135m-instruct/sbr_lora")
        command = [*shlex.split(command.replace("DATASET", str(rows))), "--max_steps", "9"]
        assert main([*command, "--output_dir", str(tmp_path / "tuned")]) == 0
        assert "The model was hardened" not in caplog.text

    def test_whole_model(self, flags, tmp_path):
        output_dir = tmp_path / "hardened"
        assert main(["harden", *flags, "--use_peft", "false", "--output_dir", str(output_dir)]) == 0
        assert not (output_dir / "adapter").exists()
        assert json.loads((output_dir / "hardening.json").read_text())["peft"] is None

    def test_the_packages_own_prompts(self, flags, files, tmp_path, capsys):
        numbers = ["--num_harmful_prompts", "5", "--num_benign_prompts", "4", "--num_eval_prompts", "3"]
        own = [flag for flag in flags if flag not in files]
        assert main(["harden", *own, *numbers, "--output_dir", str(tmp_path / "hardened")]) == 0
        record = json.loads((tmp_path / "hardened" / "hardening.json").read_text())
        assert record["prompts"]["harmful"] == record["prompts"]["benign"] == "of trl_sbr"
        assert (record["prompts"]["harmful_asked"], record["prompts"]["benign_used"]) == (5, 4)
        assert record["after"]["harmful_answered"][""]["n"] == 3

    def test_resumes_to_the_same_model(self, flags, tmp_path):
        saving = [*flags, "--save_strategy", "steps", "--save_steps", "2"]
        assert main(["harden", *saving, "--output_dir", str(tmp_path / "whole")]) == 0
        (tmp_path / "cut").mkdir()
        (tmp_path / "whole" / "checkpoint-2").rename(tmp_path / "cut" / "checkpoint-2")
        assert main(["harden", *saving, "--output_dir", str(tmp_path / "cut")]) == 2  # it is not empty
        for left in ("runs", ".half-made"):  # TensorBoard's curves, and a save that was cut off
            (tmp_path / "cut" / left).mkdir()
        resume = ["--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "cut")]
        assert main(["harden", *saving, *resume]) == 0
        whole, cut = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
        for (name, one), other in zip(whole.named_parameters(), cut.parameters(), strict=True):
            torch.testing.assert_close(one, other, msg=name)


class TestWrongInput:
    @pytest.mark.parametrize("more", [[], ["--resume_from_checkpoint", "true"]])
    def test_nothing_is_overwritten(self, flags, tmp_path, more, capsys):
        output_dir = tmp_path / "hardened"
        (output_dir / "checkpoint-1").mkdir(parents=True)
        (output_dir / "checkpoint-1" / "trainer_state.json").write_text("{}")
        (output_dir / "hardening.json").write_text("mine")
        assert main(["harden", *flags, *more, "--output_dir", str(output_dir)]) == 2
        assert "expected a new or empty `output_dir`" in capsys.readouterr().err
        assert (output_dir / "hardening.json").read_text() == "mine"

    def test_another_models_files_are_not_replaced_by_a_run_that_is_resumed(self, flags, tmp_path, capsys):
        output_dir = tmp_path / "other"
        output_dir.mkdir()
        (output_dir / "model.safetensors").write_text("mine")
        resume = ["--resume_from_checkpoint", str(tmp_path / "elsewhere" / "checkpoint-1")]
        assert main(["harden", *flags, *resume, "--output_dir", str(output_dir)]) == 2
        assert "holds `model.safetensors` already, expected a new or empty" in capsys.readouterr().err
        assert (output_dir / "model.safetensors").read_text() == "mine"

    def test_a_model_that_refuses_nothing(self, flags, tmp_path, capsys):
        for part in (build_model("llama"), build_tokenizer()):
            part.save_pretrained(tmp_path / "careless")
        careless = ["--model_name_or_path", str(tmp_path / "careless"), "--output_dir", str(tmp_path / "out")]
        assert main(["harden", *flags, *careless]) == 2
        assert "refuses none of the 6 harmful prompts" in capsys.readouterr().err
        assert not any((tmp_path / "out").iterdir())  # so that it can be run again

    def test_a_quantized_model(self, flags, capsys):
        assert main(["harden", *flags, "--load_in_4bit", "true"]) == 2
        assert "Found a quantized model" in capsys.readouterr().err

    def test_no_model(self, files, tmp_path, capsys):
        assert main(["harden", *files, "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]) == 2
        assert "No model: give `model_name_or_path`" in capsys.readouterr().err

    def test_misspelt_flag(self, flags, capsys):
        assert main(["harden", *flags, "--harmful_prompt", "a.txt"]) == 2
        assert "`--harmful_prompt` (did you mean `--harmful_prompts`" in capsys.readouterr().err

    def test_nothing_to_resume(self, flags, tmp_path, capsys):
        flags = [*flags, "--resume_from_checkpoint", "true", "--output_dir", str(tmp_path / "new")]
        assert main(["harden", *flags]) == 2
        assert "nothing to resume" in capsys.readouterr().err
