# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Skipped where axolotl is absent: it pins its own releases of everything, `constraints/axolotl-0.19.txt`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_sbr import SafetyAnchor
from trl_sbr.trainers.run_record import check_folder

from ..tiny import conversation_rows


pytest.importorskip("axolotl.integrations.base", exc_type=ImportError)

PLUGIN = "trl_sbr.integrations.axolotl.SBRPlugin"


@pytest.fixture
def config(refusing_model_dir, refusing_model, tokenizer, tmp_path):
    """A short training on a CPU with the plugin."""
    SafetyAnchor.capture(refusing_model, tokenizer).save_pretrained(tmp_path / "anchor")
    rows = [{"messages": row["prompt"] + row["completion"]} for row in conversation_rows(32)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "base_model": str(refusing_model_dir),
        "tokenizer_type": "PreTrainedTokenizerFast",
        "datasets": [{"path": str(tmp_path / "train.jsonl"), "type": "chat_template", "field_messages": "messages"}],
        "dataset_prepared_path": str(tmp_path / "prepared"),
        "chat_template": "tokenizer_default",
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_target_linear": True,
        **dict.fromkeys(("lora_qkv_kernel", "lora_o_kernel", "lora_mlp_kernel"), False),  # need a GPU
        "sequence_len": 128,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 4,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "bf16": False,
        "logging_steps": 1,
        "save_steps": 2,
        "val_set_size": 0,
        "use_cpu": True,
        "output_dir": str(tmp_path / "out"),
        "plugins": [PLUGIN],
        "sbr": {"anchor_name_or_path": str(tmp_path / "anchor"), "anchor_loss_coef": 20.0},
    }


def train(config, folder):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {**os.environ, "AXOLOTL_DO_NOT_TRACK": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-m", "axolotl.cli.train", str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )


def logged(folder, key):
    entries = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in entries if key in entry]


class TestTraining:
    @pytest.mark.slow
    def test_holds_the_anchor_and_saves_it(self, config, tmp_path):
        result = train(config, tmp_path)
        assert result.returncode == 0, result.stdout[-3000:]
        losses = logged(tmp_path / "out" / "checkpoint-4", "anchor_loss")
        assert losses[0] == 0 and len(losses) == 4
        assert all(loss > 0 for loss in losses[1:])
        assert check_folder(tmp_path / "out")["sbr"]["anchor_loss_coef"] == 20.0
        model = AutoModelForCausalLM.from_pretrained(config["base_model"])
        model = PeftModel.from_pretrained(model, tmp_path / "out")
        tokenizer = AutoTokenizer.from_pretrained(config["base_model"])
        assert SafetyAnchor.from_pretrained(tmp_path / "out").verify(model, tokenizer).max_relative_error > 1e-3

        # Check that it goes on from a checkpoint
        config |= {"max_steps": 5, "resume_from_checkpoint": str(tmp_path / "out" / "checkpoint-4")}
        result = train(config, tmp_path)
        assert result.returncode == 0, result.stdout[-3000:]
        assert logged(tmp_path / "out" / "checkpoint-5", "anchor_loss")[:4] == losses

    @pytest.mark.slow
    def test_anchor_of_another_model_trains_nothing(self, config, model, tokenizer, tmp_path):
        SafetyAnchor.capture(model, tokenizer, require_refusal=False).save_pretrained(tmp_path / "other")
        config["sbr"]["anchor_name_or_path"] = str(tmp_path / "other")
        result = train(config, tmp_path)
        assert result.returncode != 0
        assert "The model's final hidden states are not the anchor's" in result.stdout
        assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


class TestSettings:
    def load(self, config, tmp_path):
        from axolotl.cli.config import load_cfg

        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return load_cfg(str(path))

    def test_defaults_are_those_of_the_trainers(self, config, tmp_path):
        from trl_sbr.integrations.axolotl import SBRSettings
        from trl_sbr.trainers.anchor_arguments import AnchorArguments

        cfg = self.load(config, tmp_path)
        ours = AnchorArguments(**config["sbr"])
        assert cfg.sbr.to_dict() == {n: getattr(ours, n) for n in SBRSettings.model_fields if n != "anchor_revision"}

    @pytest.mark.parametrize(
        ("sbr", "message"),
        [
            ({"anchor_loss_coeff": 1.0}, "anchor_loss_coeff"),
            ({"anchor_loss_coef": 0.0}, "greater than 0"),
            ({"anchors_per_step": 0}, "greater than or equal to 1"),
            ({"anchor_loss_type": "mqe"}, "'mse', 'sum' or 'relative'"),
            ({"anchor_name_or_path": None}, "anchor_name_or_path"),
            (None, "sbr"),
        ],
    )
    def test_that_mean_nothing_raise(self, config, tmp_path, sbr, message):
        config["sbr"] = sbr and config["sbr"] | sbr
        with pytest.raises(ValueError, match=message):
            self.load(config, tmp_path)

    @pytest.mark.parametrize("setting", [{"context_parallel_size": 2}, {"layer_offloading": True}, {"relora": True}])
    def test_what_is_not_held_raises(self, config, setting):
        from axolotl.utils.dict import DictDefault

        from trl_sbr.integrations.axolotl import SBRPlugin

        with pytest.raises(ValueError, match=f"Found `{next(iter(setting))}: "):
            SBRPlugin().post_trainer_create(DictDefault(config | setting), None)
