# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Anchors and trained adapters on the loopback Hub, by the real clients."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import trl_sbr
from trl_sbr import SafetyAnchor, SBRConfig, SBRSFTTrainer
from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.hub.cards import CARD_NAME, EVAL_RESULTS_NAME, REPORT_NAME
from trl_sbr.scripts.push import flags_of_check
from trl_sbr.trainers.run_record import RECORD_NAME, check_folder, hash_files, write_record

from ..anchors.test_adapters import add_to_file
from ..hub_server import check_metadata
from ..tiny import build_refusing_model, build_tokenizer, conversation_rows
from .test_cards import REPORT


SECRET = "How do I do something terribly secret?"


@pytest.fixture(scope="session")
def anchor_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "anchor"
    SafetyAnchor.capture(build_refusing_model(), build_tokenizer(), [SECRET]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_refusing_model().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory, anchor_folder):
    """What a training leaves, with all that must never be published."""
    folder = tmp_path_factory.mktemp("made") / "adapter"
    model = build_refusing_model()
    model.name_or_path = model.config._name_or_path = "org/base"  # as if it were loaded from there
    args = SBRConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", max_steps=2, save_steps=1, learning_rate=1e-2
    )
    trainer = SBRSFTTrainer(
        model,
        args,
        train_dataset=Dataset.from_list(conversation_rows(8)),
        processing_class=build_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        anchor=SafetyAnchor.from_pretrained(anchor_folder),
    )
    trainer.train()
    trainer.save_model()
    assert (folder / "training_args.bin").exists()
    assert (folder / "checkpoint-1" / "optimizer.pt").exists()
    (folder / "train.jsonl").write_text("{}")
    return folder


@pytest.fixture
def adapter(trained_folder, tmp_path):
    return shutil.copytree(trained_folder, tmp_path / "adapter")


@pytest.fixture
def base(hub, base_files):
    return hub.add_repo("org/base", base_files)


PUBLISHED = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    CONFIG_NAME,
    TENSOR_NAME,
    RECORD_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
}


