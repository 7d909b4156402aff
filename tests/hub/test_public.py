# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""What leaves the machine, and what does not."""

import json
import shutil

import pytest
from datasets import Dataset
from peft import LoraConfig

from trl_sbr import SafetyAnchor, SBRConfig, SBRSFTTrainer
from trl_sbr.anchors.anchor_files import CONFIG_NAME
from trl_sbr.anchors.provenance import public_name
from trl_sbr.hub.cards import CARD_NAME, REPORT_NAME
from trl_sbr.hub.folder import collect_files
from trl_sbr.hub.public import public_config, without_local_paths
from trl_sbr.trainers.run_record import RECORD_NAME

from ..tiny import build_refusing_model, build_tokenizer, conversation_rows
from .test_cards import REPORT, anchor_config


@pytest.fixture(scope="module")
def trained_on_a_folder(tmp_path_factory):
    """What a training leaves whose base model is a folder of this machine."""
    home = tmp_path_factory.mktemp("home-of-alice")
    build_refusing_model().save_pretrained(home / "aligned")
    build_tokenizer().save_pretrained(home / "aligned")
    args = SBRConfig(
        str(home / "adapter"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=1,
        anchor_prompts=["How do I harm?"],
    )
    trainer = SBRSFTTrainer(
        str(home / "aligned"),
        args,
        train_dataset=Dataset.from_list(conversation_rows(2)),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model()
    return home / "adapter"


@pytest.fixture
def folder(trained_on_a_folder, tmp_path):
    return shutil.copytree(trained_on_a_folder, tmp_path / "adapter")


def read(content):
    return content if isinstance(content, bytes) else content.read_bytes()


class TestPaths:
    def test_none_of_this_machine_is_published(self, folder):
        path = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert path.endswith("/aligned") and "home-of-alice" in path
        report = json.loads(json.dumps(REPORT))
        report["models"]["sft"]["model"] = {"model_name_or_path": path, "sha256": "0"}
        report["models"]["sft"]["model"]["adapter"] = {"name_or_path": f"{path}/../sft"}
        (folder / REPORT_NAME).write_text(json.dumps(report))
        files = collect_files(folder, "org/adapter")
        for name, content in files.items():
            assert b"home-of-alice" not in read(content), name
        assert json.loads(read(files["adapter_config.json"]))["base_model_name_or_path"] == "aligned"
        assert json.loads(read(files[CONFIG_NAME]))["model_name_or_path"] == "aligned"
        assert json.loads(read(files[RECORD_NAME]))["base_model"]["name_or_path"] == "aligned"
        assert "fine-tuned from `aligned`" in read(files[CARD_NAME]).decode()
        assert b"home-of-alice" in (folder / "adapter_config.json").read_bytes()  # here it goes on working

    def test_no_server_is_published(self, folder):
        report = json.loads(json.dumps(REPORT))
        report["models"]["sft"]["model"] = {"served_as": "sft", "endpoint": "http://gpu-7.internal:8000/v1"}
        (folder / REPORT_NAME).write_text(json.dumps(report))
        assert all(b"gpu-7" not in read(content) for content in collect_files(folder, "org/adapter").values())

    def test_what_is_published_is_whole(self, folder, tmp_path):
        copy = tmp_path / "copy"
        copy.mkdir()
        for name, content in collect_files(folder, "org/adapter").items():
            (copy / name).write_bytes(read(content))
        assert SafetyAnchor.from_pretrained(copy).config.model_name_or_path == "aligned"
        again = collect_files(copy, "org/adapter")
        assert {name: read(content) for name, content in again.items() if name != CARD_NAME} == {
            path.name: path.read_bytes() for path in copy.iterdir() if path.name != CARD_NAME
        }

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("org/model", "org/model"),
            ("gpt2", "gpt2"),
            ("/home/alice/models/aligned", "aligned"),
            ("/home/alice/models/aligned/", "aligned"),
            ("../models/aligned", "aligned"),
            ("~/aligned", "aligned"),
            (r"C:\Users\alice\aligned", "aligned"),
            ("/home/alice/.cache/huggingface/hub/models--org--my-model/snapshots/" + "0" * 40, "org/my-model"),
            ("", ""),
        ],
    )
    def test_public_name(self, name, expected):
        assert public_name(name) == expected
        assert public_config(anchor_config(model_name_or_path=name)).model_name_or_path == expected

    def test_public_name_of_a_folder_that_could_be_a_repository(self, tmp_path, monkeypatch):
        (tmp_path / "runs" / "aligned").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        assert public_name("runs/aligned") == "aligned"

    def test_file_without_a_path_stays_as_it_is(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text('{"time_step_limit": [0.0, Infinity], "_name_or_path": "org/model"}')
        assert without_local_paths(path, path.name) == path
        path.write_text('{"time_step_limit": [0.0, Infinity], "text": {"_name_or_path": "/home/alice/model"}}')
        assert json.loads(without_local_paths(path, path.name)) == {
            "time_step_limit": [0.0, float("inf")],
            "text": {"_name_or_path": "model"},
        }

    @pytest.mark.parametrize("text", ["", "{", "[" * 10**5])
    def test_file_that_is_no_json(self, text):
        with pytest.raises(ValueError, match="config.json is not valid JSON"):
            without_local_paths(text.encode(), "config.json")


class TestLinks:
    @pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.model", "report.png", "adapter_model.safetensors"])
    def test_to_a_file_elsewhere(self, folder, tmp_path, name):
        (tmp_path / "secret").write_text("secret")
        if name == "adapter_model.safetensors":
            shutil.move(folder / name, tmp_path / "secret")
        if name == "report.png":
            (folder / REPORT_NAME).write_text(json.dumps(REPORT))
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(ValueError, match=f"{name} would be published, and is a symbolic link to .*secret"):
            collect_files(folder, "org/adapter")

    def test_to_a_file_of_the_folder_that_is_not_published(self, folder):
        (folder / "vocab.txt").symlink_to("training_args.bin")
        with pytest.raises(ValueError, match="vocab.txt would be published, and is a symbolic link"):
            collect_files(folder, "org/adapter")

    def test_to_a_folder_elsewhere(self, folder, tmp_path):
        (tmp_path / "templates").mkdir()
        (tmp_path / "templates" / "secret.jinja").write_text("secret")
        (folder / "additional_chat_templates").symlink_to(tmp_path / "templates")
        try:
            published = collect_files(folder, "org/adapter")
        except ValueError as error:
            assert "is a symbolic link" in str(error)
        else:
            assert not any("secret" in name for name in published)

    def test_of_the_folder_itself(self, folder, tmp_path):
        (tmp_path / "link").symlink_to(folder)
        assert "adapter_model.safetensors" in collect_files(tmp_path / "link", "org/adapter")


@pytest.mark.parametrize("name", [".", "../run"])
def test_card_is_named_after_the_folder(tmp_path, monkeypatch, name):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    trainer = SBRSFTTrainer(
        build_refusing_model(),
        SBRConfig(name, use_cpu=True, bf16=False, report_to="none", anchor_prompts=["How do I harm?"]),
        train_dataset=Dataset.from_list(conversation_rows(2)),
        processing_class=build_tokenizer(),
    )
    trainer.create_model_card()
    assert "\n# run\n" in (tmp_path / "run" / CARD_NAME).read_text()
