# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""A hardened model on the loopback Hub: pushed, and fine-tuned on by who knows its id alone."""

import json

import pytest

from trl_sbr.anchors.anchor_files import CONFIG_NAME
from trl_sbr.hub.cards import CARD_NAME
from trl_sbr.trainers.hardening_record import RECORD_NAME

from ..hub_server import check_metadata
from .test_push import base, base_files  # noqa: F401  fixtures


HARDEN = [
    "harden",
    "--config",
    "smollm2-135m-instruct/harden_lora",
    "--max_steps",
    "2",
    "--lora_target_modules",
    "all-linear",
]
HARDEN += ["--per_device_train_batch_size", "4", "--dtype", "float32"]
SFT = ["sft", "--config", "smollm2-135m-instruct/sbr_lora", "--max_steps", "2"]


@pytest.fixture
def prompts(tmp_path):
    """Files of harmful and of benign prompts, as flags."""
    for name, words in (("harmful", "harm the"), ("benign", "feed the")):
        lines = [f"How do I {words} {animal}?" for animal in ("cat", "dog", "cow", "hen", "fox")]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    return [flag for name in ("harmful", "benign") for flag in (f"--{name}_prompts", str(tmp_path / f"{name}.txt"))]


@pytest.fixture
def hardened(cli, base, prompts, tmp_path):  # noqa: F811
    """A folder that `trl-sbr harden` has left, of a model of the Hub, with what must never be published."""
    folder = tmp_path / "hardened"
    result = cli(*HARDEN, *prompts, "--model_name_or_path", "org/base", "--output_dir", folder)
    assert result.code == 0, result.err
    (folder / "training_args.bin").write_bytes(b"secret")
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "model.safetensors").write_bytes(b"secret")
    return folder


class TestPush:
    def test_the_model_its_adapter_record_and_cards(self, hub, cli, hardened):
        card = hardened / CARD_NAME
        card.write_text(card.read_text().replace("notes begin -->\n", "notes begin -->\nMine.\n"))
        result = cli("push", "--output_dir", hardened, "--repo_id", "org/hardened")
        assert result.code == 0, result.err
        assert "--verify" not in result.out  # there is no anchor to verify it with
        adapter = {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", f"adapter/{CARD_NAME}"}
        files = hub.files("org/hardened")
        assert adapter | {CARD_NAME, RECORD_NAME, "config.json", "model.safetensors", "tokenizer.json"} < files
        assert not any("training_args" in name or "checkpoint" in name for name in files)
        card = hub.read("org/hardened", CARD_NAME).decode()
        assert check_metadata(card, "models") == ([], [])
        assert "Mine." in card and "--model_name_or_path org/hardened --anchor_openers default" in card
        assert json.loads(hub.read("org/hardened", RECORD_NAME))["base_model"]["name_or_path"] == "org/base"

    def test_over_an_adapter(self, hub, cli, hardened):
        """Beside an `adapter_config.json`, transformers would load that one's base model."""
        hub.add_repo(
            "org/hardened", dict.fromkeys(("adapter_config.json", "adapter_model.safetensors", "sbr_run.json"), b"{}")
        )
        assert cli("push", "--output_dir", hardened, "--repo_id", "org/hardened").code == 0
        assert not {"adapter_config.json", "adapter_model.safetensors", "sbr_run.json"} & hub.files("org/hardened")
        assert {"model.safetensors", "adapter/adapter_model.safetensors"} < hub.files("org/hardened")

    def test_by_a_flag_of_harden(self, hub, cli, base, prompts, tmp_path):  # noqa: F811
        push = ["--push_to_hub", "true", "--hub_model_id", "org/hardened", "--hub_private_repo", "true"]
        command = [*HARDEN, *prompts, "--model_name_or_path", "org/base", "--output_dir", tmp_path / "hardened"]
        result = cli(*command, *push)
        assert result.code == 0, result.err
        assert "Pushed: " in result.out
        repo = hub.repos["models", "org/hardened"]
        assert repo.private and len(repo.history) == 2  # made, and one commit
        assert {RECORD_NAME, "model.safetensors"} < hub.files("org/hardened")

    def test_names_no_folder_of_this_machine(self, hub, cli, base_files, prompts, tmp_path):  # noqa: F811
        aligned = tmp_path / "secret-customer" / "aligned"
        aligned.mkdir(parents=True)
        for name, content in base_files.items():
            (aligned / name).write_bytes(content)
        result = cli(*HARDEN, *prompts, "--model_name_or_path", aligned, "--output_dir", tmp_path / "hardened")
        assert result.code == 0, result.err
        assert cli("push", "--output_dir", tmp_path / "hardened", "--repo_id", "org/hardened").code == 0
        texts = [hub.read("org/hardened", name) for name in hub.files("org/hardened") if "safetensors" not in name]
        assert not any(b"secret-customer" in text for text in texts)

    def test_weights_that_are_not_those_of_the_record(self, hub, cli, hardened):
        weights = hardened / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
        result = cli("push", "--output_dir", hardened, "--repo_id", "org/hardened")
        assert result.code != 0
        assert "is not of the training that `hardening.json` beside it records" in result.err
        assert ("models", "org/hardened") not in hub.repos

    def test_a_record_without_hashes(self, hub, cli, hardened):
        record = json.loads((hardened / RECORD_NAME).read_text())
        del record["files"]
        (hardened / RECORD_NAME).write_text(json.dumps(record))
        result = cli("push", "--output_dir", hardened, "--repo_id", "org/hardened")
        assert result.code != 0
        assert "expected `files`: harden the model again" in result.err


class TestTrainOn:
    @pytest.mark.parametrize("openers", [[], ["--anchor_openers", "Sure!", "--anchors_per_step", "8"]])
    def test_anchors_of_one_token_warn(self, cli, hardened, tmp_path, openers):
        assert cli("push", "--output_dir", hardened, "--repo_id", "org/hardened").code == 0
        (tmp_path / "rows.jsonl").write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        data = ["--dataset_name", tmp_path / "rows.jsonl", "--model_name_or_path", "org/hardened"]
        result = cli(*SFT, *data, *openers, "--output_dir", tmp_path / "tuned", home="another")
        assert result.code == 0, result.err
        assert ("The model was hardened, and no anchor holds it" in result.err) == (not openers)
        record = json.loads((tmp_path / "tuned" / "sbr_run.json").read_text())
        assert record["hardening"] == json.loads((hardened / RECORD_NAME).read_text())
        assert (tmp_path / "tuned" / CONFIG_NAME).is_file()