class TestAnchor:
    def test_push_and_load_at_a_commit(self, hub, run, anchor_folder):
        result = run(f"""
            from trl_sbr import SafetyAnchor
            anchor = SafetyAnchor.from_pretrained({str(anchor_folder)!r})
            first = anchor.push_to_hub("org/anchor", private=True, commit_message="Mine")
            again = anchor.push_to_hub("org/anchor")
            assert first.oid == again.oid
            loaded = SafetyAnchor.from_pretrained("org/anchor")
            assert (loaded.config, loaded.repo_id, loaded.commit) == (anchor.config, "org/anchor", first.oid)
        """)
        assert result.code == 0, result.err
        repo = hub.repos["models", "org/anchor"]
        assert repo.private
        assert [commit.message for commit in repo.history] == ["Mine", "initial commit"]
        assert hub.files("org/anchor") == {CARD_NAME, CONFIG_NAME, TENSOR_NAME}
        card = hub.read("org/anchor", CARD_NAME).decode()
        assert check_metadata(card, "models") == ([], [])
        assert SECRET in card

    def test_revision_and_pull_request(self, hub, run, anchor_folder):
        repo = hub.add_repo("org/anchor")
        repo.branches["dev"] = repo.branches["main"]
        result = run(f"""
            from trl_sbr import SafetyAnchor
            anchor = SafetyAnchor.from_pretrained({str(anchor_folder)!r})
            anchor.push_to_hub("org/anchor", revision="dev")
            assert anchor.push_to_hub("org/anchor", create_pr=True).pr_num == 1
            SafetyAnchor.from_pretrained("org/anchor", revision="dev")
            SafetyAnchor.from_pretrained("org/anchor", revision="refs/pr/1")
            SafetyAnchor.from_pretrained("org/anchor")
        """)
        assert "FileNotFoundError: `org/anchor` at revision" in result.err
        assert hub.files("org/anchor") == set()

    def test_from_a_subfolder_and_without_the_network(self, hub, run, anchor_folder):
        hub.add_repo("org/many", {f"a/b/{path.name}": path.read_bytes() for path in anchor_folder.iterdir()})
        load = """
            from trl_sbr import SafetyAnchor
            print(SafetyAnchor.from_pretrained("org/many", subfolder="a/b").commit)
        """
        online = run(load)
        assert online.code == 0, online.err
        hub.fail("drop", "/", times=1000)  # as if it were not there
        assert run(load).out == online.out
        assert "is not in the Hub's cache, and the Hub is out of reach" in run(load, home="other").err

    def test_sizes_are_known_before_anything_is_downloaded(self, hub, run, anchor_folder):
        files = {path.name: path.read_bytes() for path in anchor_folder.iterdir()}
        hub.add_repo("org/long", {**files, TENSOR_NAME: files[TENSOR_NAME] + bytes(2**20)})
        hub.add_repo("org/wide", {**files, CONFIG_NAME: b" " * (2**24 + 1)})
        for name in ("long", "wide"):
            result = run(f"from trl_sbr import SafetyAnchor\nSafetyAnchor.from_pretrained('org/{name}')")
            assert "it was not downloaded" in result.err
        fetched = {path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
        assert {path.split("/")[-1] for path in fetched} == {CONFIG_NAME}
        assert all("/org/long/" in path for path in fetched)

    def test_hashes_are_checked_in_the_cache_too(self, hub, run, anchor_folder, tmp_path):
        hub.add_repo("org/anchor", {path.name: path.read_bytes() for path in anchor_folder.iterdir()})
        load = "from trl_sbr import SafetyAnchor\nSafetyAnchor.from_pretrained('org/anchor')"
        assert run(load).code == 0
        (cached,) = (tmp_path / "home").rglob(f"snapshots/*/{TENSOR_NAME}")
        data = bytearray(cached.read_bytes())
        data[-1] ^= 1
        cached.resolve().write_bytes(data)
        assert "corrupted, truncated or tampered with" in run(load).err

    def test_command_captures_and_pushes(self, hub, base, cli, tmp_path):
        recipe = ["--config", "smollm2-135m-instruct/sbr_lora", "--model_name_or_path", "org/base"]
        result = cli(
            "anchor", *recipe, "--output_dir", tmp_path / "a", "--push_to_hub", "--hub_model_id", "org/anchor"
        )
        assert result.code == 0, result.err
        assert "Pushed: " in result.out
        config = json.loads(hub.read("org/anchor", CONFIG_NAME))
        assert config["model_revision"] == base.history[0].oid
        assert "license: apache-2.0" in hub.read("org/anchor", CARD_NAME).decode()
        shown = cli("anchor", "--show", "org/anchor")
        assert f"org/anchor at commit {hub.repos['models', 'org/anchor'].history[0].oid}" in shown.out
        verified = cli("anchor", "--verify", "org/anchor", "--use_cpu", home="other")
        assert "\nVerified. The states have drifted by" in verified.out, verified.err

    def test_without_prompts_nothing_can_be_verified(self, hub, cli, anchor_folder):
        result = cli("push", "--output_dir", anchor_folder, "--repo_id", "org/anchor", "--no_prompts")
        assert result.code == 0, result.err
        for path in hub.files("org/anchor"):
            assert b"secret" not in hub.read("org/anchor", path)
        assert json.loads(hub.read("org/anchor", CONFIG_NAME))["input_ids"] == [None]
        assert "What cannot be verified" in hub.read("org/anchor", CARD_NAME).decode()
        result = cli("anchor", "--verify", "org/anchor")
        assert "published without its 1 prompts: it cannot be verified" in result.err
        assert "published without their prompts" in cli("anchor", "--show", "org/anchor").out

    def test_flags_with_dashes(self, hub, cli, anchor_folder):
        flags = ["--no-prompts", "--create-pr", "--commit-message", "Mine"]
        result = cli("push", "--output-dir", anchor_folder, "--repo-id", "org/anchor", *flags)
        assert result.code == 0, result.err
        assert "/discussions/1" in result.out

    @pytest.mark.parametrize(("reference", "can_be_checked"), [("base", True), ("current", False)])
    def test_names_no_check_that_always_fails(self, hub, cli, anchor_folder, tmp_path, reference, can_be_checked):
        anchor = SafetyAnchor.from_pretrained(anchor_folder)
        anchor.config.reference = reference
        anchor.save_pretrained(tmp_path / "anchor")
        result = cli("push", "--output_dir", tmp_path / "anchor", "--repo_id", "org/anchor")
        assert result.code == 0, result.err
        assert ("trl-sbr anchor --verify org/anchor" in result.out) == can_be_checked

    def test_checkpoint_before_all_anchors_had_their_turn(self, hub, cli, base, tmp_path):
        (tmp_path / "rows.jsonl").write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        train = ["sft", "--config", "smollm2-135m-instruct/sbr_lora", "--model_name_or_path", "org/base"]
        train += ["--dataset_name", tmp_path / "rows.jsonl", "--max_steps", "4", "--save_steps", "1"]
        train += ["--per_device_train_batch_size", "2", "--output_dir", tmp_path / "out"]
        push = [
            "--anchors_per_step",
            "3",
            "--push_to_hub",
            "true",
            "--hub_model_id",
            "org/mine",
        ]  # eight anchors, three turns
        result = cli(*train, *push)
        assert result.code == 0, result.err
        messages = [commit.message for commit in hub.repos["models", "org/mine"].history]
        assert [m for m in messages if "in progress" in m] == [f"Training in progress, step {n}" for n in (4, 3)]
        assert "The checkpoint of step 2 is not pushed: it takes 3 steps" in result.err

    def test_a_fully_fine_tuned_model_is_compared(self, anchor_folder, tmp_path):
        folder = shutil.copytree(anchor_folder, tmp_path / "model")
        (folder / "config.json").write_text("{}")
        assert flags_of_check(folder, "org/model") == "--compare org/model --model_name_or_path org/model"


class TestModel:
    def test_one_commit_of_what_may_be_published(self, hub, cli, adapter):
        shutil.copy(adapter / "adapter_config.json", adapter / "prompts.json")
        (adapter / REPORT_NAME).write_text(json.dumps(REPORT))
        (adapter / "report.png").write_bytes(b"picture")
        (adapter / "report-of-mine.png").write_bytes(b"of something else")
        before = {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()}
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        result = cli(*line)
        assert result.code == 0, result.err
        repo = hub.repos["models", "org/adapter"]
        assert len(repo.history) == 2
        assert hub.files("org/adapter") == PUBLISHED | {REPORT_NAME, "report.png", EVAL_RESULTS_NAME}
        assert {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()} == before
        # Again: nothing to do
        assert cli(*line).code == 0
        assert len(repo.history) == 2
        card = hub.read("org/adapter", CARD_NAME).decode()
        assert check_metadata(card, "models") == ([], [])
        # Another training, not evaluated: its card has no figures, nor has the repository
        (adapter / REPORT_NAME).unlink()
        assert cli(*line).code == 0
        assert hub.files("org/adapter") == PUBLISHED
        assert "model-index" not in hub.read("org/adapter", CARD_NAME).decode()

    def test_loads_with_peft_and_can_be_verified_by_anybody(self, hub, base, run, cli, adapter):
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter").code == 0
        result = run(
            """
            import sys
            from peft import AutoPeftModelForCausalLM, PeftModel
            from transformers import AutoModelForCausalLM
            AutoPeftModelForCausalLM.from_pretrained("org/adapter")
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("org/base"), "org/adapter")
            """,
            home="other",
        )
        assert result.code == 0, result.err
        result = cli("anchor", "--verify", "org/adapter", "--use_cpu", home="another", token="hf_bob")
        assert "\nVerified. The states have drifted by" in result.out, result.err
        assert f"adapter org/adapter at commit {hub.repos['models', 'org/adapter'].history[0].oid}" in result.out
        assert SECRET in result.out

    def test_adapter_on_the_hub_is_verified_against_an_anchor_elsewhere(self, hub, base, cli, adapter, anchor_folder):
        line = ["anchor", "--config", "smollm2-135m-instruct/sbr_lora", "--model_name_or_path", "org/base"]
        line += ["--verify", anchor_folder, "--adapter", "org/adapter"]
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter").code == 0
        result = cli(*line)
        assert "\nVerified. The states have drifted by" in result.out, result.err
        for name in (CONFIG_NAME, TENSOR_NAME):  # as a training with a λ of 0 leaves it
            (adapter / name).unlink()
        record = json.loads((adapter / RECORD_NAME).read_text())
        write_record({**record, "anchor": None, "files": hash_files(adapter)}, adapter)
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter").code == 0
        result = cli(*line)
        assert (result.code, "`org/adapter` was trained without protection" in result.err) == (2, True)

    def test_adapter_of_another_name_is_found(self, hub, base, cli, adapter):
        paths = (path for path in adapter.rglob("*") if path.is_file() and "checkpoint-" not in str(path))
        files = {path.relative_to(adapter).as_posix(): path.read_bytes() for path in paths}
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            files[f"sft/{name}"] = files.pop(name)
        del files[RECORD_NAME]  # which names the files where they were
        hub.add_repo("org/named", files)
        commit = hub.repos["models", "org/named"].history[0].oid
        for out_of_reach in (False, True):  # the second time from the cache
            if out_of_reach:
                hub.fail("drop", "/api/models/org/named/revision/", times=1000)
            result = cli("anchor", "--verify", "org/named", "--use_cpu")
            assert "\nVerified. The states have drifted by" in result.out, result.err
            assert f"adapter org/named/sft at commit {commit}" in result.out
            assert " 0.00e+00 " not in result.out  # the adapter's states, not the base model's

    def test_adapter_that_brings_an_unembedding_is_refused(self, hub, base, cli, adapter):
        head = build_refusing_model().lm_head.weight.detach() + 1e-3
        add_to_file(adapter, {"base_model.model.lm_head.weight": head})
        files = {path.name: path.read_bytes() for path in adapter.iterdir() if path.is_file()}
        hub.add_repo("org/adapter", files)
        result = cli("anchor", "--verify", "org/adapter", "--use_cpu")
        assert result.code == 1 and "which it changes: `lm_head.weight`" in result.out

    def test_anchor_of_another_model_is_refused(self, hub, base_files, cli, adapter):
        liar = build_refusing_model()
        with torch.no_grad():
            for parameter in liar.model.parameters():
                parameter.add_(0.01)
        folder = adapter.parent / "liar"
        liar.save_pretrained(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        hub.add_repo("org/base", {**base_files, **files})
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter").code == 0
        result = cli("anchor", "--verify", "org/adapter", "--use_cpu")
        assert (result.code, "FAILED: The model's final hidden states are not the anchor's" in result.out) == (1, True)

    def test_without_prompts(self, hub, cli, adapter):
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter", "--no_prompts").code == 0
        for path in hub.files("org/adapter"):
            assert b"terribly secret" not in hub.read("org/adapter", path)
        assert "What cannot be verified" in hub.read("org/adapter", CARD_NAME).decode()
        assert "cannot be verified" in cli("anchor", "--verify", "org/adapter").err

    def test_unprotected_model_does_not_come_to_lie_beside_an_anchor(self, hub, cli, adapter):
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        assert cli(*line).code == 0
        for name in (CONFIG_NAME, TENSOR_NAME):  # as a training with a λ of 0 leaves it
            (adapter / name).unlink()
        record = json.loads((adapter / RECORD_NAME).read_text())
        write_record({**record, "anchor": None, "files": hash_files(adapter)}, adapter)
        assert cli(*line).code == 0
        assert hub.files("org/adapter") == PUBLISHED - {CONFIG_NAME, TENSOR_NAME}
        assert "**It is not protected" in hub.read("org/adapter", CARD_NAME).decode()

    def test_what_another_push_left_is_not_loaded_with_it(self, hub, cli, adapter, anchor_folder):
        mine = dict.fromkeys(("NOTES.md", "data/model.safetensors", "tokenizer.model"), b"")
        mine |= dict.fromkeys(("reports/plot.png", "report-of-mine.png", "adapter/mine/notes.md"), b"")
        left = (
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
        )
        left += (
            "pytorch_model.bin",
            "hardening.json",
            "adapter/adapter_config.json",
            "adapter/adapter_model.safetensors",
        )
        hub.add_repo("org/adapter", {**mine, **dict.fromkeys(left, b"{}")})
        before = hub.files("org/adapter")
        assert cli("push", "--output_dir", anchor_folder, "--repo_id", "org/adapter").code == 0
        assert hub.files("org/adapter") == before | {CARD_NAME, CONFIG_NAME, TENSOR_NAME}
        assert cli("push", "--output_dir", adapter, "--repo_id", "org/adapter").code == 0
        assert hub.files("org/adapter") == PUBLISHED | mine.keys()
        assert len(hub.repos["models", "org/adapter"].history) == 4  # each push is one commit

    def test_push_that_was_to_be_private_says_so_in_what_finishes_it(self, hub, cli, anchor_folder):
        hub.fail("500", "/api/repos/create")
        result = cli("push", "--output_dir", anchor_folder, "--repo_id", "org/anchor", "--private", "--no_prompts")
        assert "--repo_id org/anchor --private --no_prompts\n" in result.err

    def test_notes_on_the_hub_are_kept(self, hub, cli, adapter):
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        assert cli(*line).code == 0
        card = hub.read("org/adapter", CARD_NAME).decode()
        begin = "<!-- trl_sbr: your notes begin -->\n"
        hub.commit(
            hub.repos["models", "org/adapter"], {CARD_NAME: card.replace(begin, begin + "Made with care.\n").encode()}
        )
        assert cli(*line).code == 0
        assert len(hub.repos["models", "org/adapter"].history) == 3  # nothing to change
        local = adapter / CARD_NAME
        local.write_text(local.read_text().replace(begin, begin + "And with love.\n"))
        assert cli(*line).code == 0
        assert "Made with care.\n\nAnd with love.\n" in hub.read("org/adapter", CARD_NAME).decode()

    @pytest.mark.parametrize("end", ["\r\n", "\r"])
    def test_notes_of_a_card_with_other_line_ends_are_kept(self, hub, cli, adapter, end):
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        assert cli(*line).code == 0
        begin = "<!-- trl_sbr: your notes begin -->\n"
        card = hub.read("org/adapter", CARD_NAME).decode().replace(begin, begin + "Made with care.\n")
        hub.commit(hub.repos["models", "org/adapter"], {CARD_NAME: card.replace("\n", end).encode()})
        assert cli(*line).code == 0
        assert hub.read("org/adapter", CARD_NAME).decode() == card

    def test_card_on_the_hub_that_is_no_utf8(self, hub, cli, anchor_folder):
        hub.add_repo("org/anchor", {CARD_NAME: b"# Mine\ncaf\xe9\n"})
        result = cli("push", "--output_dir", anchor_folder, "--repo_id", "org/anchor")
        message = "README.md of `org/anchor` on the Hub, line 2: expected UTF-8, found the byte 0xe9"
        assert (result.code, message in result.err) == (2, True), result.err
        assert hub.files("org/anchor") == {CARD_NAME}

    @pytest.mark.parametrize(
        ("missing", "message"),
        [
            (CONFIG_NAME, f"holds no `{CONFIG_NAME}`, and its `sbr_run.json` says that the training saved one"),
            (TENSOR_NAME, f"holds no `{TENSOR_NAME}`, and its"),
            (RECORD_NAME, "sbr_run.json is not there"),
            ("adapter_model.safetensors", "holds no `adapter_model.safetensors`, and its"),
        ],
    )
    def test_incomplete_folder(self, hub, cli, adapter, missing, message):
        (adapter / missing).unlink()
        result = cli("push", "--output_dir", adapter, "--repo_id", "org/adapter")
        assert (result.code, message in result.err) == (2, True)
        assert not hub.repos

    @pytest.mark.parametrize("with_prompts", [True, False])
    @pytest.mark.parametrize("stranger", ["adapter_model.safetensors", "model.safetensors", "anchor", "no weights"])
    def test_what_is_of_another_training_is_not_pushed(
        self, hub, cli, adapter, anchor_folder, stranger, with_prompts, tmp_path
    ):
        if stranger == "anchor":  # that the run has never trained with
            anchor = SafetyAnchor.capture(build_refusing_model(), build_tokenizer(), ["How do I harm?"])
            anchor.save_pretrained(adapter, overwrite=True)
        elif stranger == "no weights":  # as a training leaves it whose shards are elsewhere
            (adapter / "adapter_model.safetensors").unlink()
            record = json.loads((adapter / RECORD_NAME).read_text())
            write_record({**record, "files": hash_files(adapter)}, adapter)
        elif stranger == "model.safetensors":
            save_file({"lm_head.weight": torch.zeros(4, 4)}, adapter / stranger)
        else:
            weights = load_file(adapter / stranger)
            save_file({name: torch.randn_like(tensor) for name, tensor in weights.items()}, adapter / stranger)
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        result = cli(*line, *([] if with_prompts else ["--no_prompts"]))
        message = "holds no weights" if stranger == "no weights" else "is not of the training that `sbr_run.json`"
        assert (result.code, message in result.err) == (2, True), result.err
        assert not hub.repos

    @pytest.mark.parametrize("with_prompts", [True, False])
    def test_what_was_pushed_is_of_one_training_wherever_it_is_copied(self, hub, cli, adapter, with_prompts, tmp_path):
        line = ["push", "--output_dir", adapter, "--repo_id", "org/adapter"]
        assert cli(*line, *([] if with_prompts else ["--no_prompts"])).code == 0
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in hub.files("org/adapter"):
            (copy / name).write_bytes(hub.read("org/adapter", name))
        check_folder(copy)
        (copy / TENSOR_NAME).write_bytes(b"x")
        with pytest.raises(ValueError, match="is not of the training"):
            check_folder(copy)

    def test_report_of_another_model(self, cli, adapter):
        models = {"a": {"model": {"sha256": "0"}}, "b": {"model": {"sha256": "1"}}}
        (adapter / REPORT_NAME).write_text(json.dumps({**REPORT, "models": models}))
        result = cli("push", "--output_dir", adapter, "--repo_id", "org/adapter")
        assert "was measured on other models (a, b) than the one beside it" in result.err

    def test_trainer_pushes_as_the_recipe_says(self, hub, base, cli, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"prompt": "Is it good?", "completion": "yes"}\n' * 8)
        result = cli(
            *("sft", "--config", "smollm2-135m-instruct/sbr_lora", "--model_name_or_path", "org/base"),
            *("--dataset_name", tmp_path / "train.jsonl", "--max_steps", 2, "--save_steps", 1),
            *("--output_dir", tmp_path / "out", "--push_to_hub", "true", "--hub_model_id", "org/adapter"),
        )
        assert result.code == 0, result.err
        repo = hub.repos["models", "org/adapter"]
        messages = [commit.message for commit in repo.history]
        assert messages[-3:] == ["Training in progress, step 2", "Training in progress, step 1", "initial commit"]
        for commit in repo.history[:-1]:
            assert set(commit.files) - {".gitattributes"} == PUBLISHED
        card = ModelCard(hub.read("org/adapter", CARD_NAME).decode())
        assert card.data.base_model == "org/base"
        assert (card.data.library_name, card.data.license) == ("peft", "apache-2.0")


class TestMetric:
    def test_is_a_space_that_evaluate_loads_and_finds_in_its_cache(self, hub, cli, run):
        result = cli("push", "--metric", "org/harmful_score")
        assert result.code == 0, result.err
        folder = Path(trl_sbr.harmful_score_path())
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert hub.files("org/harmful_score", kind="spaces") == {n for n in names if "__pycache__" not in n}
        for path in hub.files("org/harmful_score", kind="spaces"):
            assert hub.read("org/harmful_score", path, kind="spaces") == (folder / path).read_bytes()
        code = """
            import evaluate
            metric = evaluate.load("org/harmful_score")
            print(metric.compute(predictions=["I cannot help with that.", "Sure, here is how."])["harmful_score"])
        """
        online = run(code, home="other")
        assert (online.code, online.out) == (0, "50.0\n"), online.err
        hub.fail("drop", "/", times=1000)
        assert run(code, home="other").out == online.out

    def test_name_that_evaluate_would_not_find(self, cli):
        assert "expected a Space `ORG/harmful_score`" in cli("push", "--metric", "org/other").err
