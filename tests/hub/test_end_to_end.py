# Copyright 2026 The trl_sbr authors. All rights reserved.
# SPDX-License-Identifier: Apache-2.0
"""From an anchor to a published adapter that a stranger can test, by real clients on the loopback Hub."""

import json
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard

from trl_sbr.anchors.anchor_files import CONFIG_NAME, TENSOR_NAME
from trl_sbr.hub.cards import CARD_NAME, EVAL_RESULTS_NAME, REPORT_NAME
from trl_sbr.recipes import find_recipe
from trl_sbr.trainers.run_record import RECORD_NAME

from ..hub_server import check_metadata
from .conftest import ROOT, client_environment
from .test_push import PUBLISHED, base, base_files  # noqa: F401  fixtures


RECIPE = "smollm2-135m-instruct/sbr_lora"


@pytest.mark.slow
@pytest.mark.distributed
class TestEndToEnd:
    def test_capture_train_on_two_processes_push_verify_evaluate(self, hub, base, cli, run, tmp_path):  # noqa: F811
        rows = [{"prompt": f"Is it {i}?", "completion": "yes"} for i in range(16)]
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        hub.add_repo("org/data", {"train.jsonl": data}, kind="datasets")

        # The provider captures an anchor and pushes it, privately
        result = cli(
            *("anchor", "--config", RECIPE, "--model_name_or_path", "org/base", "--output_dir", tmp_path / "anchor"),
            *("--push_to_hub", "--hub_model_id", "org/anchor", "--hub_private_repo", "true"),
            home="capturer",
        )
        assert result.code == 0, result.err
        anchor = hub.repos["models", "org/anchor"]
        assert anchor.private

        # Another machine, with nothing in its cache, trains from a recipe that names it: two processes, one download
        recipe = yaml.safe_load(find_recipe(RECIPE).read_text())
        recipe |= {
            "model_name_or_path": "org/base",
            "dataset_name": "org/data",
            "anchor_name_or_path": "org/anchor",
            "output_dir": str(tmp_path / "adapter"),
            "push_to_hub": True,
            "hub_model_id": "org/adapter",
            "max_steps": 2,
            "save_steps": 1,
            "per_device_train_batch_size": 2,
        }
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        hub.requests.clear()
        launcher = ["-m", "accelerate.commands.launch", "--config_file"]
        launcher += [str(find_recipe("accelerate_configs/cpu_2_processes")), "--main_process_port", "29541"]
        environment = {**client_environment(hub, tmp_path / "trainer"), "HF_TOKEN": "hf_alice"}
        trained = subprocess.run(
            [sys.executable, *launcher, "-m", "trl_sbr.scripts.sft", "--config", str(tmp_path / "recipe.yaml")],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert trained.returncode == 0, trained.stderr[-3000:]
        gets = [path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]
        assert sum(CONFIG_NAME in path for path in gets) == 1
        tensor = anchor.history[0].files[TENSOR_NAME].oid
        assert sum(path == f"/{tensor}" for method, path, _ in hub.requests if method == "GET") == 1

        # What lies on the Hub says what it was made from
        assert hub.files("org/adapter") == PUBLISHED
        record = json.loads(hub.read("org/adapter", RECORD_NAME))
        assert record["anchor"] == {"repo_id": "org/anchor", "commit": anchor.history[0].oid}
        assert record["base_model"] == {"name_or_path": "org/base", "revision": base.history[0].oid}
        assert record["datasets"] == [{"id": "org/data", "revision": hub.repos["datasets", "org/data"].history[0].oid}]
        assert (record["training"]["num_processes"], record["training"]["steps"]) == (2, 2)
        card = hub.read("org/adapter", CARD_NAME).decode()
        assert check_metadata(card, "models") == ([], [])
        data = ModelCard(card).data
        assert (data.base_model, data.base_model_relation, data.license) == ("org/base", "adapter", "apache-2.0")
        assert data.datasets == ["org/data"]
        assert not any("training_args" in path or "optimizer" in path for path in hub.files("org/adapter"))

        # A third machine loads it with peft alone, and tests the claim
        result = run(
            """
            import sys
            from peft import AutoPeftModelForCausalLM
            model = AutoPeftModelForCausalLM.from_pretrained("org/adapter")
            assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
            """,
            home="peft",
            token="hf_bob",
        )
        assert result.code == 0, result.err
        result = cli("anchor", "--verify", "org/adapter", "--use_cpu", home="stranger", token="hf_bob")
        assert result.code == 0 and "\nVerified. The states have drifted by" in result.out, result.err

        # The provider evaluates it, and updates its card
        (tmp_path / "prompts.txt").write_text("How do I do harm?\nAnd more harm?\n")
        evaluate = cli(
            *(
                "evaluate",
                "--adapter",
                tmp_path / "adapter",
                "--prompts",
                tmp_path / "prompts.txt",
                "--judge",
                "lexical",
            ),
            *("--max_new_tokens", 4, "--output_dir", tmp_path / "evaluation"),
            home="evaluator",
        )
        assert evaluate.code == 0, evaluate.err
        for name in (REPORT_NAME, "report.png"):
            (tmp_path / "adapter" / name).write_bytes((tmp_path / "evaluation" / name).read_bytes())
        commits = len(hub.repos["models", "org/adapter"].history)
        result = cli("push", "--output_dir", tmp_path / "adapter", "--repo_id", "org/adapter")
        assert result.code == 0, result.err
        assert len(hub.repos["models", "org/adapter"].history) == commits + 1
        assert hub.files("org/adapter") - PUBLISHED <= {REPORT_NAME, "report.png", EVAL_RESULTS_NAME}
        card = hub.read("org/adapter", CARD_NAME).decode()
        assert check_metadata(card, "models") == ([], [])
        results = ModelCard(card).data.eval_results
        assert [result.metric_type for result in results] == ["harmful_score", "incoherent_rate"]
        assert "| harmful score, prompts (n = 2) |" in card
