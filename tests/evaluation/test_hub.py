# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""Prompts and models from the Hub: a loopback one, asked by processes of their own, since they read its address once."""

import json
import subprocess
import sys

import pytest
from datasets import Dataset

from ..hub.conftest import client_environment
from ..hub_server import HubServer
from ..tiny import build_refusing_model, build_tokenizer


@pytest.fixture
def hub():
    with HubServer() as server:
        server.add_user("alice", "hf_alice")
        yield server


def run(hub, tmp_path, code, **environment):
    environment = {**client_environment(hub, tmp_path / "home"), **environment}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
class TestHub:
    def test_dataset_with_its_commit(self, hub, tmp_path):
        Dataset.from_dict({"prompt": ["How?", "Why?"]}).to_parquet(tmp_path / "data.parquet")
        data = (tmp_path / "data.parquet").read_bytes()
        repo = hub.add_repo("alice/prompts", {"data/test-00000-of-00001.parquet": data}, kind="datasets")
        commit = repo.resolve("main").oid
        code = (
            "import json; from trl_sbr.evaluation.prompt_sets import load_prompt_set\n"
            "data = load_prompt_set('alice/prompts'); print(json.dumps([data.harmful, data.to_dict()]))"
        )
        harmful, described = json.loads(run(hub, tmp_path, code))
        assert harmful == ["How?", "Why?"]
        assert described["revision"] == commit
        assert described["source"] == "Hub, alice/prompts, test, `prompt`"

    def test_file_at_a_commit_comes_from_the_cache_later(self, hub, tmp_path):
        data = b'{"is_safe": false, "prompt": "How?"}\n'
        repo = hub.add_repo("alice/rows", {"rows.json": data}, kind="datasets")
        commit = repo.resolve("main").oid
        hub.commit(repo, {"rows.json": b'{"is_safe": false, "prompt": "Something else?"}\n'})
        code = (
            "from trl_sbr.evaluation.prompt_sets import read_hub_file\n"
            f"print(read_hub_file('alice/rows', 'rows.json', {commit!r}))"
        )
        assert run(hub, tmp_path, code) == str([{"is_safe": False, "prompt": "How?"}])
        assert run(hub, tmp_path, code, HF_HUB_OFFLINE="1") == str([{"is_safe": False, "prompt": "How?"}])

    def test_model_is_known_by_its_commit(self, hub, tmp_path):
        build_refusing_model().save_pretrained(tmp_path / "model")
        build_tokenizer().save_pretrained(tmp_path / "model")
        files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        commit = hub.add_repo("alice/model", files).resolve("main").oid
        code = (
            "from trl_sbr.cli import main\n"
            "main(['evaluate', '--model_name_or_path', 'alice/model', '--prompts', 'demo', '--max_prompts', '2', "
            f"'--max_new_tokens', '4', '--output_dir', {str(tmp_path / 'out')!r}])"
        )
        run(hub, tmp_path, code)
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        model = report["models"]["model"]["model"]
        assert (model["model_name_or_path"], model["revision"]) == ("alice/model", commit)
        assert model["chat_template"]["from"] == "alice/model"
        assert report["models"]["model"]["safety"]["demo"]["refusal_rate"]["percent"] == 100

    def test_revision_is_that_of_the_adapter_that_is_named(self, hub, tmp_path):
        config = {"peft_type": "LORA", "base_model_name_or_path": "alice/model", "revision": "v1"}
        repo = hub.add_repo("alice/adapter", {"adapter_config.json": json.dumps(config).encode()})
        commit = repo.resolve("main").oid
        hub.add_repo("alice/model", {"config.json": b"{}"})
        hub.commit(repo, {"adapter_config.json": json.dumps({**config, "revision": "v2"}).encode()})
        code = (
            "from trl_sbr.evaluation.models import resolve_models\n"
            f"(entry,) = resolve_models('alice/adapter', {commit!r}, None, [])\n"
            "(newest,) = resolve_models('alice/adapter', 'main', None, [])\n"
            "print(entry.adapter.revision, entry.model_name_or_path, entry.revision, newest.revision)"
        )
        assert run(hub, tmp_path, code) == f"{commit} alice/model v1 v2"
