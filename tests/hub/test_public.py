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
from trl_sbr.evaluation.models import ModelEntry
from trl_sbr.hub.cards import CARD_NAME, EVAL_RESULTS_NAME, REPORT_NAME
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


def write_report(folder, identities=None, **changes):
    """The report of `REPORT`'s models, each with what identifies it, if that is given."""
    report = {**json.loads(json.dumps(REPORT)), **changes}
    for name, identity in (identities or {}).items():
        report["models"][name]["model"] = identity
    (folder / REPORT_NAME).write_text(json.dumps(report))


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

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/home-of-alice/guards/qwen", "qwen"),
            ("../home-of-alice/qwen", "qwen"),
            ("~/home-of-alice/qwen/", "qwen"),
            (r"C:\home-of-alice\qwen", "qwen"),
            ("home-of-alice/qwen", "qwen"),  # a folder, and no repository
            ("/home-of-alice/hub/models--org--qwen/snapshots/" + "0" * 40, "org/qwen"),
        ],
    )
    def test_report_names_no_folder_of_this_machine(self, folder, tmp_path, monkeypatch, path, name):
        (tmp_path / "home-of-alice" / "qwen").mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        refused = {"refusal": {**REPORT["models"]["sbr"]["over_refusal"]["xstest"], "refusals_by": path}}
        write_report(
            folder,
            {"sbr": {**ModelEntry("", str(folder)).identify(), "chat_template": {"from": path, "sha256": "0"}}},
            models={**REPORT["models"], "sbr": {**REPORT["models"]["sbr"], "over_refusal": refused}},
            judge={**REPORT["judge"], "id": path},
            decoding={"chat_template": path, "prefill": "/no_think", "system_prompt": "/a and/or b"},
        )
        files = collect_files(folder, "org/adapter")
        for file, content in files.items():
            assert b"home-of-alice" not in read(content), file
        assert f"id {name}," in read(files[CARD_NAME]).decode()
        assert f"id {name}," in read(files[EVAL_RESULTS_NAME]).decode()
        report = json.loads(read(files[REPORT_NAME]))
        assert report["models"]["sbr"]["model"]["chat_template"] == {"from": name, "sha256": "0"}
        assert report["models"]["sbr"]["over_refusal"]["refusal"]["refusals_by"] == name
        # What the models were asked is no path
        assert report["decoding"] == {"chat_template": name, "prefill": "/no_think", "system_prompt": "/a and/or b"}

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


class TestSubfolders:
    def test_hold_nothing_that_is_published_but_what_is_named(self, folder):
        others = (
            "models_private/secret.safetensors",
            "chat_template.old/notes.txt",
            "additional_chat_templates/a/b.jinja",
        )
        for name in (*others, "additional_chat_templates/tools.jinja"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("secret")
        published = collect_files(folder, "org/adapter").keys()
        assert {name for name in published if "/" in name} == {"additional_chat_templates/tools.jinja"}


class TestReportBeside:
    BASE = {"model_name_or_path": "org/base", "revision": "a" * 40}

    def test_of_another_model_of_the_hub_claims_nothing(self, folder):
        write_report(folder, {"sbr": self.BASE}, models={"sbr": dict(REPORT["models"]["sbr"])})
        files = collect_files(folder, "org/adapter")
        assert EVAL_RESULTS_NAME not in files
        card = read(files[CARD_NAME]).decode()
        assert "model-index" not in card and "| harmful score, beavertails" in card

    def test_of_the_repository_itself(self, folder):
        on_hub = {"name_or_path": "org/adapter", "revision": "b" * 40}
        write_report(folder, {"aligned": self.BASE, "sbr": {**self.BASE, "adapter": on_hub}})
        assert EVAL_RESULTS_NAME in collect_files(folder, "org/adapter")
        assert EVAL_RESULTS_NAME not in collect_files(folder, "org/another")


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
